"""How far a move has come: a JSON file beside what was downloaded, written whole after every step.

Knows ids and sizes, and no service. Called by migrate.py and migrate_create.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from service.cli.output import Ended, ExitCode, Row

NAME = "migration.json"
Kind = str
"""files or jobs."""


class Ledger:
    """What has been downloaded from a source, and what became of it at each service."""

    def __init__(self, directory: Path, told: dict[str, Any]) -> None:
        self.directory = directory
        self._told = told

    @classmethod
    def of(cls, directory: Path, source: str) -> Ledger:
        """The ledger in `directory`, or a new one. Raises Ended when it can't be read, or tells of another source."""
        path = directory / NAME
        told: Any = {"source": source, "files": {}, "here": {}}
        if path.exists():
            try:
                told = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                told = None
        if not isinstance(told, dict) or not {"source", "files", "here"} <= cast("dict[str, Any]", told).keys():
            raise Ended(ExitCode.FAILED, f"{path} is damaged", "Move it away: files that were downloaded are found again, and jobs too.")
        if told["source"] != source:
            raise Ended(ExitCode.USAGE, f"{directory} holds a move from {told['source']}", "Name another directory with --to.")
        return cls(directory, cast("dict[str, Any]", told))

    def kept(self, file_id: str) -> Row | None:
        """A file that was downloaded and still lies there, whole."""
        row: Row | None = self._told["files"].get(file_id)
        return row if row is not None and is_whole(self.directory / row["path"], row["bytes"]) else None

    def downloaded(self, file_id: str, filename: str, count: int, path: Path) -> None:
        """Note a file that lies at `path`, whole."""
        row = {"filename": filename, "bytes": count, "path": str(path.relative_to(self.directory))}
        if self._told["files"].get(file_id) != row:
            self._told["files"][file_id] = row
            self._write()

    def here(self, service: str, kind: Kind, source_id: str) -> str | None:
        """What a file or a job of the source is called at this service."""
        return self._told["here"].get(service, {}).get(kind, {}).get(source_id)

    def made(self, service: str, kind: Kind, source_id: str, here: str) -> None:
        """Note what it is called there."""
        self._told["here"].setdefault(service, {}).setdefault(kind, {})[source_id] = here
        self._write()

    def _write(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = self.directory / f"{NAME}.partial"
        partial.write_text(json.dumps(self._told, indent=2) + "\n", encoding="utf-8")
        partial.replace(self.directory / NAME)


def is_whole(path: Path, count: int) -> bool:
    """Whether a file of that many bytes lies there."""
    return path.is_file() and path.stat().st_size == count
