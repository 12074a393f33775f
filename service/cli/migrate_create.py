"""Makes jobs of another service again: each file goes up once, each job is created once, however often it is run.

Three things see to that: the ledger, the metadata of the jobs that are there, and an Idempotency-Key that is always the same
for the same job. Called by migrate.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from service.cli.connection import Service
from service.cli.files import upload_file
from service.cli.migrate_ledger import Ledger
from service.cli.migrate_plan import ORIGIN, Move
from service.cli.output import Ended, ExitCode, say

FILES = ("training_file", "validation_file")


def known(service: Service, moves: Sequence[Move], ledger: Ledger) -> dict[str, str]:
    """The jobs here that moves have become before, by their ids at the source."""
    return {move.id: here for move in moves if (here := _known(service, move.id, ledger)) is not None}


def create(service: Service, host: str, move: Move, ledger: Ledger) -> str:
    """Make one job again, which is not there yet; its id. Raises Ended that names the job it was about."""
    try:
        with service.errors():
            uploaded = {name: _uploaded(service, move.request[name], ledger) for name in FILES if name in move.request}
            here = _post(service, host, move, uploaded)
    except Ended as ended:
        raise Ended(ended.code, f"{move.id}: {ended.message}", ended.next_step) from ended
    ledger.made(service.target.base_url, "jobs", move.id, here)
    say(f"created {here} from {move.id}")
    return here


def _known(service: Service, job_id: str, ledger: Ledger) -> str | None:
    """The ledger may be lost, or of a time before another project's key: then the job says itself where it came from."""
    import openai

    noted = ledger.here(service.target.base_url, "jobs", job_id)
    if noted is not None:
        with suppress(openai.NotFoundError):
            return service.client.fine_tuning.jobs.retrieve(noted).id
    found = service.client.fine_tuning.jobs.list(metadata={ORIGIN: job_id}, limit=1).data
    return found[0].id if found else None


def _uploaded(service: Service, file_id: str, ledger: Ledger) -> str:
    """The file here; it goes up unless it did before and is still there."""
    import openai

    noted = ledger.here(service.target.base_url, "files", file_id)
    if noted is not None:
        with suppress(openai.NotFoundError):
            return service.client.files.retrieve(noted).id
    kept = ledger.kept(file_id)
    assert kept is not None, "a move that is offered has its files at hand"
    here: str = upload_file(service, ledger.directory / kept["path"])["id"]
    ledger.made(service.target.base_url, "files", file_id, here)
    return here


def _post(service: Service, host: str, move: Move, uploaded: dict[str, str]) -> str:
    import openai

    make: Callable[..., Any] = service.client.fine_tuning.jobs.create
    try:
        return make(**move.request | uploaded, extra_headers={"Idempotency-Key": submission_key(host, move.id)}).id
    except openai.BadRequestError as error:
        if error.param == "Idempotency-Key":
            told = "it was made here before, of other files or on another model"
            raise Ended(ExitCode.USAGE, told, "`tunesmith jobs list` shows it.") from error
        raise


def submission_key(host: str, job_id: str) -> str:
    """The same for the same job of the same host, on every machine."""
    return "migrate-" + hashlib.sha256(f"{host} {job_id}".encode()).hexdigest()
