"""Files and models over gRPC: uploads that break off and go on, downloads, lists, the check of a dataset."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2

from protos.tunesmith.v1 import files_pb2, models_pb2, reports_pb2, types_pb2
from service.rpc import uploads
from tests.gateway import MODEL
from tests.rpc_calls import (
    TINY_ROWS,
    Finished,
    chunks,
    downloaded,
    send,
    sha256,
    start,
    status,
    until,
    upload,
)
from tests.rpc_client import Client, refused


def test_a_file_goes_up_and_comes_down(client: Client) -> None:
    data = os.urandom(2 * uploads.PART_BYTES + 12345)
    answer = upload(client, data, filename="dir/../rows.jsonl")
    assert answer.received_bytes == len(data)
    file = answer.file
    assert (file.filename, file.purpose, file.bytes, file.sha256) == ("rows.jsonl", "fine-tune", len(data), sha256(data))
    assert not file.HasField("expire_time")
    assert client.files.GetFile(files_pb2.GetFileRequest(file_id=file.id)).file == file
    content, back = downloaded(client.files.DownloadFile(files_pb2.DownloadFileRequest(file_id=file.id)))
    assert (content.sha256, back) == (sha256(data), data)
    offset = len(data) - 100
    assert downloaded(client.files.DownloadFile(files_pb2.DownloadFileRequest(file_id=file.id, offset=offset)), offset)[1] == data[-100:]
    client.files.DeleteFile(files_pb2.DeleteFileRequest(file_id=file.id))
    with refused(grpc.StatusCode.NOT_FOUND) as found:
        client.files.GetFile(files_pb2.GetFileRequest(file_id=file.id))
    assert (found[0].field, found[0].reason) == ("file_id", "file_not_found")


def test_an_upload_goes_on_where_it_was_broken_off(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "PART_BYTES", 2**20)
    data = os.urandom(5 * 2**20 + 1)
    begun = start(data)
    sent = threading.Event()

    def broken() -> Iterator[files_pb2.UploadFileRequest]:
        yield files_pb2.UploadFileRequest(start=begun)
        yield from chunks(data[: 3 * 2**20 + 17])
        sent.set()
        time.sleep(30)

    call = client.files.UploadFile.future(broken())
    upload_id = dict(call.initial_metadata())["x-upload-id"]
    assert sent.wait(10)
    until(lambda: status(client, upload_id).received_bytes == 3 * 2**20)
    call.cancel()
    facts = status(client, upload_id)
    assert (facts.status, facts.bytes, facts.HasField("file")) == (files_pb2.UPLOAD_STATUS_PENDING, len(data), False)
    begun.upload_id = upload_id
    asked = client.files.UploadFile(iter([files_pb2.UploadFileRequest(start=begun)]))
    assert (asked.upload_id, asked.received_bytes, asked.HasField("file")) == (upload_id, 3 * 2**20, False)
    answer = send(client, begun, data, asked.received_bytes)
    assert (answer.file.bytes, answer.file.sha256) == (len(data), sha256(data))
    facts = status(client, upload_id)
    assert (facts.status, facts.received_bytes, facts.file.id) == (files_pb2.UPLOAD_STATUS_COMPLETED, len(data), answer.file.id)
    repeated = client.files.UploadFile(iter([files_pb2.UploadFileRequest(start=begun)]))
    assert repeated.file == answer.file


def test_an_upload_in_two_calls_that_both_end(client: Client) -> None:
    data = os.urandom(1000)
    begun = start(data)
    half = client.files.UploadFile(iter([files_pb2.UploadFileRequest(start=begun), *chunks(data[:400])]))
    assert (half.received_bytes, half.HasField("file")) == (400, False)
    begun.upload_id = half.upload_id
    assert send(client, begun, data, 400).file.sha256 == sha256(data)


def test_bytes_of_another_hash_are_not_kept(client: Client) -> None:
    files = len(client.files.ListFiles(files_pb2.ListFilesRequest()).files)
    begun = start(b"what was meant")
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as found:
        send(client, begun, b"what was sent!")
    assert found[0].field == "sha256"
    assert len(client.files.ListFiles(files_pb2.ListFilesRequest()).files) == files


def test_an_upload_that_is_wrong(client: Client) -> None:
    begun = start(b"0123456789")

    def wrong(field: str, code: grpc.StatusCode, *messages: files_pb2.UploadFileRequest, **changes: Any) -> None:
        first = files_pb2.UploadStart()
        first.CopyFrom(begun)
        first.MergeFrom(files_pb2.UploadStart(**changes))
        with refused(code) as found:
            client.files.UploadFile(iter([files_pb2.UploadFileRequest(start=first), *messages]))
        assert found[0].field == field

    def chunk(offset: int, data: bytes) -> files_pb2.UploadFileRequest:
        return files_pb2.UploadFileRequest(chunk=types_pb2.Chunk(offset=offset, data=data))

    bad = grpc.StatusCode.INVALID_ARGUMENT
    wrong("sha256", bad, sha256="ABC")
    wrong("purpose", bad, purpose="vision")
    wrong("bytes", bad, bytes=2**40)
    wrong("chunk.offset", bad, chunk(1, b"0"))
    wrong("chunk.offset", bad, chunk(0, b"01"), chunk(3, b"3"))
    wrong("bytes", bad, chunk(0, b"0123456789x"))
    wrong("chunk", bad, files_pb2.UploadFileRequest(start=begun))
    wrong("chunk.data", grpc.StatusCode.RESOURCE_EXHAUSTED, chunk(0, bytes(2**20 + 1)))
    wrong("upload_id", grpc.StatusCode.NOT_FOUND, upload_id="upload_unknown")
    wrong("upload_id", grpc.StatusCode.NOT_FOUND, upload_id="../x")
    with refused(bad) as found:
        client.files.UploadFile(iter([chunk(0, b"0")]))
    assert found[0].field == "start"
    with refused(bad):
        client.files.UploadFile(iter([]))
    half = client.files.UploadFile(iter([files_pb2.UploadFileRequest(start=begun)]))
    wrong("upload_id", bad, upload_id=half.upload_id, bytes=11)


def test_a_file_may_go_by_itself(client: Client) -> None:
    expires = duration_pb2.Duration(seconds=7200)
    file = upload(client, TINY_ROWS, expires_after=expires).file
    assert abs(file.expire_time.ToSeconds() - file.create_time.ToSeconds() - 7200) <= 1
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        upload(client, TINY_ROWS, expires_after=duration_pb2.Duration(seconds=1))
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        upload(client, TINY_ROWS, expires_after=duration_pb2.Duration(seconds=315_576_000_001))


def test_files_are_listed_in_pages(stranger: Client) -> None:
    made = [upload(stranger, TINY_ROWS, filename=f"{n}.jsonl").file.id for n in range(3)]
    first = stranger.files.ListFiles(files_pb2.ListFilesRequest(limit=2))
    assert ([file.id for file in first.files], first.has_more) == (made[:0:-1], True)
    rest = stranger.files.ListFiles(files_pb2.ListFilesRequest(limit=2, after=first.files[-1].id, purpose="fine-tune"))
    assert ([file.id for file in rest.files], rest.has_more) == (made[:1], False)
    oldest = stranger.files.ListFiles(files_pb2.ListFilesRequest(order=files_pb2.FILE_ORDER_ASCENDING, limit=1))
    assert [file.id for file in oldest.files] == made[:1]
    for bad, field in (({"limit": 10_001}, "limit"), ({"order": 9}, "order"), ({"purpose": "A"}, "purpose"), ({"after": "\n"}, "after")):
        with refused(grpc.StatusCode.INVALID_ARGUMENT) as found:
            stranger.files.ListFiles(files_pb2.ListFilesRequest(**bad))
        assert found[0].field == field


def test_a_dataset_is_validated(client: Client, file_id: str) -> None:
    request = files_pb2.ValidateDatasetRequest(file_id=file_id, model=MODEL, preview=2)
    report = client.files.ValidateDataset(request).report
    assert report.ok
    assert report.rows == report.examples > 100
    assert report.failure == reports_pb2.CHECK_FAILURE_UNSPECIFIED
    assert report.param == reports_pb2.DATASET_PURPOSE_TRAINING_FILE
    assert [any(part.trained for part in row.parts) for row in report.preview] == [True, True]
    faulty = upload(client, b"not json\n" + TINY_ROWS).file.id
    report = client.files.ValidateDataset(files_pb2.ValidateDatasetRequest(file_id=faulty, model=MODEL)).report
    assert (report.ok, report.fault_count, report.faults[0].line, report.faults[0].rule) == (False, 1, 1, "bad_json")
    assert dict(report.faults_by_rule) == {"bad_json": 1}
    for bad, field in (
        ({"model": ""}, "model"),
        ({"method": "magic"}, "method"),
        ({"preview": 6}, "preview"),
        ({"purpose": 9}, "purpose"),
        ({"training": types_pb2.TrainingSpec(max_length=131_073)}, "training.max_length"),
    ):
        with refused(grpc.StatusCode.INVALID_ARGUMENT) as found:
            client.files.ValidateDataset(files_pb2.ValidateDatasetRequest(**{"file_id": file_id, "model": MODEL} | bad))
        assert found[0].field == field


# Models


def test_models(client: Client, finished: Finished) -> None:
    models = {model.id: model for model in client.models.ListModels(models_pb2.ListModelsRequest()).models}
    assert {MODEL, finished.model} <= models.keys()
    assert models[finished.model].job_id == finished.job_id
    assert (models[MODEL].base_model, models[MODEL].HasField("job_id")) == (MODEL, False)
    assert client.models.GetModel(models_pb2.GetModelRequest(model=finished.model)).model == models[finished.model]
    with refused(grpc.StatusCode.PERMISSION_DENIED):
        client.models.DeleteModel(models_pb2.DeleteModelRequest(model=MODEL))
    for name in ("", "nobody", "a b", "\0", "x" * 600):
        with refused(grpc.StatusCode.NOT_FOUND) as found:
            client.models.GetModel(models_pb2.GetModelRequest(model=name))
        assert found[0].field == "model"
