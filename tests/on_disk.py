"""A directory that lies on a disk, for what refuses one that is memory: pytest's own where it will do."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trainers.mapped import IN_MEMORY, file_system

DISKS = (Path(tempfile.gettempdir()), Path("/var/tmp"), Path(__file__).parent)


@contextmanager
def directory_on_disk() -> Iterator[Path]:
    """Empty, and gone when the block ends. A test on a machine without a disk is skipped."""
    disk = next((place for place in DISKS if place.is_dir() and file_system(place) not in IN_MEMORY), None)
    if disk is None:
        pytest.skip("no directory here lies on a disk")
    with tempfile.TemporaryDirectory(dir=disk, prefix="tunesmith-test-") as directory:
        yield Path(directory)
