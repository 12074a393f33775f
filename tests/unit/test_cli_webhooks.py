"""`tunesmith webhooks` against a running gateway."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from tests.cli import Cli, cli_with
from tests.fake_run import until
from tests.gateway import running_gateway
from tests.webhook_receiver import Receiver, receiving


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    with receiving(tmp_path_factory.mktemp("receiver")) as running:
        yield running


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Cli]:
    directory = tmp_path_factory.mktemp("gateway")
    with structlog.testing.capture_logs(), running_gateway(directory, model=False, webhook_allow_private=True) as gateway:
        yield cli_with(gateway, gateway.key, directory)


def test_an_endpoint_is_made_tried_rotated_and_deleted(cli: Cli, receiver: Receiver) -> None:
    made = cli.data("webhooks", "create", receiver.url, "--name", "ci", "--event", "failed")
    assert made["event_types"] == ["fine_tuning.job.failed"]
    assert cli.data("webhooks", "list")[0]["id"] == made["id"]
    assert "ci" in cli.run("webhooks", "list").stdout
    assert cli.data("webhooks", "test", made["id"])[0]["status_code"] == 200
    until("the delivery", lambda: cli.data("webhooks", "deliveries", made["id"])[0]["status"] == "delivered")
    assert len(receiver.received) == 1
    rotated = cli.data("webhooks", "rotate", made["id"], "--grace", "1h")
    assert rotated["signing_secret"] != made["signing_secret"]
    cli.run("webhooks", "delete", made["id"])
    assert cli.data("webhooks", "list") == []


def test_a_refused_address_is_one_line(cli: Cli) -> None:
    done = cli.run("webhooks", "create", "http://127.0.0.1/hook", exit_code=2)
    assert "must begin with https://" in done.stderr
