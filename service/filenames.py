"""A client's name for a file, as data. It names nothing here: bytes lie under ids of our own.

Called by the transports and by `app.uploads`.
"""

from __future__ import annotations

import re
import unicodedata

MAX_NAME_LENGTH = 255


def clean_filename(name: str | None) -> str:
    """Without directories, without control, format or bidi characters, 255 characters at most; "file" when nothing is left."""
    last = re.split(r"[/\\]", name or "")[-1]
    clean = printable(last).strip()[:MAX_NAME_LENGTH]
    return clean if clean.strip(".") else "file"


def printable(text: str) -> str:
    """`text` without characters of Unicode's classes C (control, format, surrogate, private) and Zl, Zp."""
    return "".join(char for char in text if unicodedata.category(char)[0] != "C" and unicodedata.category(char) not in ("Zl", "Zp"))
