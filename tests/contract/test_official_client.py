"""The whole of the official client that speaks of what this service does: each method, strict, synchronous and asynchronous.

A scenario says which methods it drives; the last tests ask the installed client what it has, so that one which is neither driven
nor named in NOT_SERVED fails. What a call does in depth is tested beside its feature; here it is that every answer is of its type.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from service.runtime import Capacity
from tests.chat_endpoint import KEY, chat_endpoint, result
from tests.fake_run import PUBLISHED, FakeRun, in_phase, until
from tests.fault_proxy import answer_lost, fault_proxy
from tests.gateway import MODEL, Gateway, running_gateway
from tests.official_client import Driven, everything, methods
from tests.webhook_receiver import Receiver, receiving

TWEETS = Path(__file__).parents[2] / "examples" / "tweets" / "tweets-test.jsonl"
ROOTS = ("admin", "files", "fine_tuning", "models", "uploads", "webhooks")
"""Resources of the client that this service has to do with; it serves no inference."""
NOT_SERVED = {
    "admin.organization.admin_api_keys": "an admin key is a project's key with that scope",
    "admin.organization.certificates": "mutual TLS is set up by the operator",
    "admin.organization.data_retention": "nothing is kept but what a project keeps",
    "admin.organization.external_keys": "encryption at rest is the object store's",
    "admin.organization.external_storage": "the object store is set up by the operator",
    "admin.organization.groups": "there are no users, only keys",
    "admin.organization.invites": "there are no users, only keys",
    "admin.organization.projects.certificates": "mutual TLS is set up by the operator",
    "admin.organization.projects.data_retention": "nothing is kept but what a project keeps",
    "admin.organization.projects.groups": "there are no users, only keys",
    "admin.organization.projects.hosted_tool_permissions": "there is no inference",
    "admin.organization.projects.model_permissions": "there is no inference",
    "admin.organization.projects.rate_limits": "a project's limits are its quotas",
    "admin.organization.projects.roles": "there are no users, only keys with scopes",
    "admin.organization.projects.service_accounts": "a key needs no account",
    "admin.organization.projects.service_tier_settings": "there is no inference",
    "admin.organization.projects.spend_alerts": "nothing is billed",
    "admin.organization.projects.spend_limit": "nothing is billed",
    "admin.organization.projects.users": "there are no users, only keys",
    "admin.organization.roles": "there are no users, only keys with scopes",
    "admin.organization.spend_alerts": "nothing is billed",
    "admin.organization.spend_limit": "nothing is billed",
    "admin.organization.usage": "a project's usage is in its answer",
    "admin.organization.users": "there are no users, only keys",
    "admin.organization.workload_identity_providers": "there are no users, only keys",
}
"""Methods, or resources with all of theirs, that answer 404 here, and why."""


@dataclass(frozen=True)
class Form:
    """One form of the client on the running gateway, and what stands around it."""

    name: str
    gateway: Gateway
    client: Driven
    lenient: Driven
    """As `client`, but without validation of answers."""
    receiver: Receiver
    make: Callable[..., Any]
    """The class of the client."""


Scenario = Callable[[Form], Awaitable[None]]
SCENARIOS: dict[str, tuple[Scenario, frozenset[str]]] = {}
"""By name: what to do, and the methods that this drives."""


def drives(*names: str) -> Callable[[Scenario], Scenario]:
    """Enter a scenario with the methods that it must have called."""

    def enter(scenario: Scenario) -> Scenario:
        SCENARIOS[scenario.__name__] = (scenario, frozenset(names))
        return scenario

    return enter


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    with receiving(tmp_path_factory.mktemp("receiver")) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Gateway]:
    with chat_endpoint() as endpoint:
        endpoint.says(*result(4))
        settings: dict[str, Any] = {"webhook_allow_private": True, "wandb_enabled": True, "cancel_grace": timedelta(seconds=1)}
        settings |= {"grader_base_url": endpoint.url, "grader_api_key": KEY, "grader_models": "judge"}
        with running_gateway(tmp_path_factory.mktemp("gateway"), **settings) as running:
            running.runtime.total = Capacity(cpus=1000, gpus=0, nodes=500)
            yield running


@pytest.fixture(params=["sync", "async"])
async def form(request: pytest.FixtureRequest, gateway: Gateway, receiver: Receiver) -> AsyncIterator[Form]:
    if request.param == "sync":
        with gateway.client() as client, gateway.client(strict=False) as lenient:
            yield Form("sync", gateway, Driven(client), Driven(lenient), receiver, OpenAI)
    else:
        async with gateway.aclient() as aclient, gateway.aclient(strict=False) as alenient:
            yield Form("async", gateway, Driven(aclient), Driven(alenient), receiver, AsyncOpenAI)


# Files and uploads


@drives(
    *("files.create", "files.retrieve", "files.list", "files.content", "files.retrieve_content"),
    *("files.wait_for_processing", "files.delete"),
)
async def a_file_lives_and_goes(form: Form) -> None:
    files = form.client.files
    file = await files.create(file=TWEETS, purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600})
    assert (file.object, file.filename, file.bytes) == ("file", TWEETS.name, TWEETS.stat().st_size)
    assert file.expires_at == file.created_at + 3600
    assert await files.retrieve(file.id) == file
    assert (await files.wait_for_processing(file.id)).status == "processed"
    assert (await files.content(file.id)).content == TWEETS.read_bytes()
    with pytest.deprecated_call():
        assert await files.retrieve_content(file.id) == TWEETS.read_text()
    made = [file.id] + [(await files.create(file=(f"{n}.jsonl", b"{}\n"), purpose="fine-tune")).id for n in range(5)]
    oldest_first = await everything(await files.list(after=file.id, order="asc", limit=2, purpose="fine-tune"))
    assert [found.id for found in oldest_first] == made[1:]
    first = await files.list(limit=2)
    assert (first.has_more, [found.id for found in (await everything(first))[:6]]) == (True, made[::-1])
    for file_id in made:
        assert (await files.delete(file_id)).deleted
    with pytest.raises(openai.NotFoundError) as gone:
        await files.retrieve(file.id)
    assert (gone.value.code, gone.value.param) == ("file_not_found", "file_id")
    assert gone.value.request_id


@drives("uploads.create", "uploads.parts.create", "uploads.complete", "uploads.cancel", "uploads.upload_file_chunked")
async def a_file_comes_in_parts(form: Form) -> None:
    uploads, data = form.client.uploads, TWEETS.read_bytes()
    md5 = hashlib.md5(data).hexdigest()
    new = {"filename": "rows.jsonl", "purpose": "fine-tune", "bytes": len(data), "mime_type": "text/jsonl"}
    begun = await uploads.create(**new)
    parts = [await uploads.parts.create(begun.id, data=piece) for piece in (data[1000:], data[:1000])]
    assert {part.object for part in parts} == {"upload.part"}
    ids = [part.id for part in parts[::-1]]
    with pytest.raises(openai.BadRequestError):
        await uploads.complete(begun.id, part_ids=ids, md5=hashlib.md5(b"other").hexdigest())
    done = await uploads.complete(begun.id, part_ids=ids, md5=md5)
    assert (done.status, done.file.bytes, done.file.filename) == ("completed", len(data), "rows.jsonl")
    assert (await uploads.cancel((await uploads.create(**new)).id)).status == "cancelled"
    common = {"mime_type": "text/jsonl", "purpose": "fine-tune", "part_size": 10_000, "md5": md5}
    of_path = await uploads.upload_file_chunked(file=TWEETS, **common)
    of_bytes = await uploads.upload_file_chunked(file=data, filename="b.jsonl", bytes=len(data), **common)
    for upload in (done, of_path, of_bytes):
        assert (await form.client.files.content(upload.file.id)).content == data


# Jobs


async def upload(form: Form) -> str:
    return (await form.client.files.create(file=TWEETS, purpose="fine-tune")).id


async def new_job(form: Form, **fields: Any) -> Any:
    """A job of four steps, evaluated and kept at every second."""
    file = await upload(form)
    ours = {"evaluation": {"every_steps": 2}, "checkpoints": {"every_steps": 2}}
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 50}}}
    given = {"model": MODEL, "training_file": file, "validation_file": file, "seed": 1, "method": method, "extra_body": {"tunesmith": ours}}
    return await form.client.fine_tuning.jobs.create(**given | fields)


@drives("fine_tuning.jobs.create", "fine_tuning.jobs.retrieve", "fine_tuning.jobs.list", "fine_tuning.jobs.cancel")
async def jobs_are_made_found_and_cancelled(form: Form) -> None:
    jobs, team = form.client.fine_tuning.jobs, {"team": form.name}
    wandb = {"type": "wandb", "wandb": {"project": "tweets", "name": "n", "entity": None, "tags": ["a"]}}
    made = [await new_job(form, metadata=team | {"n": str(n)}, suffix="mine", integrations=[wandb]) for n in range(5)]
    ids = [job.id for job in made]
    assert (made[0].status, made[0].metadata, made[0].integrations[0].wandb.tags) == ("validating_files", team | {"n": "0"}, ["a"])
    assert (await jobs.retrieve(ids[0])).integrations == made[0].integrations
    first = await jobs.list(limit=2, metadata=team)
    assert ([job.id for job in first.data], first.has_more) == (ids[:2:-1], True)
    assert [job.id for job in await everything(first)] == ids[::-1]
    assert [job.id for job in await everything(await jobs.list(after=ids[2], limit=1, metadata=team))] == ids[1::-1]
    assert [job.id for job in await everything(await jobs.list(metadata=team | {"n": "3"}))] == [ids[3]]
    for job_id in ids:
        await jobs.cancel(job_id)
    for job_id in ids:
        in_phase(form.gateway.client(), job_id, "cancelled")
    assert (await jobs.retrieve(ids[0])).status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        await jobs.cancel(ids[0])


@drives("fine_tuning.jobs.create")
async def one_submission_is_one_job(form: Form) -> None:
    """Under a key, and when the client tries again by itself because the answer was lost."""
    file = await upload(form)
    given = {"model": MODEL, "training_file": file, "metadata": {"idempotent": form.name}}
    key = {"Idempotency-Key": f"key {form.name}"}
    keyed = [(await form.client.fine_tuning.jobs.create(**given, extra_headers=key)).id for _ in range(2)]
    assert keyed[0] == keyed[1]
    with fault_proxy(form.gateway.url) as proxy:
        proxy.harm("POST", answer_lost)
        again = Driven(
            form.make(base_url=f"{proxy.endpoint}/v1", api_key=form.gateway.key, max_retries=1, _strict_response_validation=True)
        )
        retried = (await again.fine_tuning.jobs.create(**given, seed=2)).id
        await again.close()
        assert proxy.seen == ["POST", "POST"]
    listed = await everything(await form.lenient.fine_tuning.jobs.list(metadata=given["metadata"]))
    assert [job.id for job in listed] == [retried, keyed[0]]


@drives("fine_tuning.jobs.create", "fine_tuning.jobs.retrieve", "fine_tuning.jobs.pause", "fine_tuning.jobs.resume")
async def a_job_pauses_and_resumes(form: Form) -> None:
    """`paused` is a status of OpenAI's API but not of the client's types, so that strict it raises: docs/openai.md."""
    jobs, gateway = form.client.fine_tuning.jobs, form.gateway
    job_id = (await new_job(form)).id
    run = FakeRun.of(gateway, job_id)
    run.start()
    assert (await jobs.pause(job_id)).status == "running"
    run.checkpoint(1)
    run.leave()
    in_phase(gateway.client(), job_id, "paused")
    with pytest.raises(openai.APIResponseValidationError):
        await jobs.retrieve(job_id)
    assert (await form.lenient.fine_tuning.jobs.retrieve(job_id)).status == "paused"
    assert (await form.lenient.fine_tuning.jobs.pause(job_id)).status == "paused"
    assert (await jobs.resume(job_id)).status == "queued"
    with pytest.raises(openai.BadRequestError):
        await jobs.resume(job_id)
    again = FakeRun.of(gateway, job_id, epoch=2)
    again.start(resumed_step=1)
    again.finish()
    assert (await jobs.retrieve(job_id)).fine_tuned_model


async def finished_job(form: Form, **fields: Any) -> Any:
    job_id = (await new_job(form, **fields)).id
    run = FakeRun.of(form.gateway, job_id)
    run.start()
    for step in range(1, 5):
        run.step(step)
        if step % 2 == 0:
            run.evaluate(step)
            run.checkpoint(step)
    run.finish()
    return await form.client.fine_tuning.jobs.retrieve(job_id)


@drives(
    *("fine_tuning.jobs.create", "fine_tuning.jobs.retrieve", "fine_tuning.jobs.list_events", "fine_tuning.jobs.checkpoints.list"),
    *("models.list", "models.retrieve", "models.delete", "files.content", "files.retrieve"),
    *(f"fine_tuning.checkpoints.permissions.{name}" for name in ("create", "list", "retrieve", "delete")),
)
async def a_job_ends_in_a_model_that_is_shared(form: Form) -> None:
    job = await finished_job(form, suffix=form.name)
    assert (job.status, job.trained_tokens, job.error, job.estimated_finish) == ("succeeded", 256, None, None)
    events = await everything(await form.client.fine_tuning.jobs.list_events(job.id, limit=3))
    assert (len(events), events[0].message, events[-1].data) == (12, "The job has successfully completed", {})
    assert [event.type for event in events].count("metrics") == 4
    checkpoints = await everything(await form.client.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
    names = [checkpoint.fine_tuned_model_checkpoint for checkpoint in checkpoints]
    assert names == [job.fine_tuned_model, f"{job.fine_tuned_model}:ckpt-step-2"]
    assert checkpoints[0].metrics.full_valid_loss == 0.25
    await _results_are_a_file(form, job)
    await _models_are_found(form, names)
    await _models_are_shared(form, names[1])
    assert [(await form.client.models.delete(name)).deleted for name in names[::-1]] == [True, True]
    with pytest.raises(openai.NotFoundError):
        await form.client.models.retrieve(names[0])


async def _results_are_a_file(form: Form, job: Any) -> None:
    [file_id] = job.result_files
    assert (await form.client.files.retrieve(file_id)).purpose == "fine-tune-results"
    assert (await form.client.files.content(file_id)).content == PUBLISHED["metrics.csv"]


async def _models_are_found(form: Form, names: list[str]) -> None:
    models = form.client.models
    assert {MODEL, names[0]} <= {model.id for model in await everything(await models.list())}
    for name in names:
        assert (await models.retrieve(name)).owned_by == form.gateway.organization_id


async def _models_are_shared(form: Form, name: str) -> None:
    permissions = form.client.fine_tuning.checkpoints.permissions
    projects = [project_of(form.gateway) for _ in range(5)]
    made = await everything(await permissions.create(name, project_ids=projects))
    assert {permission.project_id for permission in made} == set(projects)
    listed = await everything(await permissions.list(name, limit=2))
    assert {permission.id for permission in listed} == {permission.id for permission in made}
    ascending = await everything(await permissions.list(name, limit=2, order="ascending"))
    assert ascending == listed[::-1]
    with pytest.deprecated_call():
        page = await permissions.retrieve(name, limit=2, project_id=projects[0])
    assert ([permission.project_id for permission in page.data], page.has_more) == ([projects[0]], False)
    gone = await permissions.delete(made[0].id, fine_tuned_model_checkpoint=name)
    assert (gone.id, gone.deleted) == (made[0].id, True)


def project_of(gateway: Gateway) -> str:
    return gateway.client().admin.organization.projects.create(name="other").id


# Graders

EXACT: dict[str, Any] = {
    **{"type": "string_check", "name": "exact", "operation": "eq"},
    **{"input": "{{sample.output_text}}", "reference": "{{item.answer}}"},
}
NEAR: dict[str, Any] = EXACT | {"type": "text_similarity", "name": "near", "evaluation_metric": "fuzzy_match"}
del NEAR["operation"]
CODE = {"type": "python", "name": "code", "source": "def grade(sample, item):\n\treturn len(sample['output_text']) / 10"}
JUDGE = {"type": "score_model", "name": "judge", "model": "judge", "input": [{"role": "user", "content": "Rate it."}], "range": [0, 5]}
BOTH = {"type": "multi", "name": "both", "graders": {"exact": EXACT, "near": NEAR}, "calculate_output": "exact + near"}


@drives("fine_tuning.alpha.graders.validate", "fine_tuning.alpha.graders.run")
async def graders_grade(form: Form) -> None:
    graders = form.client.fine_tuning.alpha.graders
    for grader, reward in ((EXACT, 1), (NEAR, 1), (CODE, 0.5), (JUDGE, 4), (BOTH, 2)):
        # The client's types of a multi-grader that is echoed know one grader, not named ones, which the guide has.
        echoed = (
            await graders.validate(grader=grader if grader is not BOTH else BOTH | {"graders": EXACT, "calculate_output": "exact"})
        ).grader
        assert (echoed.type, echoed.name) == (grader["type"], grader["name"])
        graded = await graders.run(grader=grader, model_sample="Paris", item={"answer": "Paris"})
        assert (graded.reward, graded.metadata.type, any(graded.metadata.errors.to_dict().values())) == (reward, grader["type"], False)
    with pytest.raises(openai.BadRequestError) as refused:
        await graders.validate(grader=EXACT | {"operation": "neq"})
    assert refused.value.param == "grader.operation"


# Webhooks


@drives(*(f"webhooks.{name}" for name in ("create", "retrieve", "update", "list", "delete", "test", "event_types.list")))
async def endpoints_are_registered_and_tried(form: Form) -> None:
    webhooks, url = form.client.webhooks, form.receiver.url
    ends = (await webhooks.event_types.list()).data
    assert ends == [f"fine_tuning.job.{end}" for end in ("succeeded", "failed", "cancelled")]
    made = [await webhooks.create(event_types=ends, name=f"w{n}", url=url) for n in range(5)]
    assert (made[0].object, made[0].event_types, made[0].url) == ("webhook_endpoint", ends, url)
    one = await webhooks.retrieve(made[0].id)
    assert one.signing_secret_hint == f"whsec_…{made[0].signing_secret[-4:]}"
    assert (await webhooks.update(one.id, event_types=ends[:1])).to_dict() == one.to_dict() | {"event_types": ends[:1]}
    assert [found.id for found in await everything(await webhooks.list(limit=2))] == [endpoint.id for endpoint in made[::-1]]
    form.receiver.answers[:] = [200, 500]
    tried = [(await webhooks.test(one.id, event_type="fine_tuning.job.failed")).status_code for _ in range(2)]
    assert tried == [200, 500]
    assert [(await webhooks.delete(endpoint.id)).deleted for endpoint in made] == [True] * 5
    with pytest.raises(openai.NotFoundError):
        await webhooks.retrieve(one.id)


@drives(*(f"webhooks.{name}" for name in ("create", "rotate_secret", "test", "delete", "unwrap", "verify_signature")))
async def a_jobs_end_is_told_and_verified(form: Form) -> None:
    """Signed with the secret that was rotated in, and for a day with the one before."""
    webhooks, received = form.client.webhooks, form.receiver.received
    endpoint = await webhooks.create(event_types=["fine_tuning.job.cancelled"], name="ci", url=form.receiver.url)
    kept = await webhooks.rotate_secret(endpoint.id, keep_old_secret_active_for_24_hours=True)
    received.clear()
    job_id = (await new_job(form)).id
    await form.client.fine_tuning.jobs.cancel(job_id)
    [(headers, body)] = until("the webhook", lambda: received)
    for secret in (endpoint.signing_secret, kept.signing_secret):
        event = await webhooks.unwrap(body, headers, secret=secret)
        assert (event.type, event.data.id, event.id) == ("fine_tuning.job.cancelled", job_id, headers["webhook-id"])
    with pytest.raises(openai.InvalidWebhookSignatureError):
        await webhooks.unwrap(body.replace(job_id, "ftjob-other"), headers, secret=kept.signing_secret)
    new = await webhooks.rotate_secret(endpoint.id)
    await webhooks.test(endpoint.id, event_type="fine_tuning.job.succeeded")
    headers, body = received[-1]
    await webhooks.verify_signature(body.encode(), headers, secret=new.signing_secret)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        await webhooks.verify_signature(body.encode(), headers, secret=kept.signing_secret)
    await webhooks.delete(endpoint.id)


# Administration


@drives(*(f"admin.organization.projects.{name}" for name in ("create", "retrieve", "update", "list", "archive")))
async def projects_are_administered(form: Form) -> None:
    projects = form.client.admin.organization.projects
    made = [(await projects.create(name=f"p{n}")).id for n in range(5)]
    assert (await projects.update(made[0], name="renamed")).name == "renamed"
    assert (await projects.retrieve(made[0])).name == "renamed"
    assert [found.id for found in (await everything(await projects.list(limit=2)))[:5]] == made[::-1]
    assert (await projects.archive(made[0])).status == "archived"
    assert made[0] not in [found.id for found in await everything(await projects.list())]


@drives(*(f"admin.organization.projects.api_keys.{name}" for name in ("retrieve", "list", "update", "delete")))
async def keys_are_administered(form: Form) -> None:
    """Keys are made by a call of ours; OpenAI has none for it."""
    keys, project_id = form.client.admin.organization.projects.api_keys, project_of(form.gateway)
    with form.gateway.http() as http:
        body = {"name": "ci", "scopes": ["read"]}
        made = [http.post(f"/v1/organization/projects/{project_id}/api_keys", json=body).json()["id"] for _ in range(5)]
    assert [key.id for key in await everything(await keys.list(project_id, limit=2))] == made[::-1]
    assert (await keys.update(made[0], project_id=project_id, scopes=["read", "write"])).tunesmith["scopes"] == ["read", "write"]
    assert (await keys.retrieve(made[0], project_id=project_id)).object == "organization.project.api_key"
    assert (await keys.delete(made[0], project_id=project_id)).deleted


@drives("admin.organization.audit_logs.list")
async def the_audit_log_is_read(form: Form) -> None:
    """Types that are ours are no words of the client's, so that strict it must ask for those it knows: docs/tenancy.md."""
    made = [project_of(form.gateway) for _ in range(5)]
    page = await form.client.admin.organization.audit_logs.list(event_types=["project.created"], project_ids=made, limit=2)
    assert [entry.project_created.id for entry in await everything(page)] == made[::-1]


# All of it


@pytest.mark.parametrize("name", SCENARIOS)
async def test_in_both_forms(form: Form, name: str) -> None:
    scenario, driven = SCENARIOS[name]
    await scenario(form)
    assert driven <= form.client.called, "the scenario says that it drives more than it does"


@pytest.mark.parametrize("make", [OpenAI, AsyncOpenAI])
def test_every_method_of_the_client_is_driven_or_has_a_reason(make: type[OpenAI] | type[AsyncOpenAI]) -> None:
    client = make(api_key="unused", admin_api_key="unused")
    offered = {name for root in ROOTS for name in methods(getattr(client, root), root)}
    driven = frozenset().union(*(names for _, names in SCENARIOS.values()))
    refused = {name for name in offered if name.startswith(tuple(f"{reason}." for reason in NOT_SERVED))}
    assert len(offered) > 100
    assert offered - refused - driven == set(), "driven by no scenario"
    assert (driven & refused, driven - offered) == (set(), set())
    assert [reason for reason in NOT_SERVED if not any(name.startswith(f"{reason}.") for name in offered)] == []


def test_what_is_not_served_is_told_apart_from_what_is_not_there(gateway: Gateway) -> None:
    with pytest.raises(openai.NotFoundError) as missing, gateway.client() as client:
        client.admin.organization.users.list()
    assert isinstance(missing.value.response.json()["error"], dict)
