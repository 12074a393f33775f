"""The pages that the code knows best are fresh, and what a user can meet has its place in the docs."""

from __future__ import annotations

import ast
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.cli import NOUNS
from service.errors import ErrorCode
from trainers.failure import HINTS
from trainers.registry import METHODS

ROOT = Path(__file__).parents[2]
PAGES = runpy.run_path(str(ROOT / "docs" / "make_pages.py"))["PAGES"]
CODE_ARGUMENT = {"TrainingFailed": 0, "Fault": 1, "JobError": None, "_failed_job": None}


@pytest.mark.parametrize("name", sorted(PAGES))
def test_the_page_is_fresh(name: str) -> None:
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == PAGES[name](), "run: make docs"


def codes() -> set[str]:
    """Every code that the sources give to an error of a run or to a fault of a row, and every code of a request's error."""
    found = {code.value for code in ErrorCode}
    for path in [*(ROOT / "service").rglob("*.py"), *(ROOT / "trainers").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                found |= set(_codes_of(node))
    return found


def _codes_of(call: ast.Call) -> Iterator[str]:
    name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
    position = CODE_ARGUMENT.get(name, -1)
    values = [keyword.value for keyword in call.keywords if keyword.arg in ("code", "rule", "wire_code")]
    if position is not None and 0 <= position < len(call.args):
        values.append(call.args[position])
    for value in values:
        if isinstance(value, ast.Constant) and isinstance(value.value, str) and re.fullmatch("[a-z][a-z0-9_]+", value.value):
            yield value.value


def test_codes_are_found() -> None:
    assert {"diverged", "artifact_invalid", "bad_json", "mixed_row_shapes", "rate_limit_exceeded"} <= codes()


def test_every_error_code_has_its_place() -> None:
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    missing = sorted(code for code in codes() if f"`{code}`" not in page)
    assert not missing


def audited() -> set[str]:
    """Every type of entry that the sources write into the audit log."""
    found = set()
    for path in (ROOT / "service").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("audit", "_change"):
                values = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
                found |= {value for value in values if isinstance(value, str) and re.fullmatch(r"[a-z_]+(\.[a-z]+)+", value)}
    return found


def test_every_type_of_the_audit_log_has_its_place() -> None:
    page = (ROOT / "docs" / "tenancy.md").read_text(encoding="utf-8")
    assert {"api_key.rotated", "job.paused", "webhook.updated"} <= audited()
    assert sorted(type for type in audited() if f"`{type}`" not in page) == []


def runs_codes() -> dict[str, set[str]]:
    """Every code that the trainer gives a run's end, with the causes it gives with it."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "trainers").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "TrainingFailed":
                words = [argument.value if isinstance(argument, ast.Constant) else "" for argument in node.args]
                found.setdefault(words[0], set()).add(words[2] if len(words) > 2 else "service")
    return found


def test_every_end_of_a_run_has_a_hint_and_a_row_with_its_cause() -> None:
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8").partition("## Of a job")[2].partition("\n## ")[0]
    firsts = [row.split("|")[1:3] for row in page.splitlines() if row.startswith("| `")]
    rows = {code: cause.strip() for cell, cause in firsts for code in re.findall("`([a-z_]+)`", cell)}
    assert {"diverged", "run_stuck", "preempted", "worker_lost"} <= runs_codes().keys()
    assert {code: {rows.get(code)} for code in runs_codes()} == runs_codes()
    assert set(HINTS) - {"base_model_damaged"} == set(runs_codes()) - {"base_model_damaged"}


def test_every_method_has_its_place() -> None:
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert [name for name in METHODS if f"## {name}" not in page] == []


def test_every_rpc_has_its_place() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    protos = "".join(path.read_text() for path in (ROOT / "protos").rglob("*.proto"))
    services = re.findall(r"service (\w+) \{(.*?)\n\}", protos, re.DOTALL)
    calls = [f"{service}.{call}" for service, body in services for call in re.findall(r"rpc (\w+)\(", body)]
    assert calls
    assert [call for call in calls if call not in page] == []


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").glob("*.md"), *(ROOT / "examples").rglob("*.md")]:
        for target in re.findall(r"\]\((?!http|mailto|#)([^)#]+)", page.read_text(encoding="utf-8")):
            if not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert broken == []


def test_every_command_in_the_docs_is_one_that_there_is() -> None:
    cli = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    written = set()
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "SECURITY.md", ROOT / "bench" / "README.md"]:
        written |= set(
            re.findall(r"(?:^|`|&& )tunesmith ((?:[a-z]+ ?){1,2}(?: ?--?[a-z-]+| [^-\s`|]+)*)", page.read_text(encoding="utf-8"), re.M)
        )
    assert len(written) > 10
    for command in written:
        words = command.split()
        name = " ".join(words[:2] if words[0] in NOUNS else words[:1])
        _, found, section = cli.partition(f"\n## tunesmith {name}\n")
        assert found, f"no such command: tunesmith {command}"
        options = section.partition("\n## ")[0]
        assert [word for word in words if word.startswith("--") and word not in options] == [], command
