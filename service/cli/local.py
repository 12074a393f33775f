"""What a data directory holds on this machine: its settings, storage, catalogue and pulled base models.

For the commands that work without the service: `files check`, `models pull`, `models list --catalogue`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.cli.output import Ended, ExitCode

if TYPE_CHECKING:
    from service.catalogue import Catalogue, Entry
    from service.settings import Settings
    from trainers.spec import BaseModelRef
    from trainers.storage import Storage


@dataclass(frozen=True)
class Local:
    """The parts of an embedded stack that need no running service."""

    settings: Settings

    @classmethod
    def of(cls, data_dir: Path | None, **given: Any) -> Local:
        """Those of `data_dir`, or of the one that the environment names; settings `given` as None are left to the environment.

        Raises Ended for settings that can't be read.
        """
        from pydantic import ValidationError

        from service.settings import Settings

        chosen: dict[str, Any] = {"data_dir": data_dir, **given}
        try:
            return cls(Settings(**{name: value for name, value in chosen.items() if value is not None}))
        except ValidationError as error:
            first = error.errors()[0]
            name = "TUNESMITH_" + "_".join(str(part) for part in first["loc"]).upper()
            raise Ended(ExitCode.USAGE, f"{name}: {first['msg']}") from None

    @cached_property
    def storage(self) -> Storage:
        """Where the bytes lie."""
        from trainers.storage import open_storage

        return open_storage(self.settings.storage)

    @cached_property
    def catalogue(self) -> Catalogue:
        """The base models there are."""
        from service.catalogue import Catalogue, CatalogueError

        try:
            return Catalogue.load(self.settings)
        except CatalogueError as error:
            raise Ended(ExitCode.USAGE, str(error)) from None

    def scratch(self) -> Path:
        """Where files lie meanwhile: on the data directory's disk, which has room for models."""
        path = self.settings.data_dir.absolute() / "scratch"
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path

    def installed(self) -> dict[str, BaseModelRef]:
        """Base models that have been pulled, by id."""
        refs = [self.catalogue.installed(self.storage, entry) for entry in self.catalogue.entries()]
        return {ref.id: ref for ref in refs if ref is not None}

    def entry(self, model: str) -> Entry:
        """The catalogue's entry. Raises Ended that names those there are."""
        entry = self.catalogue.find(model)
        if entry is None:
            known = sorted(self.catalogue.ids())
            close = difflib.get_close_matches(model, known, n=1)
            hint = f"Did you mean '{close[0]}'?" if close else f"It has: {', '.join(known)}."
            raise Ended(ExitCode.NOT_FOUND, f"the model '{model}' is not in the catalogue", hint)
        return entry

    def model_dir(self, model: str | None) -> Path:
        """Directory of a pulled base model; of the only one when none is named. Raises Ended."""
        from trainers.base_model import fetch_base

        return fetch_base(self._ref(model), self.storage, self.settings.data_dir.absolute() / "cache")

    def _ref(self, model: str | None) -> BaseModelRef:
        if model is not None:
            ref = self.catalogue.installed(self.storage, self.entry(model))
            if ref is None:
                next_step = f"Pull it with `tunesmith models pull {model}`."
                raise Ended(ExitCode.NOT_FOUND, f"the model '{model}' has not been pulled into {self.settings.data_dir}", next_step)
            return ref
        refs = self.installed()
        if len(refs) == 1:
            return next(iter(refs.values()))
        if refs:
            raise Ended(ExitCode.USAGE, "there is more than one base model", f"Name one with --model: {', '.join(sorted(refs))}.")
        next_step = "`tunesmith models list --catalogue` shows what there is to pull."
        raise Ended(ExitCode.NOT_FOUND, f"no base model has been pulled into {self.settings.data_dir}", next_step)
