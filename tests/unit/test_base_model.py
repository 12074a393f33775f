"""How a worker gets a base model's files: in place or copied once, and never damaged ones."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.distant_store import DistantStore
from tests.safetensors_maker import write_model
from trainers import manifest
from trainers.base_model import base_prefix, fetch_base
from trainers.manifest import ManifestBroken
from trainers.spec import BaseModelRef
from trainers.storage import Storage, open_storage

REF = BaseModelRef(id="m", revision="1", prefix=base_prefix("m", "1"), licence="mit")
WEIGHTS = f"{REF.prefix}/model.safetensors"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture
def local(tmp_path: Path, model: Path) -> Storage:
    storage = open_storage((tmp_path / "objects").as_uri())
    manifest.write(storage, REF.prefix, model, {})
    return storage


@pytest.fixture
def distant(tmp_path: Path, model: Path) -> DistantStore:
    storage = DistantStore(tmp_path / "distant")
    manifest.write(storage, REF.prefix, model, {})
    return storage


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != manifest.MANIFEST}


def flip(path: Path) -> None:
    """One bit of the file, its size and time of change kept as a failing disk would."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def test_a_local_store_is_read_in_place(tmp_path: Path, local: Storage, model: Path) -> None:
    directory = fetch_base(REF, local, tmp_path / "cache")
    assert directory == local.local_path(REF.prefix)
    assert contents(directory) == contents(model)


def test_a_model_that_was_not_pulled(tmp_path: Path) -> None:
    with pytest.raises(ManifestBroken, match="base/m/1 has no manifest"):
        fetch_base(REF, open_storage((tmp_path / "objects").as_uri()), tmp_path / "cache")


@pytest.mark.parametrize("hashed_before", [False, True])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, local: Storage, hashed_before: bool) -> None:
    if hashed_before:
        fetch_base(REF, local, tmp_path / "cache")
    path = local.local_path(WEIGHTS)
    assert path is not None
    flip(path)
    with pytest.raises(ManifestBroken, match=rf"^{WEIGHTS} is not what the manifest says\. `tunesmith models pull m`"):
        fetch_base(REF, local, tmp_path / "cache")


def test_a_missing_file_is_named(tmp_path: Path, local: Storage) -> None:
    local.delete(WEIGHTS)
    with pytest.raises(ManifestBroken, match=rf"^{WEIGHTS} is missing"):
        fetch_base(REF, local, tmp_path / "cache")


@pytest.mark.parametrize("name", ["adapter_config.json", "modeling_m.py", "deeper/model.safetensors"])
def test_a_file_that_is_not_listed_is_refused(tmp_path: Path, local: Storage, name: str) -> None:
    local.put(f"{REF.prefix}/{name}", b"{}")
    with pytest.raises(ManifestBroken, match=rf"{name} is not listed"):
        fetch_base(REF, local, tmp_path / "cache")


def test_files_are_hashed_once(tmp_path: Path, local: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    real = manifest.sha256_file

    def counting(path: Path) -> str:
        hashed.append(path)
        return real(path)

    monkeypatch.setattr(manifest, "sha256_file", counting)
    fetch_base(REF, local, tmp_path / "cache")
    first = len(hashed)
    fetch_base(REF, local, tmp_path / "cache")
    assert first == len(manifest.read(local, REF.prefix).files) == len(hashed)


def test_a_distant_store_is_copied_once(tmp_path: Path, distant: DistantStore, model: Path) -> None:
    directory = fetch_base(REF, distant, tmp_path / "cache")
    assert directory == tmp_path / "cache" / REF.prefix
    assert contents(directory) == contents(model)
    files = distant.calls["get_file"]
    assert fetch_base(REF, distant, tmp_path / "cache") == directory
    assert distant.calls["get_file"] == files == len(contents(model))


def test_a_damaged_object_is_refused_by_name_and_leaves_nothing(tmp_path: Path, distant: DistantStore) -> None:
    flip(distant.directory / WEIGHTS)
    with pytest.raises(ManifestBroken, match=f"{WEIGHTS} is not what the manifest says"):
        fetch_base(REF, distant, tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_bytes_damaged_on_their_way_are_fetched_again(tmp_path: Path, distant: DistantStore, model: Path) -> None:
    def once(key: str, path: Path) -> None:
        if key == WEIGHTS:
            flip(path)
            distant.on_get_file = lambda key, path: None

    distant.on_get_file = once
    assert contents(fetch_base(REF, distant, tmp_path / "cache")) == contents(model)


def test_a_damaged_copy_is_replaced(tmp_path: Path, distant: DistantStore, model: Path) -> None:
    directory = fetch_base(REF, distant, tmp_path / "cache")
    flip(directory / "model.safetensors")
    (directory / "extra.json").write_text("{}")
    assert contents(fetch_base(REF, distant, tmp_path / "cache")) == contents(model)


def test_what_a_killed_copy_left_is_removed(tmp_path: Path, distant: DistantStore) -> None:
    left = tmp_path / "cache" / "base/m/.1-killed"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    fetch_base(REF, distant, tmp_path / "cache")
    assert not left.exists()


def test_one_of_many_callers_copies(tmp_path: Path, distant: DistantStore, model: Path) -> None:
    found: list[dict[str, bytes]] = []
    callers = [threading.Thread(target=lambda: found.append(contents(fetch_base(REF, distant, tmp_path / "cache")))) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert found == [contents(model)] * 8
    assert distant.calls["get_file"] == len(contents(model))


def test_nothing_here_needs_torch() -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'ray', 'peft', 'deepspeed', 'gguf', 'safetensors']))"
    modules = "trainers.base_model, trainers.model_files, service.catalogue, service.pull"
    subprocess.run([sys.executable, "-c", f"{blocked}; import {modules}"], check=True)
