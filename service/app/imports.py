"""Files that the service fetches by itself, from where a caller says they lie."""

from __future__ import annotations

from service.app.context import require
from service.app.files import FileUses
from service.errors import invalid
from service.filenames import clean_filename
from service.imports import fetch
from service.records import Caller, File
from service.spool import spool_file


class ImportUses(FileUses):
    """What a caller can have fetched."""

    async def import_file(self, caller: Caller, *, source: str, purpose: str, filename: str | None, sha256: str | None) -> File:
        """Fetch `source`, https://… or s3://bucket/key, into a file; it is there when this returns.

        Raises INVALID_REQUEST for a source that is not allowed or does not answer, and for bytes without the `sha256` (hex) asked for.
        """
        require(caller, "write")
        with spool_file(self.settings.spool_dir, 0) as (path, file):
            found = await fetch(source, file, self.settings)
            if sha256 is not None and sha256.lower() != found:
                raise invalid(f"The source's sha256 is {found}, not the one asked for.", "sha256", "sha256_mismatch")
            return await self.create_file(caller, path=path, filename=filename or _last_part(source), purpose=purpose)


def _last_part(source: str) -> str:
    return clean_filename(source.partition("?")[0].partition("#")[0])
