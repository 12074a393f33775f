"""What stands before every gRPC method: statuses, details, request ids, keys, deadlines, limits, metrics and logs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from datetime import timedelta

import grpc
import pytest
import structlog

from protos.tunesmith.v1 import files_pb2, jobs_pb2, models_pb2
from service.errors import ErrorCode, TunesmithError
from service.records import Caller, Content
from service.rest.errors import TABLE
from service.rpc import interceptor, status
from service.rpc.status import STATUS, Refused, rich
from tests.fakes import API_KEY, BASE_MODEL
from tests.rpc_client import refused
from tests.rpc_server import Served, served

GET = jobs_pb2.GetJobRequest(job_id="ftjob-1")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("data")) as running:
        yield running


def test_both_tables_have_every_code() -> None:
    assert set(STATUS) == set(TABLE) == set(ErrorCode)
    assert {code for code, reply in TABLE.items() if reply.retry_after} == set(status.RETRY_AFTER)
    assert all(status.RETRY_AFTER[code] == TABLE[code].retry_after for code in status.RETRY_AFTER)


@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_over_grpc(server: Served, code: ErrorCode) -> None:
    server.app.failure = TunesmithError(code, "why", param="a.b[0]", wire_code="exact")
    with refused(STATUS[code]) as found:
        server.client.jobs.GetJob(GET)
    [said] = found
    assert (said.message, said.reason, said.field) == ("why", "exact", "a.b[0]")
    assert said.retry == status.RETRY_AFTER.get(code)


def test_an_error_says_when_to_ask_again_and_names_fields_as_messages_do(server: Served) -> None:
    server.app.failure = TunesmithError(ErrorCode.UNAVAILABLE, "away", param="fine_tuning_job_id", retry_after=timedelta(seconds=7))
    with refused(grpc.StatusCode.UNAVAILABLE) as found:
        server.client.jobs.GetJob(GET)
    assert (found[0].retry, found[0].field, found[0].reason) == (timedelta(seconds=7), "job_id", "unavailable")


def test_any_text_can_be_in_an_error_and_none_is_too_long_for_the_metadata(server: Served) -> None:
    assert rich(TunesmithError(ErrorCode.INVALID_REQUEST, "a\ud800b")).message == "a\\ud800b"
    server.app.failure = TunesmithError(ErrorCode.INVALID_REQUEST, "é\n" * 5000, param="x" * 5000, wire_code="long")
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as found:
        server.client.jobs.GetJob(GET)
    assert found[0].message.startswith("é\né")
    assert found[0].message.endswith("…")


def test_the_unexpected_is_internal_and_tells_nothing(server: Served) -> None:
    server.app.failure = RuntimeError("secret detail")
    with structlog.testing.capture_logs() as logs, refused(grpc.StatusCode.INTERNAL) as found:
        server.client.jobs.GetJob(GET)
    assert found[0].request_id.startswith("req_")
    assert found[0].request_id in found[0].message
    assert "secret" not in found[0].message
    assert found[0].reason == "internal"
    assert [line["method"] for line in logs if line["event"] == "rpc_failed"] == ["tunesmith.v1.Jobs/GetJob"]
    assert API_KEY not in repr(logs)


def test_request_ids(server: Served) -> None:
    def answered(**metadata: str) -> str:
        sent = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
        _, call = server.client.models.ListModels.with_call(models_pb2.ListModelsRequest(), metadata=sent)
        return str(dict(call.trailing_metadata())["x-request-id"])

    assert answered(x_request_id="mine-1") == "mine-1"
    assert answered(x_request_id="not sane").startswith("req_")
    assert answered() != answered()
    with refused(grpc.StatusCode.NOT_FOUND) as found:
        server.client.jobs.GetJob(GET, metadata=[("x-request-id", "mine-2")])
    assert found[0].request_id == "mine-2"


@pytest.mark.parametrize("sent", ["", "Basic abc", "Bearer", "Bearer ", "Bearer wrong", "Bearer " + "x" * 600, API_KEY])
def test_a_wrong_key_is_unauthenticated(server: Served, sent: str) -> None:
    call = server.client.channel.unary_unary("/tunesmith.v1.Jobs/GetJob")
    with refused(grpc.StatusCode.UNAUTHENTICATED) as found:
        call(b"", metadata=[("authorization", sent)])
    assert found[0].reason == "invalid_api_key"


def test_a_message_of_another_type_is_the_clients_fault(server: Served) -> None:
    call = server.client.keyed.unary_unary("/tunesmith.v1.Jobs/GetJob")
    for garbage in (b"\xff\xff\xff", b"\x0a\x02\xff\xfe", b"\x0a\xff\x01x"):
        with refused(grpc.StatusCode.INVALID_ARGUMENT):
            call(garbage)
    stream = server.client.keyed.stream_unary("/tunesmith.v1.Files/UploadFile")
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        stream(iter([b"\xff\xff\xff"]))


def test_an_unknown_method_is_unimplemented(server: Served) -> None:
    for path in ("/tunesmith.v1.Jobs/Nothing", "/no.Such/Thing"):
        with refused(grpc.StatusCode.UNIMPLEMENTED) as found:
            server.client.channel.unary_unary(path)(b"")
        assert found[0].request_id


def test_too_large_a_message_is_refused_before_it_is_parsed(server: Served) -> None:
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
        server.client.jobs.GetJob(jobs_pb2.GetJobRequest(job_id="x" * (5 << 20)))
    assert server.client.models.ListModels(models_pb2.ListModelsRequest()).models


@pytest.mark.parametrize("seconds", [-1, 0, 0.1])
def test_what_was_begun_is_finished_though_its_deadline_passes(server: Served, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    begun, finished = threading.Event(), threading.Event()

    async def slow(caller: Caller) -> list[object]:
        begun.set()
        await asyncio.sleep(0.5)
        finished.set()
        return []

    monkeypatch.setattr(server.app, "list_models", slow)
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
        server.client.models.ListModels(models_pb2.ListModelsRequest(), timeout=seconds)
    assert finished.wait(5) or not begun.is_set()
    if seconds > 0:
        _until(lambda: 'code="DEADLINE_EXCEEDED",method="tunesmith.v1.Models/ListModels"' in server.metrics.exposition().decode())


def test_a_stream_that_is_cancelled_ends_its_work(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(server.app, "watch_job", _endless(ended), raising=False)
    stream = server.client.jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id="ftjob-1"))
    next(stream)
    stream.cancel()
    assert ended.wait(5)
    _until(lambda: 'code="CANCELLED",method="tunesmith.v1.Jobs/WatchJob"' in server.metrics.exposition().decode())


def test_a_stream_ends_at_its_deadline(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(server.app, "watch_job", _endless(ended), raising=False)
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
        list(server.client.jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id="ftjob-1"), timeout=0.3))
    assert ended.wait(5)


def test_a_key_has_so_many_streams(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(server.app, "watch_job", _endless(ended), raising=False)
    monkeypatch.setattr(interceptor, "MAX_STREAMS", 2)
    request = jobs_pb2.WatchJobRequest(job_id="ftjob-1")
    streams = [server.client.jobs.WatchJob(request) for _ in range(2)]
    for stream in streams:
        next(stream)
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED) as found:
        list(server.client.jobs.WatchJob(request))
    assert (found[0].reason, found[0].retry) == ("rate_limit_exceeded", timedelta(seconds=5))
    for stream in streams:
        stream.cancel()
    _until(lambda: _can_watch(server))


def test_a_client_that_takes_nothing_holds_little_and_not_for_long(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interceptor, "STALL", timedelta(seconds=0.5))
    size, read, closed = 64 << 20, 0, threading.Event()

    def pieces(start: int, end: int) -> Iterator[bytes]:
        nonlocal read
        try:
            for _ in range(size >> 20):
                read += 1 << 20
                yield bytes(1 << 20)
        finally:
            closed.set()

    async def content(caller: Caller, file_id: str) -> Content:
        return Content("big", size, "0" * 64, pieces)

    monkeypatch.setattr(server.app, "file_content", content)
    stream = server.client.files.DownloadFile(files_pb2.DownloadFileRequest(file_id="file-1"))
    next(stream)
    assert closed.wait(10)
    assert read < 24 << 20
    with refused(grpc.StatusCode.ABORTED):
        list(stream)


def test_a_client_that_sends_nothing_is_not_waited_for(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interceptor, "STALL", timedelta(seconds=0.3))
    over = threading.Event()

    def silence() -> Iterator[files_pb2.UploadFileRequest]:
        over.wait(10)
        yield from ()

    with refused(grpc.StatusCode.ABORTED):
        server.client.files.UploadFile(silence())
    over.set()


def test_calls_are_counted_by_method_and_status(server: Served) -> None:
    server.client.models.GetModel(models_pb2.GetModelRequest(model=BASE_MODEL))
    text = server.metrics.exposition().decode()
    assert 'tunesmith_grpc_requests_total{code="OK",method="tunesmith.v1.Models/GetModel"} 1.0' in text
    assert 'tunesmith_grpc_request_duration_seconds_count{method="tunesmith.v1.Models/GetModel"} 1.0' in text
    with refused(grpc.StatusCode.UNIMPLEMENTED):
        server.client.channel.unary_unary("/nobody/knows")(b"")
    text = server.metrics.exposition().decode()
    assert 'code="UNIMPLEMENTED",method="unmatched"' in text
    assert "nobody" not in text


def test_refusals_without_an_error_code_have_a_reason_too() -> None:
    assert rich(Refused(grpc.StatusCode.OUT_OF_RANGE, "behind the end")).code == grpc.StatusCode.OUT_OF_RANGE.value[0]


def _endless(ended: threading.Event) -> object:
    async def watch(caller: Caller, job_id: str, *, after_seq: int = 0) -> AsyncGenerator[object]:
        from service.jobs import Event

        class Update:
            event = Event("ftevent-1", job_id, 1, 1.0, "info", "hello")
            job = None

        try:
            yield Update
            await asyncio.sleep(60)
        finally:
            ended.set()

    return watch


def _can_watch(server: Served) -> bool:
    stream = server.client.jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id="ftjob-1"))
    try:
        next(stream)
    except grpc.RpcError:
        return False
    finally:
        stream.cancel()
    return True


def _until(holds: object) -> None:
    deadline = time.monotonic() + 10
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)
