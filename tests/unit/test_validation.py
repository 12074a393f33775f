"""The data check of jobs on real storage and a real database: what a job becomes, and what lies in storage afterwards."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from service.jobs import Job, JobSpec, JobStatus, MethodSpec
from service.records import File
from service.settings import Settings
from service.store import Store, StoreUnavailable
from service.validation import Validation
from tests.fake_runtime import FakeRuntime
from tests.tiny_chat import CHATML, chat_row, write_chat_model
from trainers import manifest
from trainers.data import fetch_dataset
from trainers.local_storage import LocalStorage
from trainers.manifest import ManifestBroken
from trainers.spec import BaseModelRef, TrainingSpec, TunesmithSpec
from trainers.storage import Storage, StorageDenied, StorageFull, StorageUnavailable

BASE = BaseModelRef(id="tiny", revision="1", prefix="base/tiny/1", licence="mit")
GOOD = [chat_row(f"hello {i}") for i in range(12)]


class Remote(LocalStorage):
    """The local store without the short cut of reading in place. `flips` of the next copies arrive with a byte changed."""

    flips = 0
    failure: Exception | None = None
    copies = 0

    def local_path(self, key: str) -> Path | None:
        return None

    def get_file(self, key: str, path: Path) -> None:
        if self.failure:
            raise self.failure
        super().get_file(key, path)
        self.copies += 1
        if self.flips:
            self.flips -= 1
            content = bytearray(path.read_bytes())
            content[20] ^= 1
            path.write_bytes(content)


@dataclass
class World:
    store: Store
    storage: LocalStorage
    settings: Settings
    validation: Validation

    async def upload(self, lines: list[Any], name: str = "file-1") -> File:
        body = b"".join(json.dumps(line).encode() + b"\n" if not isinstance(line, bytes) else line + b"\n" for line in lines)
        self.storage.put(f"files/p/{name}", body)
        file = File(name, "p", "rows.jsonl", "fine-tune", len(body), hashlib.sha256(body).hexdigest(), f"files/p/{name}", 0.0)
        async with self.store.begin() as tx:
            await tx.insert_file(file)
        return file

    async def check(self, validation_file: str | None = None, **training: Any) -> tuple[Job, list[str]]:
        spec = JobSpec(
            model="tiny",
            training_file="file-1",
            validation_file=validation_file,
            seed=1,
            method=MethodSpec(type="supervised"),
            tunesmith=TunesmithSpec(training=TrainingSpec(**training)),
        )
        job = Job("ftjob-1", "p", "o", spec, JobStatus.VALIDATING, 1, 0.0, BASE)
        checked, notices = await self.validation.check(job)
        assert list(self.settings.data_dir.glob("scratch/*")) == [], "scratch is empty after every check"
        return checked, [notice.message for notice in notices]

    def datasets(self) -> set[str]:
        return {info.key.split("/")[1] for info in self.storage.list("datasets/")}


async def world_on(storage: LocalStorage, tmp_path: Path) -> AsyncIterator[World]:
    settings = Settings(data_dir=tmp_path / "data", validation_timeout=timedelta(seconds=60))
    store = Store(f"sqlite+aiosqlite:///{tmp_path / 'jobs.db'}")
    await store.migrate()
    manifest.write(storage, BASE.prefix, write_chat_model(tmp_path / "model"), {})
    yield World(store, storage, settings, Validation(store, storage, FakeRuntime(), settings))
    await store.close()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async for made in world_on(LocalStorage(tmp_path / "objects"), tmp_path):
        yield made


@pytest.fixture
async def remote(tmp_path: Path) -> AsyncIterator[World]:
    async for made in world_on(Remote(tmp_path / "objects"), tmp_path):
        yield made


async def test_good_files_make_a_queued_job_with_datasets_and_numbers(world: World, tmp_path: Path) -> None:
    await world.upload(GOOD)
    await world.upload(GOOD[:2], "file-2")
    job, messages = await world.check("file-2")
    assert job.status is JobStatus.QUEUED
    assert messages == [
        "Validating training file: file-1 and validation file: file-2",
        "Files validated, moving job to queued state",
    ]
    assert job.dataset is not None
    assert job.validation is not None
    assert job.resolved is not None
    assert (job.dataset.rows, job.validation.rows, job.resolved.steps) == (12, 2, 6)
    dataset = fetch_dataset(job.dataset, world.storage, tmp_path / "cache")
    assert (len(dataset), dataset.trained_tokens, len(dataset.ids)) == (12, job.dataset.trained_tokens, job.dataset.tokens)


async def test_a_faulty_file_fails_the_job_with_the_report_and_leaves_no_dataset(world: World) -> None:
    await world.upload([*GOOD, b"{", chat_row("<|im_end|>")])
    job, messages = await world.check()
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert (job.error.code, job.error.param, job.error.cause) == ("invalid_training_file", "training_file", "data")
    assert [fault["line"] for fault in job.error.details["report"]["faults"]] == [13, 14]
    assert messages[-1].startswith("The job failed due to an invalid training file: Invalid file format. Line 13")
    assert world.datasets() == set()


async def test_too_few_rows_are_told_in_the_words_of_openai(world: World) -> None:
    await world.upload(GOOD[:7])
    job, _ = await world.check()
    assert job.error is not None
    assert job.error.code == "invalid_n_examples"
    assert job.error.message == "Training file has 7 example(s), but must have at least 10 examples"


async def test_a_faulty_validation_file_is_named(world: World) -> None:
    await world.upload(GOOD)
    await world.upload([b"nonsense"], "file-2")
    job, _ = await world.check("file-2")
    assert job.error is not None
    assert (job.error.code, job.error.param) == ("invalid_validation_file", "validation_file")


async def test_a_validation_file_may_be_small_and_does_not_pass_as_a_training_file_for_that(world: World) -> None:
    await world.upload(GOOD)
    await world.upload(GOOD[:3], "file-2")
    job, _ = await world.check("file-2")
    assert job.status is JobStatus.QUEUED
    async with world.store.begin() as tx:
        await tx.delete_file("p", "file-1")
        await tx.insert_file(replace((await tx.file("p", "file-2")), id="file-3"))  # type: ignore[type-var]
    spec = job.spec.model_copy(update={"training_file": "file-3", "validation_file": None})
    again, _ = await world.validation.check(Job("ftjob-2", "p", "o", spec, JobStatus.VALIDATING, 1, 0.0, BASE))
    assert again.error is not None
    assert again.error.code == "invalid_n_examples"


async def test_the_same_rows_are_read_once_whatever_they_are_for(remote: World) -> None:
    await remote.upload(GOOD)
    first, _ = await remote.check()
    assert isinstance(remote.storage, Remote)
    copies = remote.storage.copies
    again, _ = await remote.check(validation_file="file-1")
    assert remote.storage.copies == copies
    assert first.dataset == again.dataset == again.validation
    assert len(remote.datasets()) == 1


async def test_what_decides_the_bytes_decides_where_they_lie(world: World, tmp_path: Path) -> None:
    await world.upload(GOOD)
    await world.check()
    await world.check(max_length=100)
    await world.check(overlong="drop")
    assert len(world.datasets()) == 3
    manifest.remove(world.storage, BASE.prefix)
    manifest.write(world.storage, BASE.prefix, write_chat_model(tmp_path / "model", " " + CHATML), {})
    job, _ = await world.check()
    assert job.error is None, job.error
    assert len(world.datasets()) == 4


async def test_rows_that_were_cut_are_told(world: World) -> None:
    await world.upload([*GOOD, chat_row("hello", "z" * 100), chat_row("z" * 100)])
    job, messages = await world.check(max_length=64)
    assert job.status is JobStatus.QUEUED
    assert "1 were cut, 1 had no token that carries loss" in messages[1]


async def test_a_deleted_file_fails_the_job(world: World, remote: World) -> None:
    job, _ = await world.check()
    assert job.error is not None
    assert job.error.message == "The file 'file-1' was deleted, or has expired, before it could be read."
    for each in (world, remote):
        await each.upload(GOOD, "file-1") if each is remote else None
        each.storage.delete("files/p/file-1")
        job, _ = await each.check()
        assert job.error is not None
        assert job.error.details["report"]["faults"][0]["rule"] == "file_missing"


async def test_a_damaged_dataset_is_made_again(world: World, tmp_path: Path) -> None:
    await world.upload(GOOD)
    job, _ = await world.check()
    assert job.dataset is not None
    world.storage.put(f"{job.dataset.prefix}/ids.u32", b"cut")
    with pytest.raises(ManifestBroken):
        fetch_dataset(job.dataset, world.storage, tmp_path / "cache")
    world.storage.put(f"{job.dataset.prefix}/manifest.json", b"{")
    again, _ = await world.check()
    assert again.dataset == job.dataset
    assert len(fetch_dataset(job.dataset, world.storage, tmp_path / "cache")) == 12


async def test_bytes_spoiled_on_the_way_are_read_again(remote: World) -> None:
    await remote.upload(GOOD)
    await remote.check()
    manifest.remove(remote.storage, f"datasets/{remote.datasets().pop()}")
    assert isinstance(remote.storage, Remote)
    remote.storage.flips = 1
    job, _ = await remote.check()
    assert job.status is JobStatus.QUEUED
    remote.storage.flips = 2
    job, _ = await remote.check(max_length=99)
    assert job.error is not None
    assert job.error.details["report"]["faults"][0]["rule"] == "file_damaged"
    assert len(remote.datasets()) == 1


@pytest.mark.parametrize("error", [StorageUnavailable("away"), StorageFull("full")])
async def test_a_store_that_is_away_says_nothing_about_the_file(remote: World, error: Exception) -> None:
    await remote.upload(GOOD)
    await remote.check()
    assert isinstance(remote.storage, Remote)
    remote.storage.failure = error
    with pytest.raises(StoreUnavailable):
        await remote.check(max_length=99)


async def test_a_store_that_refuses_and_a_model_that_is_gone_fail_the_job(remote: World) -> None:
    await remote.upload(GOOD)
    await remote.check()
    assert isinstance(remote.storage, Remote)
    remote.storage.failure = StorageDenied("403")
    job, messages = await remote.check(max_length=99)
    assert job.error is not None
    assert (job.error.code, job.error.cause) == ("storage_auth", "config")
    assert messages[-1] == "The job failed due to storage_auth: object storage refuses access (403)"
    manifest.remove(remote.storage, BASE.prefix)
    job, _ = await remote.check()
    assert job.error is not None
    assert (job.error.code, job.error.param, job.error.cause) == ("base_model_damaged", "model", "service")


async def test_a_cancelled_check_leaves_nothing(world: World, tmp_path: Path) -> None:
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"
    manifest.remove(world.storage, BASE.prefix)
    manifest.write(world.storage, BASE.prefix, write_chat_model(tmp_path / "model", endless), {})
    await world.upload(GOOD)
    task = asyncio.create_task(world.check())
    while not list(world.settings.data_dir.glob("scratch/check-*")):
        await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(world.settings.data_dir.glob("scratch/*")) == []
    assert world.datasets() == set()


async def test_what_a_dead_gateway_left_in_scratch_is_removed(world: World) -> None:
    left = world.settings.data_dir / "scratch" / "check-old" / "dataset"
    left.mkdir(parents=True)
    Validation(world.store, world.storage, FakeRuntime(), world.settings)
    assert not left.exists()


async def test_workers_of_one_machine_may_copy_a_dataset_at_the_same_time(remote: World, tmp_path: Path) -> None:
    await remote.upload(GOOD)
    job, _ = await remote.check()
    ref = job.dataset
    assert ref is not None
    storage: Storage = remote.storage
    found = await asyncio.gather(*(asyncio.to_thread(fetch_dataset, ref, storage, tmp_path / "cache") for _ in range(8)))
    assert [len(dataset) for dataset in found] == [12] * 8
    copy = tmp_path / "cache" / ref.prefix
    (copy / "rows").write_bytes(b"spoiled")
    assert len(fetch_dataset(ref, storage, tmp_path / "cache")) == 12
    assert {path.name for path in copy.parent.iterdir()} == {copy.name, f"{copy.name}.lock"}
