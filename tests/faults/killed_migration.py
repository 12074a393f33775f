"""Migrates a database, and kills itself at the nth statement: `python -m tests.faults.killed_migration URL N`, several of each."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

import sqlalchemy as sa

from service.store import Store


def migrate(url: str, last: int) -> None:
    """As a gateway does when it starts, until statement `last` is about to be sent."""
    count = 0

    def counted(connection: sa.Connection, cursor: Any, statement: str, *_: Any) -> None:
        nonlocal count
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)

    sa.event.listen(sa.Engine, "before_cursor_execute", counted)
    asyncio.run(Store(url).migrate())


def main(arguments: list[str]) -> int:
    """One child for each pair; the number of those that were killed."""
    killed = 0
    for url, last in zip(arguments[::2], arguments[1::2], strict=True):
        child = os.fork()  # nothing is open yet and no thread runs, and each child would take a second to start
        if child == 0:
            migrate(url, int(last))
            os._exit(0)
        killed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    return killed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
