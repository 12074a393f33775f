"""The environment is read in one place, and what it says is checked there."""

from __future__ import annotations

import ast
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

import service
from service.settings import Settings


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"TUNESMITH_{name.upper()}", raising=False)


def test_the_defaults_need_no_other_service(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert settings.host == "127.0.0.1"
    assert settings.ray_address is None
    assert settings.database == f"sqlite+aiosqlite:///{tmp_path}/tunesmith.db"
    assert settings.storage == f"file://{tmp_path}/objects"
    assert settings.spool_dir == tmp_path / "spool"


def test_a_relative_data_dir_gives_addresses_that_hold_in_any_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(data_dir=Path("here"))
    assert settings.database.endswith(f"{tmp_path}/here/tunesmith.db")
    assert settings.storage == f"file://{tmp_path}/here/objects"


def test_every_setting_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", "postgresql+psycopg://db/tunesmith")
    monkeypatch.setenv("TUNESMITH_STORAGE_URL", "s3://bucket/prefix")
    monkeypatch.setenv("TUNESMITH_RETRY_BACKOFF", "PT0.5S")
    monkeypatch.setenv("TUNESMITH_PORT", "0")
    settings = Settings()
    assert settings.database == "postgresql+psycopg://db/tunesmith"
    assert settings.storage == "s3://bucket/prefix"
    assert settings.retry_backoff == timedelta(seconds=0.5)
    assert settings.port == 0


def test_the_token_of_a_cluster_is_not_shown() -> None:
    settings = Settings(ray_address="http://ray:8265", ray_token=SecretStr("very-secret"))
    assert "very-secret" not in repr(settings)
    assert "very-secret" not in str(settings.model_dump())


@pytest.mark.parametrize(("name", "value"), [("PORT", "65536"), ("PORT", "-1"), ("MAX_BODY_BYTES", "12"), ("LEASE_TTL", "soon")])
def test_a_setting_out_of_its_bounds_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"TUNESMITH_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_nobody_else_reads_a_setting_from_the_environment() -> None:
    """`os.environ` and `os.getenv` with a TUNESMITH_ name appear in settings.py only."""
    readers: list[str] = []
    for path in Path(service.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call | ast.Subscript):
                text = ast.unparse(node)
                if text.startswith(("os.environ", "os.getenv")) and "'TUNESMITH_" in text:
                    readers.append(f"{path.name}: {text}")
    assert readers == []
