"""What a file is, by its first bytes; what can't be read is refused by the same. Called by `formats.source`."""

from __future__ import annotations

from typing import Literal, cast

from service.formats.csv_table import BOM, has_header
from service.formats.packed import PARQUET, packing_of
from service.formats.rows import Unreadable
from trainers.registry import Fault

Format = Literal["jsonl", "json", "csv", "parquet"]
NAMES: dict[str, str] = {"jsonl": "JSON Lines", "json": "a JSON array", "csv": "CSV", "parquet": "Parquet"}
_MAGIC = {b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x04\x22\x4d\x18": "lz4", b"7z\xbc\xaf": "7z"}
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_HEAD = 4096
_READ = "What can be read is JSON Lines, a JSON array, CSV and Parquet, each also packed by gzip or zstd."


def detect(head: bytes, asked: str = "auto") -> Format:
    """The format of the (unpacked) content that begins with `head`.

    Raises Unreadable for what is none, and for what is certainly another than the one `asked` for.
    """
    if not head.strip():
        return "jsonl"
    if head.startswith(PARQUET):
        found: Format | None = "parquet"
    else:
        _refuse_no_text(head[:_HEAD])
        found = _by_bracket(head)
    if asked == "auto":
        return found or ("csv" if has_header(head.partition(b"\n")[0]) else "jsonl")
    expected = {asked, None} if asked in ("jsonl", "csv") else {asked}
    if found not in expected:
        what = NAMES[found] if found else "other text"
        message = f"tunesmith.data.format is {asked}, but the file is {what}"
        raise Unreadable(Fault("", "format_mismatch", message, 'Leave the format "auto", or name the one that it has.'), 1)
    return cast("Format", asked)


def _by_bracket(head: bytes) -> Format | None:
    first = head.removeprefix(BOM).lstrip()[:1]
    if first == b"[" and head.startswith(BOM):
        hint = "Save the file as UTF-8 without a byte order mark."
        raise Unreadable(Fault("", "byte_order_mark", "the file begins with a byte order mark", hint), 1)
    return "json" if first == b"[" else "jsonl" if first == b"{" else None


def _refuse_no_text(head: bytes) -> None:
    packed = packing_of(head) or next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    if packed in ("gzip", "zstd"):
        raise Unreadable(Fault("", "compressed", f"the file is packed twice ({packed})", "Unpack it once."), 1)
    if packed:
        hint = "Unpack it, or pack it by gzip or zstd; save a spreadsheet as CSV."
        raise Unreadable(Fault("", "compressed", f"the file is compressed ({packed})", hint), 1)
    if head.startswith(_UTF16) or _looks_utf16(head):
        raise Unreadable(Fault("", "bad_encoding", "the file is UTF-16", "Save it as UTF-8 without a byte order mark."), 1)
    if b"\0" in head:
        raise Unreadable(Fault("", "binary", "the file is binary, not text", _READ), 1)


def _looks_utf16(head: bytes) -> bool:
    """UTF-16 without a byte order mark: text whose every other byte is NUL."""
    even, odd = head[0::2], head[1::2]
    return len(head) >= 4 and (even.count(0) > 0.4 * len(head) > 4 * odd.count(0) or odd.count(0) > 0.4 * len(head) > 4 * even.count(0))
