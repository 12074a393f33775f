"""What holds for every gRPC method: keys, scopes, foreign and impossible ids; then the services that stand beside them."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from protos.tunesmith.v1 import files_pb2, jobs_pb2, models_pb2, runs_pb2, types_pb2
from tests.gateway import MODEL, Gateway
from tests.rpc_calls import (
    Finished,
    create,
    job_of,
    spec_of,
    start,
    until,
)
from tests.rpc_client import Client, connected, refused

SERVICES = [(jobs_pb2, "Jobs"), (files_pb2, "Files"), (models_pb2, "Models")]
METHODS: list[MethodDescriptor] = [method for pb, name in SERVICES for method in pb.DESCRIPTOR.services_by_name[name].methods]


def names_of(method: MethodDescriptor) -> set[str]:
    return {field.name for field in method.input_type.fields}


def is_streaming(method: MethodDescriptor) -> tuple[bool, bool]:
    return method.client_streaming, method.server_streaming


def call(channel: grpc.Channel, method: MethodDescriptor, request: Any, key: str | None = None) -> Any:
    """The method, whatever its kind, with one message; the answer, or the list of them."""
    kinds = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }
    stub = kinds[is_streaming(method)](
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    metadata = [] if key is None else [("authorization", f"Bearer {key}")]
    answer = stub(iter([request]) if method.client_streaming else request, metadata=metadata, timeout=20)
    return list(answer) if method.server_streaming else answer


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("key", [None, "nonsense", "ts_0123456789ab_" + "0" * 64 + "_00000000"])
def test_no_method_answers_without_a_key(gateway: Gateway, client: Client, method: MethodDescriptor, key: str | None) -> None:
    with refused(grpc.StatusCode.UNAUTHENTICATED) as found:
        call(client.channel, method, GetMessageClass(method.input_type)(), key)
    assert found[0].reason == "invalid_api_key"


READS = {"GetJob", "ListJobs", "ListCheckpoints", "ListArtifacts", "DownloadArtifact", "WatchJob"}
READS |= {"GetUpload", "GetFile", "ListFiles", "DownloadFile", "ListModels", "GetModel"}


@pytest.fixture(scope="module")
def keys(gateway: Gateway) -> dict[str, str]:
    """Keys of a project of their own, by the one scope they have."""
    return {scope: gateway.other_key((scope,)) for scope in ("read", "write")}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_needs_its_scope(client: Client, keys: dict[str, str], method: MethodDescriptor) -> None:
    key = keys["write" if method.name in READS else "read"]
    with refused(grpc.StatusCode.PERMISSION_DENIED) as found:
        call(client.channel, method, request_of(method, "unknown"), key)
    assert found[0].reason == "permission_denied"


def request_of(method: MethodDescriptor, name: str) -> Any:
    """A request of the method that would do, were there a thing of this name."""
    request = GetMessageClass(method.input_type)()
    fields = names_of(method)
    for field in fields & {"job_id", "file_id", "upload_id", "model", "name"}:
        setattr(request, field, name)
    if method.name == "ValidateDataset":
        request.model = MODEL
    if "spec" in fields:
        request.spec.CopyFrom(spec_of(name))
    if method.name == "UploadFile":
        request.start.CopyFrom(start(b"x"))
    return request


@pytest.mark.parametrize("method", [m for m in METHODS if not m.name.startswith("List") or "job_id" in names_of(m)], ids=lambda m: m.name)
def test_a_foreign_id_answers_as_an_unknown_one(
    client: Client, stranger: Client, finished: Finished, file_id: str, method: MethodDescriptor
) -> None:
    begun = start(b"x")
    upload_id = client.files.UploadFile(iter([files_pb2.UploadFileRequest(start=begun)])).upload_id
    foreign = {"job_id": finished.job_id, "file_id": file_id, "upload_id": upload_id, "model": finished.model}
    said = []
    for ids in (foreign, {name: value[:-4] + "0000" for name, value in foreign.items()}):
        request = request_of(method, "metrics.csv")
        for name in foreign.keys() & names_of(method):
            if not (method.name == "ValidateDataset" and name == "model"):
                setattr(request, name, ids[name])
        if method.name == "UploadFile":
            request.start.upload_id = ids["upload_id"]
        if "spec" in names_of(method):
            request.spec.training_file = ids["file_id"]
        wanted = grpc.StatusCode.INVALID_ARGUMENT if "spec" in names_of(method) else grpc.StatusCode.NOT_FOUND
        with refused(wanted) as found:
            call(stranger.keyed, method, request)
        message = found[0].message
        for value in ids.values():
            message = message.replace(value, "…")
        said.append((found[0].code, message, found[0].reason, found[0].field))
    assert said[0] == said[1]


@pytest.mark.parametrize("bad", ["", "../x", "5" * 5000, "a\0b", "ü", "a b", "x" * 129])
@pytest.mark.parametrize("method", [m for m in METHODS if {"job_id", "file_id", "upload_id"} & names_of(m)], ids=lambda m: m.name)
def test_an_id_that_none_could_have_is_not_found(client: Client, method: MethodDescriptor, bad: str) -> None:
    request = request_of(method, "metrics.csv")
    [name] = {"job_id", "file_id", "upload_id"} & names_of(method)
    setattr(request, name, bad)
    with refused(grpc.StatusCode.NOT_FOUND) as found:
        call(client.keyed, method, request)
    assert found[0].field == name


# Runs, health, reflection


def test_runs_take_only_the_token_of_a_run(gateway: Gateway, client: Client, finished: Finished) -> None:
    request = runs_pb2.ReportRequest(job_id=finished.job_id, epoch=1)
    with refused(grpc.StatusCode.UNAUTHENTICATED):
        client.runs.Report(request)
    with connected(gateway.rpc_address, "wrong") as worker, refused(grpc.StatusCode.UNAUTHENTICATED):
        worker.runs.Report(request)


def test_a_run_whose_job_went_on_is_stale(gateway: Gateway, client: Client, file_id: str) -> None:
    job_id = create(client, file_id).id
    until(lambda: f"{job_id}-1" in gateway.runtime.runs)
    token = gateway.parts.storage.get(f"runs/{job_id}/1/token").decode()
    client.jobs.CancelJob(jobs_pb2.CancelJobRequest(job_id=job_id))
    until(lambda: job_of(client, job_id).status == types_pb2.JOB_STATUS_CANCELLED)
    with connected(gateway.rpc_address, token) as worker, refused(grpc.StatusCode.FAILED_PRECONDITION) as found:
        worker.runs.Report(runs_pb2.ReportRequest(job_id=job_id, epoch=1))
    assert found[0].reason == "stale"


def test_health_follows_readiness_and_needs_no_key(gateway: Gateway, client: Client) -> None:
    names = ["", "tunesmith.v1.Jobs", "tunesmith.v1.Files", "tunesmith.v1.Models", "tunesmith.v1.Runs"]
    serving, away = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    for name in names:
        assert client.health.Check(health_pb2.HealthCheckRequest(service=name)).status == serving
    assert set(client.health.List(health_pb2.HealthListRequest()).statuses) == set(names)
    with refused(grpc.StatusCode.NOT_FOUND):
        client.health.Check(health_pb2.HealthCheckRequest(service="nobody"))
    watch = client.health.Watch(health_pb2.HealthCheckRequest(service="tunesmith.v1.Jobs"), timeout=30)
    assert next(watch).status == serving
    gateway.runtime.away = True
    try:
        assert next(watch).status == away
        assert client.health.Check(health_pb2.HealthCheckRequest()).status == away
    finally:
        gateway.runtime.away = False
    assert next(watch).status == serving
    watch.cancel()
    unknown = client.health.Watch(health_pb2.HealthCheckRequest(service="nobody"))
    assert next(unknown).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    unknown.cancel()


def test_reflection_needs_no_key_and_describes_every_method(client: Client) -> None:
    database = ProtoReflectionDescriptorDatabase(client.channel)
    assert {"tunesmith.v1.Jobs", "tunesmith.v1.Files", "tunesmith.v1.Models", "tunesmith.v1.Runs"} <= set(database.get_services())
    described = database.FindFileContainingSymbol("tunesmith.v1.Jobs")
    assert [method.name for method in described.service[0].method] == [m.name for m in METHODS if m.containing_service.name == "Jobs"]
