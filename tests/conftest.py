"""What tests share: the real parts (model, PostgreSQL), each started once."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from tests.pg import running_postgres


@pytest.fixture(scope="session")
def _postgres() -> Iterator[str]:
    with running_postgres() as url:
        yield url


@pytest.fixture
def postgres_url(_postgres: str) -> str:
    """A database of its own for each test."""
    name = f"test_{secrets.token_hex(6)}"
    engine = sa.create_engine(_postgres, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return _postgres.rpartition("/")[0] + f"/{name}"
