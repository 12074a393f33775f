"""`tunesmith doctor`: looks at what a stack needs and what it has, and says what to do about the rest.

Changes nothing. Each check is a function that gives one finding; a check that breaks is a finding as well.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from service.cli.local import Local
from service.cli.options import DataDir, Output
from service.cli.output import Column, ExitCode, Format, show_rows

if TYPE_CHECKING:
    from service.settings import Settings

LEAST_PYTHON = (3, 11)
ENOUGH_MEMORY_BYTES = 4e9
"""What Ray and one run on the smallest shipped model take."""
COLUMNS: list[Column] = [
    ("", lambda row: row["state"]),
    ("CHECK", lambda row: row["check"]),
    ("FOUND", lambda row: row["found"]),
    ("NEXT STEP", lambda row: row["next_step"]),
]


@dataclass(frozen=True)
class Finding:
    """What one check found; `next_step` is empty when all is well."""

    check: str
    state: Literal["ok", "warn", "fail"]
    found: str
    next_step: str = ""


def doctor(data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Check this machine, the data directory and what runs on it. Exit code 1: something keeps the service from working."""
    local = Local.of(data_dir)
    findings = [_survived(check, local) for check in CHECKS]
    show_rows([asdict(finding) for finding in findings], COLUMNS, output)
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(ExitCode.FAILED)


def _survived(check: Callable[[Local], Finding], local: Local) -> Finding:
    name = check.__name__.strip("_").replace("_", " ")
    try:
        return check(local)
    except Exception as error:
        return Finding(name, "fail", f"{type(error).__name__}: {error}", "Report this with the output of `tunesmith doctor -o json`.")


def _python(local: Local) -> Finding:
    found = sys.version.split()[0]
    if sys.version_info < LEAST_PYTHON:
        return Finding("python", "fail", found, f"Install Python {LEAST_PYTHON[0]}.{LEAST_PYTHON[1]} or newer.")
    return Finding("python", "ok", found)


def _data_directory(local: Local) -> Finding:
    directory = _existing(local.settings.data_dir)
    missing = "" if directory == local.settings.data_dir.absolute() else f" ({local.settings.data_dir} is made at the first start)"
    if not directory.is_dir() or not os.access(directory, os.W_OK | os.X_OK):
        return Finding("data directory", "fail", f"no write permission in {directory}{missing}", "Choose another with --data-dir.")
    return Finding("data directory", "ok", f"{directory} can be written{missing}")


def _disk(local: Local) -> Finding:
    free, needed = shutil.disk_usage(_existing(local.settings.data_dir)).free, local.settings.min_free_bytes
    if free < needed:
        return Finding(
            "disk", "fail", f"{free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed", "Make room, or choose another --data-dir."
        )
    return Finding("disk", "ok", f"{free / 1e9:.1f} GB free")


def _memory(local: Local) -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    if memory.available < ENOUGH_MEMORY_BYTES:
        return Finding(
            "memory", "warn", found, f"A run may be killed: {ENOUGH_MEMORY_BYTES / 1e9:.0f} GB are enough for the smallest model."
        )
    return Finding("memory", "ok", found)


def _ports(local: Local) -> Finding:
    from service.embedded import CannotStart, Lock, Ports

    settings = local.settings
    if Lock.holder(settings.data_dir) is not None:
        return Finding("ports", "ok", "held by the service on this data directory")
    try:
        ports = Ports.open(settings)
    except CannotStart as error:
        return Finding("ports", "fail", str(error), "Use --port 0 and --grpc-port 0, or other numbers.")
    return Finding("ports", "ok", f"{ports.rest} and {ports.grpc} are free on {settings.host}")


def _ray(local: Local) -> Finding:
    if local.settings.ray_address is not None:
        return Finding("ray", "ok", f"the cluster at {local.settings.ray_address}, see below")
    missing = [name for name in ("ray", "torch", "transformers", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        next_step = "pip install 'tunesmith[trainer]', or set TUNESMITH_RAY_ADDRESS to a cluster that has it."
        return Finding("ray", "fail", f"not installed here: {', '.join(missing)}", next_step)
    return Finding("ray", "ok", f"Ray {metadata.version('ray')} is installed for a local head")


def _ray_answers(local: Local) -> Finding:
    from service.runtime import RuntimeUnavailable

    address, token = _dashboard(local.settings)
    if address is None:
        return Finding("ray token", "ok", "no local head runs")
    try:
        guarded, found = asyncio.run(_asked(address, token))
    except RuntimeUnavailable as error:
        return Finding("ray token", "fail", str(error), "See `tunesmith status` and the log it names.")
    if not guarded:
        return Finding("ray token", "fail", f"{address} answers without a token", "Start the cluster with RAY_AUTH_MODE=token.")
    return Finding("ray token", "ok", f"{address} wants a token; {found}")


def _base_models(local: Local) -> Finding:
    # Opening a storage that is not there would make it.
    there = local.settings.storage_url is not None or (local.settings.data_dir / "objects").is_dir()
    installed = sorted(local.installed()) if there else []
    if not installed:
        return Finding("base models", "warn", "none has been pulled", "`tunesmith models pull smollm2-135m-instruct`")
    return Finding("base models", "ok", ", ".join(installed))


def _service(local: Local) -> Finding:
    from service.cli.stack import stack_facts

    facts = stack_facts(local.settings.data_dir)
    if not facts["running"]:
        return Finding("service", "warn", "does not run", "`tunesmith up --detach`")
    if not facts["ready"]:
        return Finding("service", "fail", f"runs, but is not ready: {facts['waiting_for']}", f"See {facts['log']}.")
    return Finding("service", "ok", f"ready at {facts['base_url']}")


def _api_key(local: Local) -> Finding:
    path = local.settings.data_dir.absolute() / "api-key"
    if not path.exists():
        return Finding("api key", "ok", "made at the first start")
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        return Finding("api key", "fail", f"{path} can be read by others (mode {mode:03o})", f"chmod 600 {path}")
    return Finding("api key", "ok", f"{path}, readable by its owner only")


CHECKS: list[Callable[[Local], Finding]] = [
    _python,
    _data_directory,
    _disk,
    _memory,
    _ports,
    _ray,
    _ray_answers,
    _base_models,
    _service,
    _api_key,
]


def _existing(path: Path) -> Path:
    """The path itself, or the nearest directory above it that is there."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _dashboard(settings: Settings) -> tuple[str | None, str | None]:
    from service.ray_head import known_head

    if settings.ray_address is not None:
        return settings.ray_address, settings.ray_token.get_secret_value() if settings.ray_token else None
    head = known_head(settings.data_dir)
    return (head.url, head.token) if head else (None, None)


async def _asked(address: str, token: str | None) -> tuple[bool, str]:
    from service.ray_runtime import RayAddress, RayRuntime

    runtime = RayRuntime(lambda: RayAddress(address.rstrip("/"), token))
    try:
        capacity = await runtime.capacity()
        return await runtime.guarded(), f"{capacity.cpus:.0f} cores, {capacity.gpus:.0f} GPUs on {capacity.nodes} nodes"
    finally:
        await runtime.close()
