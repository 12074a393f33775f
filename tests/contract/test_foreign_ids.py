"""Another project's things answer exactly as things that never were. Generated from OpenAPI: a new route is covered by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fake_run import FakeRun
from tests.gateway import Gateway, running_gateway

TWEETS = Path(__file__).parents[2] / "examples" / "tweets"
BODIES: dict[str, Any] = {
    "/v1/organization/projects/{project_id}": {"name": "find"},
    "/v1/organization/projects/{project_id}/api_keys": {"name": "ci"},
    "/v1/organization/projects/{project_id}/api_keys/{api_key_id}": {"name": "ci"},
    "/v1/organization/projects/{project_id}/api_keys/{api_key_id}/rotate": {},
    "/v1/webhook_endpoints/{webhook_endpoint_id}": {"name": "ci"},
    "/v1/uploads/{upload_id}/complete": {"part_ids": []},
    "/v1/files/{file_id}/check": {"model": "tiny"},
    "/v1/fine_tuning/checkpoints/{fine_tuned_model_checkpoint}/permissions": {"project_ids": ["proj_1"]},
}
"""Bodies that the routes with a path parameter want, by route; valid, so that only the id can be refused."""


@dataclass(frozen=True)
class World:
    """A project with one of everything, and a key of another project."""

    gateway: Gateway
    owned: dict[str, str]
    """A real value of each path parameter."""
    unknown: dict[str, str]
    """A value of the same form that names nothing."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_gateway(tmp_path_factory.mktemp("foreign"), webhook_allow_private=True) as gateway:
        client = gateway.client()
        file = client.files.create(file=TWEETS / "tweets-test.jsonl", purpose="fine-tune")
        job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id)
        run = FakeRun.of(gateway, job.id)
        run.start()
        run.step(1)
        run.checkpoint(1)
        run.finish()
        model = client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model
        assert model is not None
        owned = {"file_id": file.id, "fine_tuning_job_id": job.id, "model": model, "name": "adapter/adapter_config.json"}
        owned |= _others(gateway, model)
        unknown = {name: _other(value) for name, value in owned.items() if name != "name"} | {"name": owned["name"]}
        yield World(gateway, owned, unknown)


def _others(gateway: Gateway, model: str) -> dict[str, str]:
    """Things that only their own routes make."""
    with gateway.http() as http:

        def made(path: str, body: dict[str, Any]) -> str:
            answer = http.post(path, json=body)
            assert answer.status_code == 200, answer.text
            return answer.json()["id"]

        project = made("/v1/organization/projects", {"name": "search"})
        key = made(f"/v1/organization/projects/{project}/api_keys", {"name": "ci"})
        upload = made("/v1/uploads", {"filename": "rows.jsonl", "purpose": "fine-tune", "bytes": 3, "mime_type": "text/plain"})
        webhook = made("/v1/webhook_endpoints", {"url": "https://127.0.0.1/hook"})
        permissions = http.post(f"/v1/fine_tuning/checkpoints/{model}/permissions", json={"project_ids": [project]}).json()["data"]
        ids = {"project_id": project, "api_key_id": key, "webhook_endpoint_id": webhook, "upload_id": upload}
        return ids | {"fine_tuned_model_checkpoint": model, "permission_id": permissions[0]["id"]}


def _other(value: str) -> str:
    """The same form, another last digit."""
    return value[:-1] + ("0" if value[-1] != "0" else "1")


def routes(world: World) -> list[tuple[str, str]]:
    """Every method and path that names something."""
    paths = httpx.get(f"{world.gateway.url}/openapi.json").json()["paths"]
    return [(method.upper(), path) for path, operations in paths.items() if "{" in path for method in operations]


def ask(http: httpx.Client, method: str, path: str, ids: dict[str, str]) -> tuple[int, str]:
    """Status and body, with the ids taken out of it."""
    url = path
    for name, value in ids.items():
        url = url.replace(f"{{{name}}}", value)
    assert "{" not in url, f"{path} has a parameter that this test has no value for"
    answer = http.request(method, url, json=BODIES.get(path))
    body = answer.text
    for name, value in ids.items():
        body = body.replace(value, name)
    return answer.status_code, body


def test_a_foreign_id_answers_as_an_unknown_one(world: World) -> None:
    found = routes(world)
    assert len(found) > 10
    with world.gateway.http(world.gateway.other_key(("read", "write", "admin"), "org-elsewhere")) as stranger:
        for method, path in found:
            foreign = ask(stranger, method, path, world.owned)
            assert foreign == ask(stranger, method, path, world.unknown), f"{method} {path}"
            assert 400 <= foreign[0] < 500, f"{method} {path}"


def test_the_owner_does_find_them(world: World) -> None:
    """Otherwise the comparison above would prove nothing: every GET of the owner's is answered."""
    with world.gateway.http() as owner:
        for method, path in routes(world):
            if method == "GET":
                assert ask(owner, method, path, world.owned)[0] == 200, path
