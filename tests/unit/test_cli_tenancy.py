"""`tunesmith projects`, `keys`, `audit` and `organizations` against a running gateway and its database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from service.cli.output import Ended
from service.cli.projects import QUOTAS, quotas_of
from service.cli.times import seconds_of
from service.quotas import Quotas
from tests.cli import Cli, cli_with
from tests.gateway import Gateway, running_gateway


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with structlog.testing.capture_logs(), running_gateway(tmp_path_factory.mktemp("gateway"), model=False) as running:
        yield running


@pytest.fixture
def cli(gateway: Gateway, tmp_path: Path) -> Cli:
    return cli_with(gateway, gateway.key, tmp_path)


def test_projects(cli: Cli) -> None:
    made = cli.run("projects", "create", "search", "--quota", "running_jobs=2", "-o", "json")
    project = json.loads(made.stdout)
    assert f"tunesmith keys create {project['id']}" in made.stderr
    shown = [line.split(maxsplit=2) for line in cli.run("projects", "get", project["id"]).stdout.splitlines()]
    assert ["running", "jobs", "0 of 2"] in shown
    assert ["stored", "bytes", "0 B of unlimited"] in shown
    changed = cli.data("projects", "update", project["id"], "--name", "find", "--quota", "running_jobs=default", "--quota", "gpu_hours=1.5")
    assert (changed["name"], changed["tunesmith"]["limits"]["running_jobs"], changed["tunesmith"]["limits"]["gpu_hours"]) == (
        "find",
        "unlimited",
        1.5,
    )
    assert cli.data("projects", "archive", project["id"])["status"] == "archived"
    assert project["id"] not in cli.run("projects", "list").stdout
    assert project["id"] in cli.run("projects", "list", "--archived").stdout
    assert "No such project" in cli.run("projects", "get", "proj_none", exit_code=3).stderr
    assert "nothing to change" in cli.run("projects", "update", project["id"], exit_code=2).stderr


def test_keys(gateway: Gateway, cli: Cli, tmp_path: Path) -> None:
    project = cli.data("projects", "create", "search")["id"]
    made = cli.data("keys", "create", project, "--name", "ci", "--scope", "read", "--expires-in", "90d")
    assert made["expires_at"] - made["created_at"] == 90 * 86400
    theirs = cli_with(gateway, made["value"], tmp_path)
    assert theirs.data("files", "list") == []
    assert "lacks the scope 'admin'" in theirs.run("projects", "list", exit_code=4).stderr
    rotated = cli.data("keys", "rotate", project, made["id"], "--grace", "1h")
    assert rotated["value"] != made["value"]
    assert theirs.data("files", "list") == []
    table = cli.run("keys", "list", project).stdout.splitlines()
    assert table[1].split()[:3] == [made["id"], "ci", "read"]
    assert cli.run("keys", "revoke", project, made["id"]).stdout.splitlines()[1].split() == [made["id"], "yes"]
    assert cli.run("files", "list", exit_code=0)
    theirs.run("files", "list", exit_code=4)
    assert cli.data("keys", "list", project) == []


def test_a_new_key_is_shown_on_standard_output(cli: Cli) -> None:
    project = cli.data("projects", "create", "search")["id"]
    result = cli.run("keys", "create", project, "--name", "ci")
    assert "ts_" in result.stdout
    assert "ts_" not in result.stderr


def test_whoever_rotates_the_key_in_use_is_told_where_it_lies(gateway: Gateway, cli: Cli, tmp_path: Path) -> None:
    project = cli.data("projects", "create", "search")["id"]
    made = cli.data("keys", "create", project, "--name", "me", "--scope", "admin")
    mine = cli_with(gateway, made["value"], tmp_path)
    assert str(tmp_path / f"key-{made['id']}") in mine.run("keys", "rotate", project, made["id"]).stderr


def test_audit(cli: Cli) -> None:
    project = cli.data("projects", "create", "watched")["id"]
    key = cli.data("keys", "create", project, "--name", "ci")["id"]
    listed = cli.data("audit", "list", "--project", project)
    assert [(entry["type"], entry["tunesmith"]["object_id"]) for entry in listed] == [
        ("api_key.created", key),
        ("project.created", project),
    ]
    assert len(cli.data("audit", "list", "--project", project, "--type", "project.created")) == 1
    assert cli.data("audit", "list", "--since", "2999-01-01") == []
    assert cli.data("audit", "list", "--until", "2001-01-01T00:00:00") == []
    lines = cli.run("audit", "list", "-n", "500").stdout.splitlines()
    assert lines[0].split() == ["TIME", "TYPE", "OBJECT", "PROJECT", "KEY", "REQUEST"]
    assert any("organization.created" in line and "operator" in line for line in lines)


def test_organizations_need_no_key_and_see_nothing_of_each_other(gateway: Gateway, cli: Cli, tmp_path: Path) -> None:
    here = Cli({"TUNESMITH_DATA_DIR": str(gateway.settings.data_dir)})
    made = here.data("organizations", "create", "research")
    assert [row["name"] for row in here.data("organizations", "list")] == ["default", "research"]
    theirs = cli_with(gateway, made["value"], tmp_path)
    assert [row["id"] for row in theirs.data("projects", "list")] == [made["project_id"]]
    again = here.data("organizations", "key", made["organization_id"])
    assert again["project_id"] == made["project_id"]
    assert len(cli_with(gateway, again["value"], tmp_path).data("keys", "list", made["project_id"])) == 2
    assert "No such organization" in here.run("organizations", "key", "org-none", exit_code=3).stderr
    here.run("organizations", "create", "", exit_code=2)
    assert "no stack has been started" in here.run("organizations", "list", "--data-dir", tmp_path / "none", exit_code=5).stderr


def test_the_quotas_of_the_command_are_those_of_the_service() -> None:
    assert set(QUOTAS) == set(Quotas.model_fields)
    assert quotas_of(["gpu_hours=2.5", "stored_bytes=10", "queued_jobs=unlimited", "running_jobs=default"]) == {
        "gpu_hours": 2.5,
        "stored_bytes": 10,
        "queued_jobs": "unlimited",
        "running_jobs": None,
    }


@pytest.mark.parametrize("wrong", ["running_jobs=many", "jobs=1", "running_jobs"])
def test_what_is_no_quota(wrong: str) -> None:
    with pytest.raises(Ended):
        quotas_of([wrong])


def test_durations() -> None:
    assert [seconds_of(text, "--grace") for text in ("45s", "30m", "12h", "90d")] == [45, 1800, 43200, 7776000]
    for wrong in ("90", "d", "-1d", "1.5h", "1w"):
        with pytest.raises(Ended):
            seconds_of(wrong, "--grace")
