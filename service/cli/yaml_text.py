"""YAML as people write it on the command line and in job files. Knows no job; jobfile.py calls it."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any, cast

import yaml

from service.cli.output import Ended, ExitCode


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: 2e-4 is a number, and a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key '{name}' stands twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


# The resolver of YAML 1.1 takes 2e-4, which has no dot, for a word.
cast("Any", _Loader).add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+"), list("-+0123456789"))


def load(text: str, origin: str) -> object:
    """The value of a YAML text. Raises Ended that names `origin` and the line."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise Ended(ExitCode.USAGE, f"{origin}{where}: {error.problem or 'this is not YAML'}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise Ended(ExitCode.USAGE, f"{origin} is not YAML: {str(error).splitlines()[0]}") from None
