"""Uploads in parts against a whole gateway: the official client, every refusal, kills, and what the sweep leaves."""

from __future__ import annotations

import hashlib
import os
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from copy import copy
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from service import spool
from service.app import App
from service.app.turns import Turns
from service.errors import TunesmithError
from service.records import MAX_PARTS
from service.store import Store, StoreUnavailable, Transaction
from service.store import tables as t
from tests.aging import DAY, NEVER, age, named, objects, sweep
from tests.gateway import Gateway, running_gateway
from trainers.storage import Storage

PART = 1 << 20
NEW: dict[str, Any] = {"filename": "train.jsonl", "purpose": "fine-tune", "bytes": 6, "mime_type": "text/jsonl"}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("gateway")
    with running_gateway(directory, model=False, max_part_bytes=PART, max_chunked_bytes=64 * PART, sweep_interval=NEVER) as running:
        yield running


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with gateway.client() as client:
        yield client


@pytest.fixture(scope="module")
def http(gateway: Gateway) -> Iterator[httpx.Client]:
    with gateway.http() as http:
        yield http


@pytest.fixture(autouse=True)
def _every_object_has_a_row(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test did: a day later the store holds what the database names, and nothing else."""
    yield
    if "gateway" in request.fixturenames:
        running: Gateway = request.getfixturevalue("gateway")
        age(running, t.removals.c.due_at, DAY)
        sweep(running)
        assert objects(running) == named(running)


def begin(client: openai.OpenAI, *pieces: bytes) -> tuple[str, list[str]]:
    """A new upload with these parts."""
    upload = client.uploads.create(**NEW | {"bytes": sum(map(len, pieces))})
    return upload.id, [client.uploads.parts.create(upload.id, data=piece).id for piece in pieces]


def fault(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    return response.json()["error"]


def test_the_official_client_uploads_in_parts(client: openai.OpenAI, tmp_path: Path) -> None:
    data = os.urandom(3 * PART + 17)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data)
    md5 = hashlib.md5(data).hexdigest()
    upload = client.uploads.upload_file_chunked(file=path, mime_type="text/jsonl", purpose="fine-tune", part_size=PART, md5=md5)
    assert (upload.status, upload.bytes, upload.filename, upload.object) == ("completed", len(data), "rows.jsonl", "upload")
    assert upload.file is not None
    assert (upload.file.bytes, upload.file.filename, upload.file.purpose) == (len(data), "rows.jsonl", "fine-tune")
    assert client.files.content(upload.file.id).read() == data
    assert client.files.wait_for_processing(upload.file.id).expires_at is None
    assert upload.expires_at - upload.created_at in (3600, 3601)


def test_no_bytes_at_all(client: openai.OpenAI) -> None:
    upload = client.uploads.upload_file_chunked(file=b"", filename="a.jsonl", bytes=0, mime_type="text/jsonl", purpose="fine-tune")
    assert upload.file is not None
    assert client.files.content(upload.file.id).read() == b""


def test_parts_come_in_parallel_and_the_ids_decide_the_order(client: openai.OpenAI) -> None:
    pieces = [os.urandom(random.randint(1, 9000)) for _ in range(24)]
    upload = client.uploads.create(**NEW | {"bytes": sum(map(len, pieces))})
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda piece: client.uploads.parts.create(upload.id, data=piece).id, pieces))
    shuffled = random.sample(range(24), 24)
    done = client.uploads.complete(upload.id, part_ids=[ids[n] for n in shuffled])
    assert done.file is not None
    assert client.files.content(done.file.id).read() == b"".join(pieces[n] for n in shuffled)


def test_what_has_come_is_listed_to_go_on_with(client: openai.OpenAI, http: httpx.Client) -> None:
    upload_id, ids = begin(client, b"abc", b"defg")
    listed = http.get(f"/v1/uploads/{upload_id}/parts").json()
    assert [part["id"] for part in listed["data"]] == ids
    assert (listed["has_more"], listed["first_id"], listed["last_id"]) == (False, ids[0], ids[1])
    assert listed["data"][1]["tunesmith"] == {"bytes": 4, "sha256": hashlib.sha256(b"defg").hexdigest()}
    upload = http.get(f"/v1/uploads/{upload_id}").json()
    assert upload["status"] == "pending"
    assert upload["tunesmith"] == {"mime_type": "text/jsonl", "part_count": 2, "received_bytes": 7}
    client.uploads.cancel(upload_id)
    assert http.get(f"/v1/uploads/{upload_id}/parts").json()["data"] == []


def test_completing_twice_answers_the_same(client: openai.OpenAI, http: httpx.Client) -> None:
    upload_id, ids = begin(client, b"abc", b"def")
    done = client.uploads.complete(upload_id, part_ids=ids)
    assert client.uploads.complete(upload_id, part_ids=ids) == done
    assert http.get(f"/v1/uploads/{upload_id}").json()["file"] == done.to_dict()["file"]
    assert "is completed" in fault(http.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": ids[::-1]}))["message"]
    assert "is completed" in fault(http.post(f"/v1/uploads/{upload_id}/cancel"))["message"]
    assert "is completed" in fault(http.post(f"/v1/uploads/{upload_id}/parts", files={"data": b"x"}))["message"]
    assert done.file is not None
    client.files.delete(done.file.id)
    assert http.get(f"/v1/uploads/{upload_id}").json()["file"] is None


def test_a_refused_completion_leaves_it_pending(client: openai.OpenAI, http: httpx.Client) -> None:
    upload_id, ids = begin(client, b"abc", b"def")
    foreign = begin(client, b"abcdef")[1][0]

    def refused(part_ids: list[str], **fields: object) -> dict[str, Any]:
        return fault(http.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": part_ids, **fields}))

    short = refused(ids[:1])
    assert (short["param"], "3 bytes" in short["message"], " 6." in short["message"]) == ("part_ids", True, True)
    assert "2 times" in refused([ids[0], ids[0]])["message"]
    assert refused([ids[0], foreign])["message"].replace(foreign, "part_none") == refused([ids[0], "part_none"])["message"]
    wrong = refused(ids, md5="0" * 32)
    assert (wrong["code"], wrong["param"]) == ("checksum_mismatch", "md5")
    done = client.uploads.complete(upload_id, part_ids=ids, md5=hashlib.md5(b"abcdef").hexdigest().upper())
    assert done.status == "completed"


def test_cancelling(gateway: Gateway, client: openai.OpenAI, http: httpx.Client) -> None:
    upload_id, ids = begin(client, b"abc", b"def")
    before = objects(gateway)
    assert client.uploads.cancel(upload_id).status == "cancelled"
    for path, body in (("cancel", {}), ("complete", {"json": {"part_ids": ids}}), ("parts", {"files": {"data": b"x"}})):
        assert "is cancelled" in fault(http.post(f"/v1/uploads/{upload_id}/{path}", **body))["message"]
    sweep(gateway)
    assert {key.rpartition("/")[2] for key in before - objects(gateway)} == set(ids)


def test_expired_by_the_databases_clock_and_swept(gateway: Gateway, client: openai.OpenAI, http: httpx.Client) -> None:
    upload_id, ids = begin(client, b"abc", b"def")
    before = objects(gateway)
    age(gateway, t.uploads.c.expires_at, 3600.5, t.uploads.c.id == upload_id)
    assert http.get(f"/v1/uploads/{upload_id}").json()["status"] == "expired"
    assert "is expired" in fault(http.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": ids}))["message"]
    assert "is expired" in fault(http.post(f"/v1/uploads/{upload_id}/parts", files={"data": b"x"}))["message"]
    assert objects(gateway) == before
    sweep(gateway)
    assert {key.rpartition("/")[2] for key in before - objects(gateway)} == set(ids)
    assert http.get(f"/v1/uploads/{upload_id}").json()["status"] == "expired"
    assert b'tunesmith_expired_total{kind="upload"} 1.0' in gateway.parts.metrics.exposition()


def test_the_file_of_an_upload_expires_as_asked(client: openai.OpenAI) -> None:
    upload = client.uploads.create(**NEW | {"bytes": 3}, expires_after={"anchor": "created_at", "seconds": 7200})
    part = client.uploads.parts.create(upload.id, data=b"{}\n")
    done = client.uploads.complete(upload.id, part_ids=[part.id])
    assert done.file is not None
    assert done.file.expires_at == done.file.created_at + 7200


def test_the_largest_part(client: openai.OpenAI, http: httpx.Client) -> None:
    url = f"/v1/uploads/{client.uploads.create(**NEW | {'bytes': 8 * PART}).id}/parts"
    assert http.post(url, files={"data": b"x" * PART}).status_code == 200
    assert fault(http.post(url, files={"data": b"x" * (PART + 1)}), 413)["code"] == "too_large"
    assert fault(http.post(url, files={"data": b"x" * (2 * PART)}), 413)["code"] == "too_large"


@pytest.mark.parametrize("declared", [True, False])
def test_a_larger_part_is_not_read_to_its_end(gateway: Gateway, client: openai.OpenAI, declared: bool) -> None:
    """It never ends: the answer comes nevertheless."""
    upload_id = client.uploads.create(**NEW | {"bytes": 8 * PART}).id
    length = f"Content-Length: {3 * PART}" if declared else "Transfer-Encoding: chunked"
    kind = "Content-Type: multipart/form-data; boundary=XX"
    head = f"POST /v1/uploads/{upload_id}/parts HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.key}\r\n{kind}\r\n{length}\r\n\r\n"
    body = b'--XX\r\nContent-Disposition: form-data; name="data"\r\n\r\n' + b"x" * (PART + 1)
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as connection:
        connection.sendall(head.encode() + (b"" if declared else f"{len(body):x}\r\n".encode() + body + b"\r\n"))
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_ten_thousand_parts_are_enough(gateway: Gateway, client: openai.OpenAI, http: httpx.Client) -> None:
    upload_id, ids = begin(client, b"abc")
    age(gateway, t.uploads.c.part_count, 1.0 - MAX_PARTS, t.uploads.c.id == upload_id)
    assert str(MAX_PARTS) in fault(http.post(f"/v1/uploads/{upload_id}/parts", files={"data": b"x"}))["message"]
    many = [f"part_{n}" for n in range(MAX_PARTS + 1)]
    assert fault(http.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": many}))["param"] == "part_ids"
    assert client.uploads.complete(upload_id, part_ids=ids).status == "completed"


def test_bytes_may_be_sent_again_but_not_for_ever(client: openai.OpenAI, http: httpx.Client) -> None:
    upload_id, ids = begin(client, b"abc")
    for _ in range(2):
        assert http.post(f"/v1/uploads/{upload_id}/parts", files={"data": b"abc"}).status_code == 200
    assert "3 times the 3 bytes" in fault(http.post(f"/v1/uploads/{upload_id}/parts", files={"data": b"abc"}))["message"]
    assert client.uploads.complete(upload_id, part_ids=ids).bytes == 3


HOSTILE: dict[str, Any] = {
    "no bytes": {"bytes": None},
    "negative": {"bytes": -1},
    "float": {"bytes": 6.0},
    "text": {"bytes": "6"},
    "boolean": {"bytes": True},
    "too many": {"bytes": 64 * PART + 1},
    "very many": {"bytes": 10**18},
    "other purpose": {"purpose": "assistants"},
    "no purpose": {"purpose": None},
    "empty name": {"filename": ""},
    "long name": {"filename": "x" * 5000},
    "name with NUL": {"filename": "a\x00b"},
    "no type": {"mime_type": None},
    "type that steers": {"mime_type": "text/\u202ejsonl"},
    "expiry too soon": {"expires_after": {"anchor": "created_at", "seconds": 3599}},
    "expiry too late": {"expires_after": {"anchor": "created_at", "seconds": 2_592_001}},
    "expiry from elsewhere": {"expires_after": {"anchor": "last_active_at", "seconds": 3600}},
    "expiry without seconds": {"expires_after": {"anchor": "created_at"}},
    "expiry as a number": {"expires_after": 3600},
    "unknown field": {"byte": 6},
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_beginnings(http: httpx.Client, change: dict[str, Any]) -> None:
    body = {name: value for name, value in (NEW | change).items() if value is not None}
    assert fault(http.post("/v1/uploads", json=body))["type"] == "invalid_request_error"


@pytest.mark.parametrize(("name", "kept"), [("../../etc/passwd", "passwd"), ("a\u202egnp.jsonl", "agnp.jsonl"), ("C:\\x\\..", "file")])
def test_names_are_data(client: openai.OpenAI, name: str, kept: str) -> None:
    assert client.uploads.create(**NEW | {"filename": name}).filename == kept


MULTIPART = {"content-type": "multipart/form-data; boundary=XX"}
DATA = b'--XX\r\nContent-Disposition: form-data; name="data"; filename="p"\r\n\r\nabc\r\n'
BROKEN_PARTS: dict[str, tuple[int, dict[str, Any]]] = {
    "json": (415, {"json": {"data": "abc"}}),
    "raw bytes": (415, {"content": b"abc", "headers": {"content-type": "application/octet-stream"}}),
    "no body": (415, {}),
    "no boundary": (400, {"content": DATA, "headers": {"content-type": "multipart/form-data"}}),
    "cut": (400, {"content": DATA, "headers": MULTIPART}),
    "cut within": (400, {"content": DATA[:-4], "headers": MULTIPART}),
    "twice": (400, {"content": DATA + DATA + b"--XX--\r\n", "headers": MULTIPART}),
    "a file": (400, {"files": {"file": b"abc"}}),
    "beside a field": (400, {"files": {"data": b"abc"}, "data": {"purpose": "fine-tune"}}),
    "empty": (400, {"files": {"data": b""}}),
    "10,001 form parts": (400, {"content": DATA * 10_001 + b"--XX--\r\n", "headers": MULTIPART}),
}


@pytest.mark.parametrize(("status", "request_body"), BROKEN_PARTS.values(), ids=BROKEN_PARTS.keys())
def test_broken_parts(client: openai.OpenAI, http: httpx.Client, status: int, request_body: dict[str, Any]) -> None:
    upload_id, ids = begin(client, b"abcdef")
    fault(http.post(f"/v1/uploads/{upload_id}/parts", **request_body), status)
    assert client.uploads.complete(upload_id, part_ids=ids).status == "completed"


BROKEN_ENDS: dict[str, Any] = {
    "nothing": {},
    "a word": {"part_ids": "part_1"},
    "numbers": {"part_ids": [1]},
    "empty id": {"part_ids": [""]},
    "none": {"part_ids": []},
    "md5 in base64": {"part_ids": [], "md5": "1B2M2Y8AsgTpgAmY7PhCfg=="},
    "unknown field": {"part_ids": [], "part_id": "x"},
}


@pytest.mark.parametrize("body", BROKEN_ENDS.values(), ids=BROKEN_ENDS.keys())
def test_broken_ends(client: openai.OpenAI, http: httpx.Client, body: dict[str, Any]) -> None:
    upload_id, _ = begin(client, b"abcdef")
    fault(http.post(f"/v1/uploads/{upload_id}/complete", json=body))
    fault(http.post(f"/v1/uploads/{upload_id}/complete", content=b"x"), 415)


def test_another_projects_upload_is_unknown(gateway: Gateway, client: openai.OpenAI) -> None:
    upload_id, ids = begin(client, b"abc")
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "", {}),
        ("GET", "/parts", {}),
        ("POST", "/parts", {"files": {"data": b"x"}}),
        ("POST", "/complete", {"json": {"part_ids": ids}}),
        ("POST", "/cancel", {}),
    ]
    with gateway.http(gateway.other_key()) as other:
        for method, path, body in calls:
            foreign = fault(other.request(method, f"/v1/uploads/{upload_id}{path}", **body), 404)
            unknown = fault(other.request(method, f"/v1/uploads/upload_none{path}", **body), 404)
            assert foreign["code"] == "upload_not_found"
            assert {**foreign, "message": foreign["message"].replace(upload_id, "upload_none")} == unknown
            fault(other.request(method, f"/v1/uploads/..%00{path}", **body), 404)
    assert client.uploads.complete(upload_id, part_ids=ids).status == "completed"


def test_a_key_that_may_only_read(gateway: Gateway, client: openai.OpenAI) -> None:
    with gateway.http(gateway.other_key(("read",))) as reader:
        fault(reader.post("/v1/uploads", json=NEW), 403)
        fault(reader.post("/v1/uploads/upload_none/parts", files={"data": b"x"}), 403)


def test_full_spool(client: openai.OpenAI, http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    upload_id, ids = begin(client, b"abc", b"def")
    usage = spool.shutil.disk_usage("/")
    with monkeypatch.context() as patch:
        patch.setattr(spool.shutil, "disk_usage", lambda _: usage._replace(free=5))
        assert fault(http.post(f"/v1/uploads/{upload_id}/parts", files={"data": b"x" * 6}), 507)["code"] == "storage_full"
        assert fault(http.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": ids}), 507)["code"] == "storage_full"
    assert client.uploads.complete(upload_id, part_ids=ids).status == "completed"


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_part_that_was_damaged_can_be_sent_again(gateway: Gateway, client: openai.OpenAI, http: httpx.Client, damage: str) -> None:
    upload_id, ids = begin(client, b"abc", b"def", b"ghi")
    [key] = [key for key in objects(gateway) if key.endswith(ids[1])]
    if damage == "changed":
        gateway.parts.storage.put(key, b"deg")
    else:
        gateway.parts.storage.delete(key)
    damaged = fault(http.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": ids}))
    assert (damaged["code"], ids[1] in damaged["message"]) == ("part_damaged", True)
    assert [part["id"] for part in http.get(f"/v1/uploads/{upload_id}/parts").json()["data"]] == [ids[0], ids[2]]
    again = client.uploads.parts.create(upload_id, data=b"def").id
    assert http.get(f"/v1/uploads/{upload_id}").json()["tunesmith"]["received_bytes"] == 9
    done = client.uploads.complete(upload_id, part_ids=[ids[0], again, ids[2]])
    assert done.file is not None
    assert client.files.content(done.file.id).read() == b"abcdefghi"


class Killed(BaseException):
    """The process ends here: nothing behind it is done, nothing is cleaned up."""


def killed() -> None:
    raise Killed


class Meanwhile:
    """A store that lets something happen before, or after, each call of one kind."""

    def __init__(self, storage: Storage, call: str, happens: Callable[[], object], *, before: bool = True) -> None:
        self._storage, self._call, self._happens, self._before = storage, call, happens, before

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._storage, name)

        def called(*args: Any, **kwargs: Any) -> Any:
            if self._before:
                self._happens()
            result = real(*args, **kwargs)
            if not self._before:
                self._happens()
            return result

        return called if name == self._call else real


@contextmanager
def meanwhile(gateway: Gateway, call: str, happens: Callable[[], object], *, before: bool = True) -> Iterator[None]:
    real = gateway.app.storage
    gateway.app.storage = Meanwhile(real, call, happens, before=before)
    try:
        yield
    finally:
        gateway.app.storage = real


def another_gateway(gateway: Gateway) -> App:
    """One on the same database and store; what it does must not depend on what this process knows."""
    other = copy(gateway.app)
    other.assemblies = Turns(1)
    return other


@pytest.mark.parametrize(("call", "before"), [("read", True), ("put_file", True), ("put_file", False)])
def test_killed_while_completing(gateway: Gateway, client: openai.OpenAI, call: str, before: bool) -> None:
    upload_id, ids = begin(client, b"abc", b"def")
    caller = gateway.caller
    with meanwhile(gateway, call, killed, before=before), pytest.raises(Killed):
        gateway.do(gateway.app.complete_upload(caller, upload_id, part_ids=ids, md5=None))
    done = client.uploads.complete(upload_id, part_ids=ids)
    assert done.file is not None
    assert client.files.content(done.file.id).read() == b"abcdef"


@pytest.mark.parametrize("before", [True, False])
def test_killed_while_a_part_arrives(gateway: Gateway, client: openai.OpenAI, http: httpx.Client, tmp_path: Path, before: bool) -> None:
    """The bytes may lie there already: without a row the part is not listed, and they go."""
    path = tmp_path / "part"
    path.write_bytes(b"def")
    upload_id, ids = begin(client, b"abc")
    caller = gateway.caller
    with meanwhile(gateway, "put_file", killed, before=before), pytest.raises(Killed):
        gateway.do(gateway.app.add_upload_part(caller, upload_id, path=path))
    assert [part["id"] for part in http.get(f"/v1/uploads/{upload_id}/parts").json()["data"]] == ids
    assert (objects(gateway) == named(gateway)) is before


def test_a_commit_whose_answer_is_lost(gateway: Gateway, client: openai.OpenAI, http: httpx.Client) -> None:
    """The file is there although the completion failed: its bytes must not go on suspicion."""
    upload_id, ids = begin(client, b"abc", b"def")
    store, commits = gateway.app.store, 0

    @asynccontextmanager
    async def lossy() -> AsyncIterator[Transaction]:
        nonlocal commits
        async with Store.begin(store) as tx:
            yield tx
        commits += 1
        if commits == 2:  # the first notes the key
            raise StoreUnavailable("the connection is gone")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "begin", lossy)
        assert http.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": ids}).status_code == 503
    done = client.uploads.complete(upload_id, part_ids=ids)
    assert done.file is not None
    assert client.files.content(done.file.id).read() == b"abcdef"


def test_completed_by_several_at_once_it_is_made_once(gateway: Gateway, client: openai.OpenAI) -> None:
    upload_id, ids = begin(client, b"abc", b"def")
    made: list[None] = []
    with meanwhile(gateway, "put_file", lambda: made.append(None)), ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda _: client.uploads.complete(upload_id, part_ids=ids), range(6)))
    assert (len({upload.to_json() for upload in done}), len(made)) == (1, 1)


def test_completed_by_two_gateways_there_is_one_file(gateway: Gateway, client: openai.OpenAI) -> None:
    upload_id, ids = begin(client, b"abc", b"def")
    other, caller, files = another_gateway(gateway), gateway.caller, {file.id for file in client.files.list()}

    def overtake() -> None:
        gateway.do(other.complete_upload(caller, upload_id, part_ids=ids, md5=None))

    with meanwhile(gateway, "put_file", overtake):
        done = client.uploads.complete(upload_id, part_ids=ids)
    assert done.file is not None
    assert {file.id for file in client.files.list()} - files == {done.file.id}


@pytest.mark.parametrize("late", ["part", "complete"])
@pytest.mark.parametrize("first", ["cancel", "complete", "expire"])
def test_what_changed_meanwhile_counts(
    gateway: Gateway, client: openai.OpenAI, http: httpx.Client, tmp_path: Path, first: str, late: str
) -> None:
    """While the bytes of a part, or of the file, are being stored the upload ends in another way: they go again."""
    path = tmp_path / "part"
    path.write_bytes(b"def")
    caller, app, other = gateway.caller, gateway.app, another_gateway(gateway)
    upload_id, ids = begin(client, b"abc", b"def")

    def end() -> None:
        if first == "expire":
            age(gateway, t.uploads.c.expires_at, 3601, t.uploads.c.id == upload_id)
        elif first == "cancel":
            gateway.do(other.cancel_upload(caller, upload_id))
        else:
            gateway.do(other.complete_upload(caller, upload_id, part_ids=ids[::-1], md5=None))

    part = app.add_upload_part(caller, upload_id, path=path) if late == "part" else None
    work = part or app.complete_upload(caller, upload_id, part_ids=ids, md5=None)
    before = objects(gateway)
    with meanwhile(gateway, "put_file", end), pytest.raises(TunesmithError, match=r"is (cancelled|completed|expired) and can"):
        gateway.do(work)
    file = http.get(f"/v1/uploads/{upload_id}").json()["file"]
    assert {key.rpartition("/")[2] for key in objects(gateway) - before} == ({file["id"]} if file else set())


def test_stopped_between_parts_another_gateway_goes_on(tmp_path: Path) -> None:
    pieces = [os.urandom(1000) for _ in range(4)]
    with running_gateway(tmp_path, model=False) as first, first.client() as client:
        upload_id = client.uploads.create(**NEW | {"bytes": 4000}).id
        for piece in pieces[:2]:
            client.uploads.parts.create(upload_id, data=piece)
    with running_gateway(tmp_path, model=False) as second, second.client() as client, second.http() as http:
        ids = [part["id"] for part in http.get(f"/v1/uploads/{upload_id}/parts").json()["data"]]
        ids += [client.uploads.parts.create(upload_id, data=piece).id for piece in pieces[2:]]
        done = client.uploads.complete(upload_id, part_ids=ids)
        assert done.file is not None
        assert client.files.content(done.file.id).read() == b"".join(pieces)


def test_on_a_real_s3_store(tmp_path: Path, s3_url: str) -> None:
    data = os.urandom(2 * PART + 99)
    with running_gateway(tmp_path, model=False, storage_url=s3_url, sweep_interval=NEVER) as gateway, gateway.client() as client:
        upload = client.uploads.upload_file_chunked(
            file=data, filename="a.jsonl", bytes=len(data), mime_type="text/jsonl", purpose="fine-tune", part_size=PART
        )
        assert upload.file is not None
        assert client.files.content(upload.file.id).read() == data
        client.uploads.cancel(begin(client, b"abc")[0])
        sweep(gateway)
        assert objects(gateway) == named(gateway) != set()
        client.files.delete(upload.file.id)
        assert objects(gateway) == set()


def test_the_caller_decides_whose_it_is(gateway: Gateway) -> None:
    """The application layer holds the rules also for callers that come another way."""
    stranger = gateway.do(gateway.app.authenticate(gateway.other_key()))
    upload = gateway.do(
        gateway.app.create_upload(stranger, filename="../a\u202e", purpose="fine-tune", bytes=0, mime_type="x", file_expires_after=None)
    )
    assert (upload.project_id, upload.filename, upload.status) == (stranger.project_id, "a", "pending")
