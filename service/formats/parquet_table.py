"""The rows of a Parquet file as plain values, a few at a time. Called by `formats.source`.

pyarrow takes memory and a moment, so it is imported when the first Parquet file is opened. What it raises about a file is
a fault of the file; running out of memory is left to the limits of the process (data_process.py).
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, cast

from service.formats.packed import Growth
from service.formats.rows import MAX_ROW_BYTES, Numbered, Unreadable
from service.jsonl import inspect
from trainers.registry import Fault, Row

BATCH_ROWS = 128
MAX_ROW_GROUP_BYTES = 4 * 2**30
MAX_FOOTER_BYTES = 64 * 2**20
"""Of one text and of one list in the footer, as it declares itself."""
_HINT = "Write the file again, for example with pyarrow.parquet.write_table."


class ParquetTable:
    """One row a row. Raises Unreadable at once for a file that is no Parquet.

    `wanted` are the columns that are read, all unless given. `size` is that of the file, and `growth` what its values may become.
    """

    def __init__(self, file: IO[bytes], wanted: Sequence[str] | None, growth: Growth, size: int) -> None:
        self._growth, self._size = growth, size
        self._arrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
        self._arrow.set_cpu_count(1)
        limits = {"thrift_string_size_limit": MAX_FOOTER_BYTES, "thrift_container_size_limit": MAX_FOOTER_BYTES // 16}
        with self._faults():
            self._file: Any = parquet.ParquetFile(file, buffer_size=2**20, pre_buffer=False, **limits)
            self.columns: tuple[str, ...] = tuple(self._file.schema_arrow.names)
            self._rows: int = self._file.metadata.num_rows
        self._check_form()
        self._wanted = [name for name in self.columns if name in wanted] if wanted is not None else None
        self.share = 0.0

    def _check_form(self) -> None:
        if not self.columns:
            raise _broken("it has no columns")
        if len(set(self.columns)) < len(self.columns):
            raise _broken("two of its columns have the same name")
        metadata = self._file.metadata
        largest = max((metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)), default=0)
        if largest > MAX_ROW_GROUP_BYTES:
            message = f"a row group has {largest:,} bytes; at most {MAX_ROW_GROUP_BYTES:,} are allowed"
            raise Unreadable(Fault("", "row_group_too_large", message, "Write the file with smaller row groups, such as 100,000 rows."))

    def __iter__(self) -> Iterator[Numbered]:
        number = became = 0
        for batch in self._batches():
            became += batch.nbytes
            if became > self._growth.limit(self._size):
                raise self._growth.bomb(self._size)
            size = batch.nbytes // max(1, batch.num_rows)
            for value in self._values(batch):
                number += 1
                yield number, value if isinstance(value, Fault) else _row(value, large=batch.nbytes > MAX_ROW_BYTES), size
            self.share = number / max(1, self._rows)

    def _batches(self) -> Iterator[Any]:
        with self._faults():
            yield from self._file.iter_batches(batch_size=BATCH_ROWS, columns=self._wanted, use_threads=False)

    def _values(self, batch: Any) -> list[Any]:
        """The batch's rows as Python values; a fault in place of one that can't be."""
        try:
            return batch.to_pylist(maps_as_pydicts="strict")
        except (ValueError, KeyError, ArithmeticError) as error:
            if batch.num_rows == 1:
                if isinstance(error, UnicodeDecodeError):
                    return [Fault("", "bad_encoding", "a text of the row is not UTF-8", "Write the file with UTF-8 texts.")]
                return [Fault("", "bad_parquet", f"a value of the row can't be read: {_first_line(error)}")]
        return [value for i in range(batch.num_rows) for value in self._values(batch.slice(i, 1))]

    @contextmanager
    def _faults(self) -> Generator[None]:
        """What pyarrow raises about a file's bytes as a fault; a disk's errors, which have a number, go through."""
        try:
            yield
        except (self._arrow.ArrowException, OSError, ValueError, UnicodeError) as error:
            if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno):
                raise
            raise _broken(_first_line(error)) from None


def _row(value: dict[str, Any], *, large: bool) -> Row | Fault:
    """The row without what is null: Parquet has no other way to leave a field out."""
    try:
        row = cast("dict[str, Any]", _plain(value, ""))
    except _NotPlain as error:
        return error.fault
    if large and (length := len(json.dumps(row, ensure_ascii=False))) > MAX_ROW_BYTES:
        return Fault("", "row_too_long", f"the row is {length:,} bytes long; at most {MAX_ROW_BYTES:,} are allowed")
    return inspect(row) or row


class _NotPlain(Exception):
    """A value has no form that JSON has."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


def _plain(value: Any, path: str) -> Any:
    """The value as JSON has values; dates, decimals and the like become text."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            if math.isfinite(value):
                return value
            raise _NotPlain(Fault(path, "bad_number", f"{value} is not a JSON number"))
        case dict():
            items = cast("dict[str, Any]", value).items()
            return {key: _plain(item, f"{path}.{key}" if path else key) for key, item in items if item is not None}
        case list():
            return [_plain(item, f"{path}[{i}]") for i, item in enumerate(cast("list[Any]", value))]
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError:
                raise _NotPlain(Fault(path, "bad_encoding", "the bytes are not UTF-8 text", "Store text as text.")) from None
        case _:
            return str(value)


def _broken(how: str) -> Unreadable:
    return Unreadable(Fault("", "bad_parquet", f"the file is not valid Parquet: {how}", _HINT))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
