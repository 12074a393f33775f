"""One gateway for all tests of the public gRPC API, a client of it, and one of another project."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from protos.tunesmith.v1 import types_pb2
from service.runtime import Capacity
from tests.gateway import Gateway, running_gateway
from tests.rpc_calls import (
    TWEETS,
    Finished,
    create,
    finish,
    job_of,
    until,
    upload,
)
from tests.rpc_client import Client, connected


@pytest.fixture(scope="package")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running_gateway(tmp_path_factory.mktemp("rpc"), cancel_grace=timedelta(seconds=0.2)) as running:
        running.runtime.total = Capacity(cpus=64, gpus=0, nodes=32)
        yield running


@pytest.fixture(scope="package")
def client(gateway: Gateway) -> Iterator[Client]:
    with connected(gateway.rpc_address, gateway.key) as connection:
        yield connection


@pytest.fixture(scope="package")
def stranger(gateway: Gateway) -> Iterator[Client]:
    """A client of another project."""
    with connected(gateway.rpc_address, gateway.other_key()) as connection:
        yield connection


@pytest.fixture(scope="package")
def file_id(client: Client) -> str:
    return upload(client, TWEETS.read_bytes()).file.id


@pytest.fixture(scope="package")
def finished(gateway: Gateway, client: Client, file_id: str) -> Finished:
    job_id = create(client, file_id).id
    artifact = finish(gateway, job_id)
    until(lambda: job_of(client, job_id).status == types_pb2.JOB_STATUS_SUCCEEDED)
    return Finished(job_id, job_of(client, job_id).tuned_model, artifact)
