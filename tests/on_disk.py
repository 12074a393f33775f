"""A directory that lies on a disk, for what refuses one that is memory: pytest's own where it will do."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainers.mapped import IN_MEMORY, file_system

DISKS = (Path(tempfile.gettempdir()), Path("/var/tmp"), Path(__file__).parent)


@contextmanager
def directory_on_disk() -> Iterator[Path]:
    """Empty, and gone when the block ends."""
    disk = next((place for place in DISKS if place.is_dir() and file_system(place) not in IN_MEMORY), None)
    assert disk is not None, f"none of {DISKS} lies on a disk; set TMPDIR to a directory that does"
    with tempfile.TemporaryDirectory(dir=disk, prefix="tunesmith-test-") as directory:
        yield Path(directory)
