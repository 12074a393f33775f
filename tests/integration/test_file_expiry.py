"""Files that expire or are deleted: gone at once by the database's clock, their bytes soon after, also under a job that is being made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from service.store import tables as t
from tests.aging import DAY, NEVER, age, named, objects, sweep
from tests.gateway import MODEL, Gateway, running_gateway
from tests.pg import new_database
from trainers.storage import StorageUnavailable

ROWS = (Path(__file__).parents[2] / "examples" / "tweets" / "tweets-test.jsonl").read_bytes()
PURPOSES = ("assistants", "assistants_output", "batch", "batch_output", "evals", "fine-tune-results", "user_data", "vision")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    database = {} if request.param == "sqlite" else {"database_url": new_database(request.getfixturevalue("_postgres"))}
    with running_gateway(tmp_path_factory.mktemp("gateway"), sweep_interval=NEVER, **database) as running:
        yield running


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with gateway.client() as client:
        yield client


@pytest.fixture(scope="module")
def http(gateway: Gateway) -> Iterator[httpx.Client]:
    with gateway.http() as http:
        yield http


def upload(client: openai.OpenAI, seconds: int | None = 3600) -> str:
    after = {} if seconds is None else {"expires_after": {"anchor": "created_at", "seconds": seconds}}
    return client.files.create(file=("a.jsonl", ROWS), purpose="fine-tune", **after).id  # type: ignore[arg-type]


def expire(gateway: Gateway, file_id: str) -> None:
    age(gateway, t.files.c.expires_at, 3600.5, t.files.c.id == file_id)


def test_the_client_says_when(client: openai.OpenAI) -> None:
    for seconds in (3600, 2_592_000):
        file = client.files.retrieve(upload(client, seconds))
        assert file.expires_at == file.created_at + seconds
    assert client.files.retrieve(upload(client, None)).expires_at is None


def test_expired_is_as_deleted(gateway: Gateway, client: openai.OpenAI, http: httpx.Client) -> None:
    kept, gone = upload(client), upload(client)
    [key] = [key for key in objects(gateway) if key.endswith(gone)]
    expire(gateway, gone)
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        expired = http.request(method, f"/v1/files/{gone}{path}")
        assert expired.status_code == 404
        assert expired.json()["error"]["message"] == f"No such file: '{gone}'"
    assert gone not in [file.id for file in client.files.list()]
    with pytest.raises(openai.BadRequestError) as error:
        client.fine_tuning.jobs.create(model=MODEL, training_file=gone)
    assert error.value.code == "invalid_training_file"
    assert key in objects(gateway)
    sweep(gateway)
    assert key not in objects(gateway)
    assert client.files.retrieve(kept).id == kept


def test_a_page_after_a_file_that_has_expired_meanwhile(gateway: Gateway, client: openai.OpenAI) -> None:
    _, oldest, last, newest = (upload(client) for _ in range(4))
    expire(gateway, last)
    page = client.files.list(after=last, limit=1)
    assert ([file.id for file in page.data], page.has_more) == ([oldest], True)
    both = client.files.list(limit=2).to_dict()
    assert (both["first_id"], both["last_id"]) == (newest, oldest)


def test_lists_by_any_known_purpose(client: openai.OpenAI, http: httpx.Client) -> None:
    assert [list(client.files.list(purpose=purpose)) for purpose in PURPOSES] == [[]] * len(PURPOSES)
    refused = http.get("/v1/files", params={"purpose": "fine-tunes"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "purpose")


def test_a_file_whose_bytes_could_not_be_deleted_is_swept(gateway: Gateway, client: openai.OpenAI) -> None:
    file_id = upload(client)
    real = gateway.app.storage.delete

    def away(key: str) -> None:
        raise StorageUnavailable(key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gateway.app.storage, "delete", away)
        assert client.files.delete(file_id).deleted
        assert any(key.endswith(file_id) for key in objects(gateway))
        with pytest.raises(StorageUnavailable):
            sweep(gateway)
        patch.setattr(gateway.app.storage, "delete", real)
        sweep(gateway)
    assert not any(key.endswith(file_id) for key in objects(gateway))


def test_bytes_that_go_while_they_are_asked_for(gateway: Gateway, client: openai.OpenAI, http: httpx.Client) -> None:
    file_id = upload(client)
    [key] = [key for key in objects(gateway) if key.endswith(file_id)]
    gateway.parts.storage.delete(key)
    assert http.get(f"/v1/files/{file_id}/content").status_code == 404
    client.files.delete(file_id)


@pytest.mark.parametrize("how", ["deleted", "expired"])
def test_a_job_on_a_file_that_goes_meanwhile(gateway: Gateway, client: openai.OpenAI, how: str) -> None:
    """Whoever is first: the job is refused, or accepted, and then it finds its file or fails saying that the file is missing."""
    goes: dict[str, Callable[[str], object]] = {
        "deleted": client.files.delete,
        "expired": lambda file_id: (expire(gateway, file_id), sweep(gateway)),
    }
    jobs: list[str] = []
    for number in range(8):
        file_id = upload(client)
        with ThreadPoolExecutor(2) as pool:
            made = pool.submit(client.fine_tuning.jobs.create, model=MODEL, training_file=file_id)
            time.sleep(0.006 * number)
            pool.submit(goes[how], file_id).result()
            if (refused := made.exception()) is not None:
                assert isinstance(refused, openai.BadRequestError), refused
                assert refused.code == "invalid_training_file"
            else:
                jobs.append(made.result().id)
    assert jobs
    for job_id in jobs:
        checked(client, job_id)
    age(gateway, t.removals.c.due_at, DAY)
    sweep(gateway)
    assert objects(gateway) == named(gateway)


def checked(client: openai.OpenAI, job_id: str) -> None:
    deadline = time.monotonic() + 60
    while (job := client.fine_tuning.jobs.retrieve(job_id)).status == "validating_files":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if job.status != "failed":
        client.fine_tuning.jobs.cancel(job_id)
    else:
        assert job.error is not None
        assert "was deleted, or has expired" in job.error.message
        assert job.model_extra is not None
        assert job.model_extra["tunesmith"]["error"]["details"]["report"]["faults"][0]["rule"] == "file_missing"
