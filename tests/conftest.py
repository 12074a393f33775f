"""What tests share: the real parts (model, PostgreSQL, S3), each started once."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator

import pytest

from tests.pg import new_database, running_postgres
from tests.seaweed import BUCKET, SeaweedFS, running_seaweed

# Before anything loads OpenMP: threads that spin while they wait take the processor from the servers that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A shell that starts the suite in the background has it ignore Ctrl-C, and so would every command that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def _postgres() -> Iterator[str]:
    with running_postgres() as url:
        yield url


@pytest.fixture
def postgres_url(_postgres: str) -> str:
    """A database of its own for each test."""
    return new_database(_postgres)


@pytest.fixture(scope="session")
def seaweed() -> Iterator[SeaweedFS]:
    """The S3 server that tests share; one that kills it starts its own."""
    with running_seaweed() as server:
        yield server


@pytest.fixture
def s3_url(seaweed: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix of its own for each test, and the environment in which boto3 finds the server."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{secrets.token_hex(6)}"
