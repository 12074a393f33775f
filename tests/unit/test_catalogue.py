"""The catalogue: what a YAML file may say, how it complains, and how it knows what has been pulled."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.catalogue import SHIPPED, Catalogue, CatalogueError, DirectorySource, Entry, GgufSource, HubSource, WheelSource, read_entries
from service.errors import ErrorCode, TunesmithError
from service.settings import Settings
from tests.safetensors_maker import write_model
from trainers import manifest
from trainers.model_files import inspect
from trainers.spec import AdapterSpec, BaseModelRef
from trainers.storage import Storage, open_storage

SHA, COMMIT = "a" * 64, "b" * 40
ENTRY = "  - id: mine\n    licence: mit\n    source: {path: /m, revision: '1'}\n"
MODELS = f"models:\n{ENTRY}"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage((tmp_path / "objects").as_uri())


def load(path: Path, text: str) -> Catalogue:
    path.write_text(text)
    return Catalogue.load(Settings(catalogue=path))


def store(storage: Storage, ref: BaseModelRef, directory: Path) -> None:
    manifest.write(storage, ref.prefix, directory, inspect(directory))


def test_the_shipped_models_are_pinned_and_permissive() -> None:
    entries = read_entries(SHIPPED)
    assert "smollm2-135m-instruct" in [entry.id for entry in entries]
    for entry in entries:
        assert entry.licence in ("apache-2.0", "mit")
        assert isinstance(entry.source[0], HubSource)


def test_smollm2_comes_from_a_pinned_wheel_when_the_hub_is_away() -> None:
    entry = Catalogue.load(Settings()).find("smollm2-135m-instruct")
    assert entry is not None
    hub, wheel = entry.source
    assert isinstance(hub, HubSource)
    assert isinstance(wheel, WheelSource)
    assert wheel.revision == f"wheel-{wheel.version}-{wheel.sha256[:12]}"


def test_a_file_of_the_users_extends_the_shipped_one(tmp_path: Path) -> None:
    catalogue = load(tmp_path / "more.yaml", f"models:\n{ENTRY}")
    assert catalogue.ids() == [*Catalogue.load(Settings()).ids(), "mine"]
    assert catalogue.find("mine") is catalogue.entries()[-1]
    assert catalogue.find("nobody") is None


def test_every_kind_of_source_can_be_written(tmp_path: Path) -> None:
    text = f"""
models:
  - id: all
    licence: apache-2.0
    source:
      - {{hub: owner/name, revision: {COMMIT}, sha256: {{model.safetensors: {SHA}}}}}
      - {{path: models/m, revision: '2026-11'}}
      - {{s3: 's3://bucket/models/m', revision: v1}}
      - {{gguf: ~/m.gguf, revision: v1}}
      - {{wheel: some-wheel, version: 1.2.3+cpu, file: pkg/m.gguf, sha256: {SHA}}}
"""
    entry = load(tmp_path / "c.yaml", text).find("all")
    assert entry is not None
    _, path, _, gguf, wheel = entry.source
    assert isinstance(path, DirectorySource)
    assert isinstance(gguf, GgufSource)
    assert path.path == str(tmp_path / "models/m")
    assert gguf.gguf == str(Path("~/m.gguf").expanduser())
    assert [source.revision for source in entry.source] == [COMMIT, "2026-11", "v1", "v1", f"wheel-1.2.3_cpu-{SHA[:12]}"]
    assert entry.ref(wheel).prefix == f"base/all/wheel-1.2.3_cpu-{SHA[:12]}"


def test_another_template_is_another_revision(tmp_path: Path) -> None:
    plain = load(tmp_path / "a.yaml", f"models:\n{ENTRY}").find("mine")
    other = load(tmp_path / "b.yaml", f"models:\n{ENTRY}    chat_template: '{{{{ messages }}}}'\n").find("mine")
    assert plain is not None
    assert other is not None
    assert plain.revision == "1"
    assert other.revision.startswith("1-t")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("models: [", "not YAML"),
        ("models: !!python/object:os.system {}", "not YAML"),
        ("models: {}", "a list of models"),
        ("- id: x", "expected `models:`"),
        ("", "expected `models:`"),
        (f"models:\n{ENTRY}extra: 1\n", "and nothing else"),
        ("models: [3]", "model 1: expected id, licence and source"),
        (f"models:\n{ENTRY}{ENTRY}", "the id 'mine' is taken already"),
        (f"models:\n{ENTRY}{ENTRY.replace('mine', 'Mine')}", "the id 'Mine' is taken already"),
        (f"models:\n{ENTRY.replace('mine', 'smollm2-135m-instruct')}", "the id 'smollm2-135m-instruct' is taken already"),
        (f"models:\n{ENTRY}    licence: mit\n", "the key 'licence' stands there twice"),
        (f"models:\n{ENTRY.replace('licence', 'license')}", "model 1 ('mine'): unknown field 'license'; did you mean 'licence'?"),
        ("models:\n  - id: mine\n    licence: mit\n", "model 1 ('mine'): 'source' is missing"),
        ("models:\n  - id: mine\n    licence: mit\n    source: []\n", "'source'"),
        (f"models:\n{ENTRY.replace('mine', '../up')}", "'id' can't be '../up'"),
        (f"models:\n{ENTRY.replace('mine', 'a/b')}", "'id' can't be 'a/b'"),
        ("models:\n  - licence: mit\n    source: {path: /m, revision: v}\n", "model 1: 'id' is missing"),
        (MODELS.replace("'1'", "1"), "'revision' must be text; put it in quotes: '1'"),
        (MODELS.replace("'1'", "../x"), "'revision' can't be '../x'"),
        (MODELS.replace("revision", "revison"), "unknown field 'revison'; did you mean 'revision'?"),
        (MODELS.replace("path: /m", "url: http://x"), "exactly one of hub, path, s3, gguf, wheel, found none"),
        (MODELS.replace("path: /m", "path: /m, hub: a/b"), "exactly one of hub, path, s3, gguf, wheel, found path, hub"),
        (MODELS.replace("path: /m", "hub: owner/name"), "'revision' can't be '1'"),
        (MODELS.replace("path: /m", "hub: ../name"), "'hub' can't be"),
        (MODELS.replace("{path: /m, revision: '1'}", "{wheel: -r, version: 1.0.0, file: a.gguf, sha256: x}"), "'wheel'"),
    ],
)
def test_a_faulty_file_is_refused_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "more.yaml"
    with pytest.raises(CatalogueError) as caught:
        load(path, text)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert says in message
    assert "\n" not in message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match=r"nowhere\.yaml: No such file.*TUNESMITH_CATALOGUE"):
        Catalogue.load(Settings(catalogue=tmp_path / "nowhere.yaml"))


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return load(tmp_path / "c.yaml", f"models:\n{ENTRY}")


@pytest.fixture
def entry(catalogue: Catalogue) -> Entry:
    found = catalogue.find("mine")
    assert found is not None
    return found


def test_a_model_counts_as_installed_while_its_manifest_is_there(
    tmp_path: Path, catalogue: Catalogue, entry: Entry, storage: Storage
) -> None:
    assert catalogue.installed(storage, entry) is None
    ref = entry.ref(entry.source[0])
    store(open_storage((tmp_path / "objects").as_uri()), ref, write_model(tmp_path / "m"))  # as another process would
    assert catalogue.installed(storage, entry) == ref == BaseModelRef(id="mine", revision="1", prefix="base/mine/1", licence="mit")
    assert catalogue.installed(storage, entry) == ref
    storage.delete(f"{ref.prefix}/manifest.json")
    assert catalogue.installed(storage, entry) is None


def test_a_damaged_manifest_is_none(catalogue: Catalogue, entry: Entry, storage: Storage) -> None:
    storage.put("base/mine/1/manifest.json", b"{")
    assert catalogue.installed(storage, entry) is None


def test_the_preferred_source_counts_when_both_were_pulled(tmp_path: Path, catalogue: Catalogue, entry: Entry, storage: Storage) -> None:
    entry = entry.model_copy(update={"source": tuple(DirectorySource(path="/m", revision=name) for name in ("first", "second"))})
    first, second = (entry.ref(source) for source in entry.source)
    model = write_model(tmp_path / "m")
    store(storage, second, model)
    assert catalogue.installed(storage, entry) == second
    store(storage, first, model)
    assert catalogue.installed(storage, entry) == first


@pytest.mark.parametrize("names", [["q_proj"], ["self_attn.q_proj", "down_proj"], ["model.layers.0.mlp.down_proj"]])
def test_target_modules_that_are_there(tmp_path: Path, catalogue: Catalogue, entry: Entry, storage: Storage, names: list[str]) -> None:
    ref = entry.ref(entry.source[0])
    store(storage, ref, write_model(tmp_path / "m"))
    catalogue.check_targets(storage, ref, AdapterSpec(target_modules=names))
    catalogue.check_targets(storage, ref, AdapterSpec())


@pytest.mark.parametrize("name", ["qproj", "proj", "q_proj.weight", "embed_tokens", "lm_head", ".*", "(a+)+$", "layers", "model.norm"])
def test_target_modules_that_name_nothing_are_refused(
    tmp_path: Path, catalogue: Catalogue, entry: Entry, storage: Storage, name: str
) -> None:
    ref = entry.ref(entry.source[0])
    store(storage, ref, write_model(tmp_path / "m"))
    with pytest.raises(TunesmithError) as caught:
        catalogue.check_targets(storage, ref, AdapterSpec(target_modules=["q_proj", name]))
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert caught.value.param == "tunesmith.adapter.target_modules"
    assert f"'{name}'" in caught.value.message
    assert "down_proj, q_proj" in caught.value.message
