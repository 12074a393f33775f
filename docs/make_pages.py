"""Writes what the code knows best: the pages on commands, settings, metrics and states, and the README's list of files.

`make docs` runs it; tests/docs/test_pages.py fails when a page is not what this writes.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client.core import Metric
from pydantic import TypeAdapter
from pydantic_settings import BaseSettings

from service.cli import pages as cli
from service.jobs import FINAL, TRANSITIONS, JobStatus
from service.metrics import Metrics
from service.rest.convert import STATUS
from service.settings import ClientSettings, Settings

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
FILES_BEGIN, FILES_END = "<!-- files: made by `make docs` -->", "<!-- end of files -->"
SETTINGS_HEAD = """# Settings

Every setting is an environment variable `TUNESMITH_<NAME>`. Durations are ISO 8601 (`PT15S`) or seconds. The command's options
`--data-dir`, `--port` and `--grpc-port` come first where they are given.
"""
SETTINGS_OF_NODES = """
## On the nodes

Read by the workers, so they belong in the environment of the cluster's nodes. A gateway that starts its own Ray hands on its own
`TUNESMITH_NVME_DIR` and `TUNESMITH_TLS_…`, and has copies lie in its data directory.

| variable | default | meaning |
|---|---|---|
| `TUNESMITH_CACHE_DIR` | below the temporary directory | Copies of base models and datasets; a directory of the workers' user alone. |
| `TUNESMITH_NVME_DIR` |  | Optimizer state of jobs that ask for NVMe ([engines.md](engines.md#optimizer-state-on-nvme)). |
| `TUNESMITH_DRAIN_FILE` |  | A file that says that the node goes away ([faults.md](faults.md#when-a-node-goes-away)). |
| `TUNESMITH_TLS_CA`, `TUNESMITH_TLS_CERT`, `TUNESMITH_TLS_KEY` |  | With what workers reach a gateway that speaks TLS; as at the gateway. |
"""
METRICS_HEAD = """# Metrics

`GET /metrics` serves these in Prometheus' text format, beside the usual `process_` and `python_` series of the gateway. It needs an
API key unless `TUNESMITH_METRICS_PUBLIC` is true. Series with a `job` label end with the job.
"""
LIFECYCLE_HEAD = """# The states of a job

Generated from `TRANSITIONS` in `service/jobs.py`. The exact phase is `tunesmith.phase` in a job's answer; `status` is OpenAI's
coarser word.
"""


def settings_page() -> str:
    """docs/settings.md"""
    return "\n".join(
        [SETTINGS_HEAD, "## The gateway\n", _table(Settings), "\n## The command line\n", _table(ClientSettings), SETTINGS_OF_NODES]
    )


def _table(settings: type[BaseSettings]) -> str:
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in settings.model_fields.items():
        default = "" if field.default in (None, ()) else f"`{TypeAdapter(Any).dump_python(field.default, mode='json')}`"
        rows.append(f"| `TUNESMITH_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)


def metrics_page() -> str:
    """docs/metrics.md"""
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for family in _families():
        name = f"{family.name}_total" if family.type == "counter" else f"{family.name}_info" if family.type == "info" else family.name
        labels = ", ".join(f"`{label}`" for label in _labels(family.name)) or ""
        rows.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    return "\n".join([METRICS_HEAD, *rows, ""])


def _families() -> list[Metric]:
    return [family for family in Metrics().registry.collect() if family.name.startswith("tunesmith")]


def _labels(name: str) -> list[str]:
    found = next(collector for collector, names in Metrics().registry._collector_to_names.items() if name in names)
    return list(getattr(found, "_labelnames", ()))


def lifecycle_page() -> str:
    """docs/lifecycle.md"""
    edges = [f"    {old} --> {new}" for old in JobStatus for new in JobStatus if new in TRANSITIONS[old]]
    ends = [f"    {status} --> [*]" for status in JobStatus if status in FINAL]
    diagram = "\n".join(["```mermaid", "stateDiagram-v2", "    [*] --> validating", *edges, *ends, "```"])
    rows = ["| phase | on the OpenAI wire | goes to |", "|---|---|---|"]
    for status in JobStatus:
        onward = ", ".join(new for new in JobStatus if new in TRANSITIONS[status]) or "none"
        rows.append(f"| {status} | `{STATUS[status]}` | {onward} |")
    return "\n".join([LIFECYCLE_HEAD, diagram, "", *rows, ""])


def readme() -> str:
    """README.md with its list of files, the first line of each one's docstring, made anew."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    before, _, rest = page.partition(FILES_BEGIN)
    return before + FILES_BEGIN + "\n" + _files() + "\n" + FILES_END + rest.partition(FILES_END)[2]


def _files() -> str:
    rows = []
    for top in ("service", "trainers", "examples", "bench", "docs"):
        rows += [f"\n**{top}/**\n", "| file | what it is |", "|---|---|"]
        for path in sorted((ROOT / top).rglob("*.py"), key=lambda path: (path.parent, path.name)):
            line = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
            if line and "migrations" not in path.parts:
                rows.append(f"| `{path.relative_to(ROOT / top)}` | {line} |")
    return "\n".join(rows)


PAGES: dict[str, Callable[[], str]] = {
    "cli.md": cli.pages,
    "settings.md": settings_page,
    "metrics.md": metrics_page,
    "lifecycle.md": lifecycle_page,
    "../README.md": readme,
}


if __name__ == "__main__":
    for page, write in PAGES.items():
        (DOCS / page).write_text(write(), encoding="utf-8")
