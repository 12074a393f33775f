"""Uploads, expiry and removals in SQL, on SQLite and on a real PostgreSQL: what two gateways do at once stays right."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from service.records import File, Upload, UploadPart
from service.store import Store
from tests.unit.test_store import PROJECT, store

__all__ = ["store"]
HOUR, PAST = timedelta(hours=1), timedelta(seconds=-1)


def new_upload(number: int = 1) -> Upload:
    return Upload(f"upload_{number}", PROJECT, "a.jsonl", "fine-tune", "text/jsonl", 6, "pending", 0.0, 0.0, file_expires_after=HOUR)


async def begun(store: Store, number: int = 1, *, life: timedelta = HOUR, parts: int = 2) -> Upload:
    async with store.begin() as tx:
        await tx.insert_upload(new_upload(number), life)
        for n in range(parts):
            await tx.insert_upload_part(UploadPart(f"part_{number}_{n}", f"upload_{number}", 3, "0" * 64, f"up/{number}/{n}", 0.0))
        upload = await tx.upload(PROJECT, f"upload_{number}")
    assert upload is not None
    return upload


async def test_an_upload_reads_back_with_what_has_come(store: Store) -> None:
    upload = await begun(store)
    assert (upload.status, upload.part_count, upload.received_bytes, upload.file_expires_after) == ("pending", 2, 6, HOUR)
    assert upload.expires_at == upload.created_at + 3600
    async with store.read() as tx:
        assert [part.id for part in await tx.upload_parts(PROJECT, upload.id)] == ["part_1_0", "part_1_1"]
        assert await tx.upload("proj_other", upload.id) is None
        assert await tx.upload_parts("proj_other", upload.id) == []


async def test_its_last_status_sends_the_bytes_of_its_parts_away(store: Store) -> None:
    upload = await begun(store)
    async with store.begin() as tx:
        ended = await tx.end_upload(upload, "completed", file_id="file-none", parts_sha256="1" * 64)
        assert (ended.status, ended.parts_sha256, ended.file) == ("completed", "1" * 64, None)
        assert await tx.upload_parts(PROJECT, upload.id) == []
    async with store.begin() as tx:
        assert set(await tx.begin_removals(10)) == {"up/1/0", "up/1/1"}


async def test_two_sweeps_expire_each_thing_once(store: Store) -> None:
    await asyncio.gather(*(begun(store, number, life=PAST if number % 2 else HOUR) for number in range(40)))
    async with store.begin() as tx:
        for number in range(40):
            file = File(f"file-{number}", PROJECT, "a", "fine-tune", 3, "0" * 64, f"files/p/{number}", 0.0)
            await tx.insert_file(file, PAST if number % 2 else None)

    async def expire() -> tuple[int, int]:
        uploads = files = 0
        for _ in range(10):
            async with store.begin() as tx:
                uploads, files = uploads + await tx.expire_uploads(3), files + await tx.expire_files(3)
        return uploads, files

    counts = await asyncio.gather(expire(), expire(), expire())
    assert [sum(each) for each in zip(*counts, strict=True)] == [20, 20]
    async with store.begin() as tx:
        due = await tx.begin_removals(1000)
        assert len(due) == len(set(due)) == 20 * 2 + 20
        await tx.removed(due)
        assert await tx.begin_removals(1000) == []
        assert [file.id for file in (await tx.list_files(PROJECT, purpose=None, after=None, limit=99, ascending=True)).items] == [
            f"file-{number}" for number in range(0, 40, 2)
        ]


async def test_bytes_are_kept_or_removed_and_never_both(store: Store) -> None:
    """However the two meet: once a sweep has begun with a key, no row can keep its bytes."""
    for round_ in range(20):
        keys = [f"key-{round_}-{number}" for number in range(4)]
        async with store.begin() as tx:
            for key in keys:
                await tx.plan_removal(key, timedelta(seconds=0.005))

        async def keep(key: str) -> bool:
            await asyncio.sleep(0.004)
            async with store.begin() as tx:
                return await tx.keep(key)

        async def begin() -> list[str]:
            await asyncio.sleep(0.005)
            async with store.begin() as tx:
                return await tx.begin_removals(100)

        *kept, first, second = await asyncio.gather(*(keep(key) for key in keys), begin(), begin())
        assert not {key for key, is_kept in zip(keys, kept, strict=True) if is_kept} & {*first, *second}


async def test_what_came_too_late_can_not_be_kept(store: Store) -> None:
    async with store.begin() as tx:
        await tx.plan_removal("late", PAST)
        await tx.plan_removal("in time", HOUR)
    async with store.begin() as tx:
        assert (await tx.keep("late"), await tx.keep("in time"), await tx.keep("unknown")) == (False, True, False)
        assert await tx.begin_removals(10) == ["late"]
        assert await tx.begin_removals(10) == ["late"]


@pytest.mark.parametrize("key", ["files/p/f", "models/job/1/metrics.csv"])
async def test_only_bytes_of_the_file_itself_go_with_it(store: Store, key: str) -> None:
    async with store.begin() as tx:
        await tx.insert_file(File("file-1", PROJECT, "a", "fine-tune", 3, "0" * 64, key, 0.0), HOUR)
        assert await tx.delete_file(PROJECT, "file-1") == key
    async with store.begin() as tx:
        assert await tx.begin_removals(10) == ([key] if key.startswith("files/") else [])
