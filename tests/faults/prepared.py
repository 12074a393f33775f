"""What every site begins with: the tiny model pulled and a file's data check done, so that a job is on its way at once."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.fake_run import until
from tests.faults.posting import ROWS
from tests.faults.process import Site
from tests.gateway import running_gateway
from tests.tiny_chat import write_rows


@dataclass(frozen=True)
class Prepared:
    """An object store with the model and the tokenised rows, and the catalogue that names the model."""

    objects: Path
    catalogue: Path

    def site(self, directory: Path, database_url: str | None, **settings: str) -> Site:
        """A site with a copy of it below `directory`."""
        shutil.copytree(self.objects, directory / "objects")
        (directory / "runs").mkdir()
        return Site(directory, database_url, (directory / "objects").as_uri(), self.catalogue, settings)


def prepare(directory: Path) -> Prepared:
    """Make it, with a gateway in this process."""
    with running_gateway(directory) as gateway:
        client = gateway.client()
        file = client.files.create(file=write_rows(directory / "rows.jsonl", ROWS), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id)
        until("the data check", lambda: client.fine_tuning.jobs.retrieve(job.id).status not in ("validating_files", "failed"))
    objects = directory / "data" / "objects"
    for name in ("files", "runs"):
        shutil.rmtree(objects / name, ignore_errors=True)
    return Prepared(objects, directory / "catalogue.yaml")
