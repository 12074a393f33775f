"""What ends a command is told in one line: what happened, what to do next, and an exit code; never a traceback.

The class of the root command. Knows the errors of every layer below by their name, imports them only
when one has come.
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from service.cli.output import Ended, ExitCode, complain
from service.errors import ErrorCode, TunesmithError
from trainers.storage import NoSuchObject, StorageDenied, StorageError, StorageUnavailable

CODES = {
    ErrorCode.NOT_FOUND: ExitCode.NOT_FOUND,
    ErrorCode.UNAUTHENTICATED: ExitCode.DENIED,
    ErrorCode.PERMISSION_DENIED: ExitCode.DENIED,
    ErrorCode.UNAVAILABLE: ExitCode.AWAY,
    ErrorCode.INTERNAL: ExitCode.FAILED,
    ErrorCode.STORAGE_FULL: ExitCode.FAILED,
}
"""Exit codes of errors of our own; the others are wrong use."""
STORAGE: dict[type[StorageError], ExitCode] = {
    NoSuchObject: ExitCode.NOT_FOUND,
    StorageDenied: ExitCode.DENIED,
    StorageUnavailable: ExitCode.AWAY,
}


class OneLineErrors(TyperGroup):
    """A group of commands whose errors are lines."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except Ended as ended:
            raise _told(ended) from None
        except TunesmithError as error:
            raise _told(Ended(CODES.get(error.code, ExitCode.USAGE), error.message)) from None
        except StorageError as error:
            raise _told(Ended(STORAGE.get(type(error), ExitCode.FAILED), f"the object store: {error}")) from None
        except BrokenPipeError:
            raise
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise _told(Ended(ExitCode.FAILED, f"{where}{error.strerror or error}")) from None
        except KeyboardInterrupt:
            raise _told(Ended(ExitCode.INTERRUPTED, "interrupted")) from None
        except Exception as error:
            if ctx.params.get("debug") or _is_typers_own(error):
                raise
            text = f"unexpected {type(error).__name__}: {error}"
            raise _told(Ended(ExitCode.FAILED, text, "`tunesmith --debug …` shows where.")) from None


def _told(ended: Ended) -> typer.Exit:
    complain(ended)
    return typer.Exit(ended.code)


def _is_typers_own(error: Exception) -> bool:
    return isinstance(error, (typer.Exit, typer.Abort, typer.TyperException))
