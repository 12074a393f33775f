"""Sites for faults; see prepared.py and process.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.prepared import Prepared, prepare
from tests.faults.process import Site
from tests.pg import new_database


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Made once; each site gets a copy."""
    return prepare(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def new_site(prepared: Prepared, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Makes the test's site on the database that is named, SQLite for None."""
    made: list[Site] = []

    def make(database_url: str | None = None, **settings: str) -> Site:
        made.append(prepared.site(tmp_path, database_url, **settings))
        return made[-1]

    yield make
    for site in made:
        site.end()


@pytest.fixture(params=["sqlite", "postgresql"])
def site(request: pytest.FixtureRequest, new_site: Callable[..., Site]) -> Site:
    """A site on each database."""
    return new_site(request.getfixturevalue("postgres_url") if request.param == "postgresql" else None)


@pytest.fixture
def new_postgres_database(_postgres: str) -> Callable[[], str]:
    """Makes an empty database at each call."""
    return lambda: new_database(_postgres)
