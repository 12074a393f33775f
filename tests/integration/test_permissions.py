"""Models and checkpoints shared with other projects: who sees them, who may download them, and that it ends at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from service import tenancy
from service.runtime import Capacity
from tests.fake_run import FakeRun, in_phase
from tests.gateway import Gateway, running_gateway

TWEETS = Path(__file__).parents[2] / "examples" / "tweets"
CONFIG, WEIGHTS = "adapter/adapter_config.json", "adapter/adapter_model.safetensors"


@dataclass(frozen=True)
class Other:
    """Another project and its client."""

    project_id: str
    key: str
    client: OpenAI


@dataclass(frozen=True)
class Tuned:
    """A job that succeeded: its model, and its checkpoints by step."""

    job_id: str
    model: str
    checkpoints: dict[int, str]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running_gateway(tmp_path_factory.mktemp("gateway")) as running:
        running.runtime.total = Capacity(cpus=1000, gpus=0, nodes=500)
        yield running


@pytest.fixture
def client(gateway: Gateway) -> OpenAI:
    return gateway.client()


def other_project(gateway: Gateway, *, organization_id: str | None = None, scopes: tuple[str, ...] = ("read", "write")) -> Other:
    async def make() -> tuple[str, str]:
        key_id, key, digest = tenancy.new_key()
        project_id = f"proj_{key_id}"
        async with gateway.parts.store.begin() as tx:
            await tx.insert_project(project_id, organization_id or owner, "other")
            await tx.insert_key(key_id, project_id, "other", digest, list(scopes))
        return project_id, key

    owner = gateway.organization_id
    project_id, key = gateway.do(make())
    return Other(project_id, key, gateway.client(key))


@pytest.fixture
def other(gateway: Gateway) -> Other:
    return other_project(gateway)


def create(client: OpenAI, **ours: Any) -> str:
    file = client.files.create(file=TWEETS / "tweets-test.jsonl", purpose="fine-tune")
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 50}}}
    return client.fine_tuning.jobs.create(model="tiny", training_file=file.id, seed=1, method=method, extra_body={"tunesmith": ours}).id


@pytest.fixture
def tuned(gateway: Gateway) -> Tuned:
    return make_tuned(gateway)


def make_tuned(gateway: Gateway) -> Tuned:
    client = gateway.client()
    job_id = create(client)
    run = FakeRun.of(gateway, job_id)
    run.start()
    for step in (1, 2, 4):
        run.checkpoint(step)
    run.finish()
    model = in_phase(client, job_id, "succeeded")["fine_tuned_model"]
    listed = client.fine_tuning.jobs.checkpoints.list(job_id)
    return Tuned(job_id, model, {checkpoint.step_number: checkpoint.fine_tuned_model_checkpoint for checkpoint in listed})


def download(gateway: Gateway, key: str, model: str, name: str = WEIGHTS) -> tuple[int, bytes]:
    with gateway.http(key) as http:
        answer = http.get(f"/v1/models/{model}/artifacts/{name}")
    return answer.status_code, answer.content


def artifacts(client: OpenAI, model: str) -> list[str]:
    return [item["name"] for item in client.get(f"/models/{model}/artifacts", cast_to=dict[str, Any])["data"]]


def permissions(client: OpenAI) -> Any:
    return client.fine_tuning.checkpoints.permissions


def test_the_owner_finds_models_and_checkpoints_by_name(gateway: Gateway, client: OpenAI, tuned: Tuned) -> None:
    assert tuned.checkpoints == {1: f"{tuned.model}:ckpt-step-1", 2: f"{tuned.model}:ckpt-step-2", 4: tuned.model}
    assert artifacts(client, tuned.model) == [CONFIG, WEIGHTS, "metrics.csv"]
    assert artifacts(client, tuned.checkpoints[2]) == [CONFIG, WEIGHTS]
    assert client.models.retrieve(tuned.checkpoints[2]).owned_by == gateway.organization_id
    assert download(gateway, gateway.key, tuned.model) == (200, b"the weights")
    assert download(gateway, gateway.key, tuned.checkpoints[2]) == (200, b"weights at 2")
    assert download(gateway, gateway.key, tuned.checkpoints[2], "state/cursor.json")[0] == 404
    with pytest.raises(openai.BadRequestError, match="base model"):
        artifacts(client, "tiny")


def test_a_shared_checkpoint_is_seen_and_downloaded_until_it_is_not(gateway: Gateway, client: OpenAI, tuned: Tuned, other: Other) -> None:
    name = tuned.checkpoints[2]
    assert download(gateway, other.key, name)[0] == 404
    (permission,) = permissions(client).create(name, project_ids=[other.project_id]).data
    assert (permission.object, permission.project_id) == ("checkpoint.permission", other.project_id)
    assert permission.id.startswith("cp_")
    assert name in [model.id for model in other.client.models.list()]
    assert other.client.models.retrieve(name).id == name
    assert artifacts(other.client, name) == [CONFIG, WEIGHTS]
    assert download(gateway, other.key, name) == (200, b"weights at 2")
    for unshared in (tuned.model, tuned.checkpoints[1]):
        assert download(gateway, other.key, unshared)[0] == 404
        assert unshared not in [model.id for model in other.client.models.list()]
    for private in (f"/fine_tuning/jobs/{tuned.job_id}", f"/fine_tuning/jobs/{tuned.job_id}/artifacts"):
        with pytest.raises(openai.NotFoundError):
            other.client.get(private, cast_to=dict[str, Any])
    with pytest.raises(openai.PermissionDeniedError):
        other.client.models.delete(name)
    gone = permissions(client).delete(permission.id, fine_tuned_model_checkpoint=name)
    assert (gone.id, gone.object, gone.deleted) == (permission.id, "checkpoint.permission", True)
    assert download(gateway, other.key, name)[0] == 404
    assert name not in [model.id for model in other.client.models.list()]
    with pytest.raises(openai.NotFoundError):
        permissions(client).delete(permission.id, fine_tuned_model_checkpoint=name)


def test_sharing_twice_gives_the_same_permission(client: OpenAI, tuned: Tuned, other: Other) -> None:
    first = permissions(client).create(tuned.model, project_ids=[other.project_id]).data
    again = permissions(client).create(tuned.model, project_ids=[other.project_id, other.project_id]).data
    assert again == first


def test_permissions_page_both_ways(gateway: Gateway, client: OpenAI, tuned: Tuned) -> None:
    projects = [other_project(gateway).project_id for _ in range(5)]
    for project_id in projects:
        permissions(client).create(tuned.model, project_ids=[project_id])
    listed = permissions(client).list(tuned.model, limit=2)
    assert [p.project_id for p in listed] == projects[::-1]
    assert [p.project_id for p in permissions(client).list(tuned.model, limit=2, order="ascending")] == projects
    assert [p.project_id for p in permissions(client).list(tuned.model, project_id=projects[2])] == [projects[2]]
    with pytest.raises(openai.BadRequestError, match="after"):
        permissions(client).list(tuned.model, after="cp_none")


def test_who_may_share_and_with_whom(gateway: Gateway, client: OpenAI, tuned: Tuned, other: Other) -> None:
    writer = gateway.do(_second_key(gateway, ["read", "write"]))
    with pytest.raises(openai.PermissionDeniedError):
        permissions(gateway.client(writer)).create(tuned.model, project_ids=[other.project_id])
    stranger = other_project(gateway, organization_id="org-else")
    for unknown in ("proj_none", stranger.project_id):
        with pytest.raises(openai.BadRequestError, match=f"No such project: '{unknown}'") as refusal:
            permissions(client).create(tuned.model, project_ids=[other.project_id, unknown])
        assert (refusal.value.param, refusal.value.code) == ("project_ids", "project_not_found")
    assert list(permissions(client).list(tuned.model)) == [], "all of them or none"
    administrator = other_project(gateway, scopes=("read", "write", "admin"))
    with pytest.raises(openai.NotFoundError) as foreign:
        permissions(administrator.client).create(tuned.model, project_ids=[administrator.project_id])
    with pytest.raises(openai.NotFoundError) as missing:
        permissions(administrator.client).create("ft:none", project_ids=[administrator.project_id])
    assert str(foreign.value).replace(tuned.model, "ft:none") == str(missing.value)
    permissions(client).create(tuned.model, project_ids=[administrator.project_id])
    with pytest.raises(openai.PermissionDeniedError, match="alone can share it"):
        permissions(administrator.client).create(tuned.model, project_ids=[other.project_id])
    with pytest.raises(openai.PermissionDeniedError):
        permissions(administrator.client).list(tuned.model)


async def _second_key(gateway: Gateway, scopes: list[str]) -> str:
    key_id, key, digest = tenancy.new_key()
    caller = await tenancy.authenticate(gateway.parts.store, gateway.key)
    async with gateway.parts.store.begin() as tx:
        await tx.insert_key(key_id, caller.project_id, "second", digest, scopes)
    return key


def test_nothing_is_left_of_a_deleted_model(gateway: Gateway, client: OpenAI, tuned: Tuned, other: Other) -> None:
    for name in (tuned.model, tuned.checkpoints[1]):
        permissions(client).create(name, project_ids=[other.project_id])
        assert client.models.delete(name).deleted
        for key in (gateway.key, other.key):
            assert download(gateway, key, name)[0] == 404
            with pytest.raises(openai.NotFoundError):
                gateway.client(key).models.retrieve(name)
        with pytest.raises(openai.NotFoundError):
            permissions(client).list(name)
        assert name not in [model.id for model in other.client.models.list()]
    left = client.fine_tuning.jobs.checkpoints.list(tuned.job_id)
    assert [checkpoint.step_number for checkpoint in left] == [2]
    keys = {info.key.rpartition("/checkpoints/")[2] for info in gateway.parts.storage.list(f"runs/{tuned.job_id}/")}
    assert {key.partition("/")[0] for key in keys if key.startswith("step-")} == {"step-2"}
    assert not list(gateway.parts.storage.list(f"models/{tuned.job_id}/"))


def test_a_checkpoint_that_was_pruned_can_be_neither_shared_nor_used(gateway: Gateway, client: OpenAI, other: Other) -> None:
    job_id = create(client, checkpoints={"every_steps": 1, "keep": 1})
    run = FakeRun.of(gateway, job_id)
    run.start()
    prefix = run.checkpoint(1)
    (first,) = [c.fine_tuned_model_checkpoint for c in client.fine_tuning.jobs.checkpoints.list(job_id)]
    permissions(client).create(first, project_ids=[other.project_id])
    with pytest.raises(openai.BadRequestError, match="may go on from this checkpoint"):
        client.models.delete(first)
    gateway.parts.storage.delete(f"{prefix}/manifest.json")  # as a run does that keeps one, before it tells of the next
    for attempt in (
        lambda: permissions(client).create(first, project_ids=[other.project_id]),
        lambda: client.models.retrieve(first),
        lambda: artifacts(other.client, first),
    ):
        with pytest.raises(openai.NotFoundError):
            attempt()
    run.checkpoint(2)
    with pytest.raises(openai.NotFoundError):
        permissions(client).list(first)
    assert first not in [model.id for model in other.client.models.list()]
    client.fine_tuning.jobs.cancel(job_id)
    run.leave()
    in_phase(client, job_id, "cancelled")
    assert list(client.fine_tuning.jobs.checkpoints.list(job_id)) == []


def test_a_permission_follows_the_checkpoint_that_became_the_model(gateway: Gateway, client: OpenAI, other: Other) -> None:
    """Training stopped early: the last checkpoint was not known to be the last when it was shared."""
    job_id = create(client)
    run = FakeRun.of(gateway, job_id)
    run.start()
    run.checkpoint(2)
    (early,) = [c.fine_tuned_model_checkpoint for c in client.fine_tuning.jobs.checkpoints.list(job_id)]
    permissions(client).create(early, project_ids=[other.project_id])
    run.finish()
    model = in_phase(client, job_id, "succeeded")["fine_tuned_model"]
    assert early == f"{model}:ckpt-step-2"
    assert download(gateway, other.key, model) == (200, b"the weights")


def test_the_store_serves_owners_alone(tmp_path: Path, s3_url: str) -> None:
    """A presigned address that was given to another project would outlive its permission."""
    with running_gateway(tmp_path, storage_url=s3_url) as gateway:
        tuned, other = make_tuned(gateway), other_project(gateway)
        permissions(gateway.client()).create(tuned.model, project_ids=[other.project_id])
        assert download(gateway, gateway.key, tuned.model)[0] == 307
        assert download(gateway, other.key, tuned.model) == (200, b"the weights")


@pytest.mark.parametrize("name", ["a%00b", "..%2F..%2Fx", "ft:x%2Fy:org::1", "x" * 600, "permissions", "%20"])
def test_odd_names_are_unknown(gateway: Gateway, name: str) -> None:
    with gateway.http() as http:
        for path in (f"/v1/models/{name}/artifacts", f"/v1/models/{name}/artifacts/a", f"/v1/fine_tuning/checkpoints/{name}/permissions"):
            assert http.get(path).status_code == 404, path
        answer = http.post(f"/v1/fine_tuning/checkpoints/{name}/permissions", json={"project_ids": ["p"]})
        assert answer.status_code == 404
        assert http.delete(f"/v1/fine_tuning/checkpoints/{name}/permissions/cp_1").status_code == 404


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "project_ids"),
        ({"project_ids": []}, "project_ids"),
        ({"project_ids": [1]}, "project_ids[0]"),
        ({"project_ids": ["p"], "project_id": "p"}, "project_id"),
        ({"project_ids": ["p"] * 101}, "project_ids"),
        (["p"], None),
    ],
)
def test_bodies_that_are_refused(gateway: Gateway, body: object, param: str | None) -> None:
    with gateway.http() as http:
        answer = http.post("/v1/fine_tuning/checkpoints/ft:x/permissions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
