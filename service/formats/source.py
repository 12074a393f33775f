"""A file that users bring, opened: which format it has, its rows, and the hash of its bytes.

The only part that knows all formats. Called by the data check (datasets.py), in its limited process.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from io import BufferedReader
from pathlib import Path
from typing import IO

from service.formats.csv_table import CsvTable
from service.formats.detect import Format, detect
from service.formats.json_array import JsonArray
from service.formats.packed import BUFFER, Growth, Hashed, Unpacked, packing_of
from service.formats.parquet_table import ParquetTable
from service.formats.rows import Rows
from service.jsonl import JsonLines


class Source:
    """One file. Use it as a context."""

    def __init__(self, path: Path, growth: Growth, scratch: Path | None = None) -> None:
        """`scratch` is where a Parquet file that is packed again is unpacked to. Raises OSError."""
        self._path, self._growth, self._scratch = path, growth, scratch
        self._size = path.stat().st_size
        self._stack = ExitStack()
        self._hashed = Hashed(self._stack.enter_context(path.open("rb", buffering=0)))
        self._rows: Rows | None = None
        self.format: Format | None = None
        """Known once `rows` was called."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def bytes_read(self) -> int:
        """How far the file has been read, in bytes."""
        share = self._rows.share if self._rows else None
        return self._hashed.bytes_read if share is None else int(share * self._size)

    def sha256(self) -> str:
        """Hash of the whole file; reads what no one has read yet."""
        return self._hashed.sha256()

    def rows(self, asked: str = "auto", wanted: Sequence[str] | None = None) -> Rows:
        """The file's rows, read as the format `asked` for. Once. Raises Unreadable.

        `wanted` names the columns that matter, where a format can leave the others out.
        """
        stream: BufferedReader = BufferedReader(self._hashed, BUFFER)
        packing = packing_of(stream.peek(4))
        if packing:
            stream = BufferedReader(Unpacked(stream, packing, self._growth, self._size), BUFFER)
        self.format = detect(stream.peek(1), asked)
        match self.format:
            case "jsonl":
                self._rows = JsonLines(stream)
            case "json":
                self._rows = JsonArray(stream)
            case "csv":
                self._rows = CsvTable(stream)
            case "parquet":
                file = self._unpacked(stream) if packing else self._stack.enter_context(self._path.open("rb"))
                self._rows = ParquetTable(file, wanted, self._growth, self._size)
        return self._rows

    def _unpacked(self, stream: BufferedReader) -> IO[bytes]:
        """The stream's content as a file without a name, for Parquet is read from its end."""
        file = self._stack.enter_context(tempfile.TemporaryFile(dir=self._scratch))  # noqa: SIM115  (closed in __exit__)
        shutil.copyfileobj(stream, file, BUFFER)
        file.flush()
        return file
