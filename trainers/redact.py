"""Takes secrets out of text before it is kept: the one place that knows what a secret looks like.

Used by `capture` for every line of a run's log, by `worker` for what it reports, and by the service for what it reads
from Ray. Free of torch and of the service. Works on whole lines: half a secret can't be recognised.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping

HIDDEN = "[redacted]"
SHORTEST = 8
"""Characters from which on the value of a variable with a telling name is taken for a secret; "token" or "false" is none."""
Redact = Callable[[str], str]
_TELLING_NAME = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|PRIVATE|API_?KEY|ACCESS_?KEY|AUTH", re.I)
_NOT_ITSELF = re.compile(r"_(PATH|FILE|DIR|MODE|URL|URI|SOCK)$", re.I)
"""Such a variable says where a secret is, not what it is."""
_FORMS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.I), rf"\1 {HIDDEN}"),
    (re.compile(r"\bts_[0-9a-f]{6,}_[A-Za-z0-9-]{8,}(_[0-9a-f]{1,8})?"), HIDDEN),
    (re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b"), HIDDEN),
    (re.compile(r"\b(hf_|sk-|gh[opsu]_|whsec_)[A-Za-z0-9_-]{16,}"), HIDDEN),
    (
        re.compile(r"([?&](X-Amz-(Signature|Credential|Security-Token)|Signature|AWSAccessKeyId|sig|token|key)=)[^&\s\"'<>]+", re.I),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"(://)[^\s/@]+@"), rf"\1{HIDDEN}@"),
    (
        re.compile(
            r"\b(password|passwd|(?:[a-z]+_)*secret(?:_access_key)?|api[_-]?key|(?:access|auth|session)[_-]?token)"
            r"([\"']?\s*[=:]\s*[\"']?)[^\s\"',;&]+",
            re.I,
        ),
        rf"\1\2{HIDDEN}",
    ),
)


def redactor(environment: Mapping[str, str] | None = None, secrets: Iterable[str] = ()) -> Redact:
    """What redacts the known forms, the values of secret-looking variables, and `secrets`. The process's environment unless given."""
    environment = os.environ if environment is None else environment
    values = {value for name, value in environment.items() if _TELLING_NAME.search(name) and not _NOT_ITSELF.search(name)}
    known = sorted((value for value in values | set(secrets) if len(value) >= SHORTEST), key=len, reverse=True)
    literal = re.compile("|".join(map(re.escape, known))) if known else None

    def redact(text: str) -> str:
        if literal is not None:
            text = literal.sub(HIDDEN, text)
        for form, instead in _FORMS:
            text = form.sub(instead, text)
        return text

    return redact
