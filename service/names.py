"""Keys, ids and names as a client may send them, before they get near a database or a path.

An id that no thing of ours could have is answered like the id of a thing that is not there. Knows no transport: both ask
here, each under its own name for the field.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable

from service.errors import ErrorCode, TunesmithError, invalid, not_found

MAX_KEY_LENGTH = 512
MAX_PAIRS = 16
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_MODEL = re.compile(r"[\x21-\x7e]{1,512}")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def api_key(text: str) -> str:
    """`text`, or UNAUTHENTICATED where it can't be a key."""
    if not 1 <= len(text) <= MAX_KEY_LENGTH or not text.isascii() or not text.isprintable():
        raise TunesmithError(ErrorCode.UNAUTHENTICATED, "This is not an API key.")
    return text


def thing_id(kind: str, text: str, param: str | None = None) -> str:
    """The id of a `kind`, or NOT_FOUND."""
    if not _ID.fullmatch(text):
        raise not_found(kind, short(text), param)
    return text


def model_name(text: str, param: str = "model") -> str:
    """The name of a model, which may hold / and :, or NOT_FOUND."""
    if not _MODEL.fullmatch(text):
        raise not_found("model", short(text), param)
    return text


def artifact_name(text: str) -> str:
    """A relative path without steps upwards, or NOT_FOUND."""
    if not _MODEL.fullmatch(text) or any(part in ("", ".", "..") for part in text.split("/")):
        raise not_found("artifact", short(text), "name")
    return text


def metadata_filter(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Pairs that a job's metadata could hold, or INVALID_REQUEST."""
    found = dict(pairs)
    for key, value in found.items():
        if len(key) > 64 or len(value) > 512 or _CONTROL.search(key + value):
            raise invalid("A metadata key has at most 64 characters, a value at most 512, and neither control characters.", "metadata")
    if len(found) > MAX_PAIRS:
        raise invalid(f"A job has at most {MAX_PAIRS} pairs of metadata.", "metadata")
    return found


def idempotency_key(text: str | None) -> str | None:
    """The client's own key for a request, or INVALID_REQUEST."""
    if text is not None and not (1 <= len(text) <= 255 and text.isascii() and text.isprintable()):
        raise invalid("An Idempotency-Key has 1 to 255 printable ASCII characters.", "Idempotency-Key")
    return text


def cursor(text: str | None) -> str | None:
    """The id of the last item of the page before, or INVALID_REQUEST."""
    if text is not None and not _ID.fullmatch(text):
        raise invalid("'after' must be the id of the last item of the page before.", "after")
    return text


def short(text: str) -> str:
    """A client's text for a message."""
    return text if len(text) <= 80 else text[:77] + "…"


def request_id(sent: str) -> str:
    """The id under which a request is logged: the client's own where it is sane, else a new one."""
    return sent if _REQUEST_ID.fullmatch(sent) else f"req_{uuid.uuid4().hex}"
