"""The gateway that other tests stand on: everything real but Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway import Gateway, running_gateway

TWEETS = Path(__file__).parents[2] / "examples" / "tweets"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running_gateway(tmp_path_factory.mktemp("gateway")) as running:
        yield running


def test_a_posted_job_is_checked_and_launched(gateway: Gateway) -> None:
    client = gateway.client()
    file = client.files.create(file=TWEETS / "tweets-test.jsonl", purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id)
    deadline = time.monotonic() + 60
    while not gateway.runtime.launched and time.monotonic() < deadline:
        time.sleep(0.05)
    [spec] = gateway.runtime.launched
    assert spec.job_id == job.id
    assert client.fine_tuning.jobs.retrieve(job.id).hyperparameters.n_epochs == spec.resolved.n_epochs


def test_another_project_sees_nothing(gateway: Gateway) -> None:
    client = gateway.client(gateway.other_key())
    assert list(client.files.list()) == []
    assert list(client.fine_tuning.jobs.list()) == []
