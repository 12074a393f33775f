"""`tunesmith models …`: the service's models, the local catalogue, and a pull from a directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli import Cli, cli_of, served_quietly
from tests.fakes import BASE_MODEL
from tests.rest_server import Served
from tests.tiny_model import write_catalogue, write_tiny_model


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served_quietly(tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture
def cli(server: Served, tmp_path: Path) -> Cli:
    return cli_of(server, tmp_path / "key")


def test_list_and_get(server: Served, cli: Cli) -> None:
    job_id = server.http.post("/v1/fine_tuning/jobs", json={"model": BASE_MODEL, "training_file": "file-1"}).json()["id"]
    tuned = server.app.finish(job_id, {}).tuned_model
    lines = [line.split() for line in cli.run("models", "list").stdout.splitlines()]
    assert lines[1][:5] == [BASE_MODEL, "base", "-", BASE_MODEL, "apache-2.0"]
    assert [tuned, "tuned", job_id] == lines[2][:3]
    assert cli.data("models", "get", tuned or "")["tunesmith"]["job_id"] == job_id
    assert "No such model: 'none'" in cli.run("models", "get", "none", exit_code=3).stderr


def test_catalogue_needs_no_service(tmp_path: Path) -> None:
    entries = {entry["id"]: entry for entry in Cli().data("models", "list", "--catalogue", "--data-dir", tmp_path)}
    assert entries[BASE_MODEL]["pulled"] is False
    assert entries[BASE_MODEL]["sources"]
    assert BASE_MODEL in Cli().run("models", "list", "--catalogue", "--data-dir", tmp_path).stdout


def test_pull_of_what_is_not_there(tmp_path: Path) -> None:
    assert f"Did you mean '{BASE_MODEL}'?" in Cli().run("models", "pull", "smollm2-135m", "--data-dir", tmp_path, exit_code=3).stderr
    cli = Cli({"TUNESMITH_CATALOGUE": str(write_catalogue(tmp_path / "catalogue.yaml", tmp_path / "nowhere"))})
    result = cli.run("models", "pull", "tiny", "--data-dir", tmp_path / "data", exit_code=1)
    assert "nowhere" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_catalogue_that_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "catalogue.yaml").write_text("models: 1")
    cli = Cli({"TUNESMITH_CATALOGUE": str(tmp_path / "catalogue.yaml")})
    assert "catalogue.yaml: expected `models:`" in cli.run("models", "list", "--catalogue", exit_code=2).stderr


@pytest.mark.slow
def test_pull(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny")
    cli = Cli(
        {"TUNESMITH_CATALOGUE": str(write_catalogue(tmp_path / "catalogue.yaml", model)), "TUNESMITH_DATA_DIR": str(tmp_path / "data")}
    )
    pulled = cli.data("models", "pull", "tiny")
    assert (pulled["id"], pulled["revision"]) == ("tiny", "1")
    assert (tmp_path / "data/objects" / pulled["prefix"] / "model.safetensors").is_file()
    assert {entry["id"]: entry["pulled"] for entry in cli.data("models", "list", "--catalogue")}["tiny"] is True
    assert cli.data("models", "pull", "tiny") == pulled
