"""What a job is asked for: a YAML or JSON file in the wire's form, with the command line's options over it.

Checked here as the service checks it, before anything is uploaded; knows no service. Used by create.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from service.cli.output import Ended, ExitCode

FILES = ("training_file", "validation_file")
FILE_ID = re.compile(r"file-[A-Za-z0-9]+")
Body = dict[str, Any]


def read(path: Path) -> Body:
    """A job file. Paths of files in it are taken from its own directory. Raises Ended."""
    try:
        value = parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        why = (isinstance(error, OSError) and error.strerror) or "it is not UTF-8 text"
        raise Ended(ExitCode.USAGE, f"{path} can't be read: {why}") from None
    if not isinstance(value, dict):
        raise Ended(ExitCode.USAGE, f"{path} holds no job", "It is a mapping: model: …, training_file: …")
    body = cast("Body", value)
    for name in FILES:
        given = body.get(name)
        if isinstance(given, str) and not is_id(given):
            body[name] = str(path.parent / Path(given).expanduser())
    return body


def parse(text: str, origin: str) -> object:
    """The value of a YAML text. Raises Ended that names `origin` and the line."""
    from service.cli.yaml_text import load

    return load(text, origin)


def put(body: Body, dotted: str, value: object) -> None:
    """Set the field at a dotted path, making what is above it. Raises Ended when something else stands in the way."""
    *above, last = dotted.split(".")
    at = body
    for name in above:
        below: object = at.setdefault(name, {})
        if not isinstance(below, dict):
            raise Ended(ExitCode.USAGE, f"'{dotted}' can't be set: '{name}' is not an object")
        at = cast("Body", below)
    at[last] = value


def pairs(given: Sequence[str], option: str) -> dict[str, str]:
    """`KEY=VALUE` words as a mapping. Raises Ended."""
    found: dict[str, str] = {}
    for word in given:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise Ended(ExitCode.USAGE, f"'{word}' is not KEY=VALUE", f"Write {option} key=value.")
        found[key] = value
    return found


def section(body: Body, name: str) -> Body:
    """The object under this name; an empty one when there is none."""
    value = body.get(name)
    return cast("Body", value) if isinstance(value, dict) else {}


def is_id(given: str) -> bool:
    """Whether it is the id of an uploaded file rather than a path."""
    return FILE_ID.fullmatch(given) is not None


def local_paths(body: Mapping[str, Any]) -> dict[str, Path]:
    """The files that are still to be uploaded, by field."""
    return {name: Path(body[name]) for name in FILES if isinstance(body.get(name), str) and not is_id(body[name])}


def checked(body: Body) -> Any:
    """The request as the service reads it. Raises Ended that names the field and what would do."""
    from service.errors import TunesmithError
    from service.rest import convert, wire
    from service.rest.bodies import validated

    uploaded = body | dict.fromkeys(local_paths(body), "file-local")
    try:
        return convert.job_spec(validated(wire.CreateFineTuningJobRequest, uploaded))
    except TunesmithError as error:
        raise Ended(ExitCode.USAGE, error.message, _flag(error.param)) from None


def _flag(param: str | None) -> str:
    flags = {"model": "Name it with --model.", "training_file": "Name it with --training-file: a path, or the id of an uploaded file."}
    return flags.get(param or "", "")
