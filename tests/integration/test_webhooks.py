"""Webhooks from a job's end to a receiver that checks them with the unmodified official client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import InvalidWebhookSignatureError, OpenAI

from service.webhooks import PAUSES, next_attempt
from tests.fake_run import FakeRun, until
from tests.gateway import Gateway, running_gateway
from tests.webhook_receiver import Receiver, receiving

TWEETS = Path(__file__).parents[2] / "examples" / "tweets"


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    with receiving(tmp_path_factory.mktemp("receiver")) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Gateway]:
    with running_gateway(tmp_path_factory.mktemp("webhooks"), webhook_allow_private=True, cancel_grace=timedelta(seconds=1)) as running:
        yield running


@pytest.fixture
def http(gateway: Gateway, receiver: Receiver) -> Iterator[httpx.Client]:
    receiver.received.clear()
    with gateway.http() as client:
        yield client
        for webhook in client.get("/v1/webhook_endpoints").json()["data"]:
            client.delete(f"/v1/webhook_endpoints/{webhook['id']}")


def register(http: httpx.Client, receiver: Receiver, **fields: Any) -> dict[str, Any]:
    answer = http.post("/v1/webhook_endpoints", json={"url": receiver.url, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def deliveries(http: httpx.Client, webhook: dict[str, Any]) -> list[dict[str, Any]]:
    return http.get(f"/v1/webhook_endpoints/{webhook['id']}/deliveries").json()["data"]


def finished_job(gateway: Gateway) -> str:
    client = gateway.client()
    file = client.files.create(file=TWEETS / "tweets-test.jsonl", purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id)
    run = FakeRun.of(gateway, job.id)
    run.start()
    run.finish()
    return job.id


def cancelled_job(gateway: Gateway) -> str:
    client = gateway.client()
    file = client.files.create(file=TWEETS / "tweets-test.jsonl", purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id)
    client.fine_tuning.jobs.cancel(job.id)
    return job.id


def test_the_official_client_unwraps_a_jobs_end(gateway: Gateway, http: httpx.Client, receiver: Receiver) -> None:
    webhook = register(http, receiver, name="ci")
    job_id = finished_job(gateway)
    until("the webhook", lambda: receiver.received)
    headers, body = receiver.received[0]
    client = OpenAI(api_key="unused", webhook_secret=webhook["signing_secret"])
    event = client.webhooks.unwrap(body, headers)
    assert (event.type, event.data.id, event.object) == ("fine_tuning.job.succeeded", job_id, "event")
    assert headers["webhook-id"] == event.id
    with pytest.raises(InvalidWebhookSignatureError):
        client.webhooks.unwrap(body.replace(job_id, "ftjob-other"), headers)
    [delivery] = until("the log", lambda: [one for one in deliveries(http, webhook) if one["status"] == "delivered"])
    assert (delivery["attempts"], delivery["response_status"], delivery["event_id"]) == (1, 200, event.id)
    assert delivery["next_attempt_at"] is None


def test_the_secret_is_shown_once(http: httpx.Client, receiver: Receiver) -> None:
    webhook = register(http, receiver)
    assert webhook["signing_secret"].startswith("whsec_")
    assert http.get(f"/v1/webhook_endpoints/{webhook['id']}").json().get("signing_secret") is None
    assert webhook["signing_secret"] not in http.get("/v1/webhook_endpoints").text


def test_only_what_was_asked_for_is_sent(gateway: Gateway, http: httpx.Client, receiver: Receiver) -> None:
    failures = register(http, receiver, event_types=["fine_tuning.job.failed"])
    all_events = register(http, receiver)
    job_id = cancelled_job(gateway)
    until("the webhook", lambda: receiver.received)
    until("the log", lambda: deliveries(http, all_events)[0]["status"] == "delivered")
    assert json.loads(receiver.received[0][1]) | {"id": 0, "created_at": 0} == {
        "id": 0,
        "object": "event",
        "type": "fine_tuning.job.cancelled",
        "created_at": 0,
        "data": {"id": job_id},
    }
    assert deliveries(http, failures) == []
    assert len(receiver.received) == 1


@pytest.mark.parametrize(("answer", "cause"), [(500, "the endpoint answered HTTP 500"), (307, "redirects are not followed")])
def test_what_is_not_taken_is_sent_again_later(http: httpx.Client, receiver: Receiver, answer: int, cause: str) -> None:
    webhook = register(http, receiver)
    receiver.answers[:] = [answer]
    http.post(f"/v1/webhook_endpoints/{webhook['id']}/test")
    [failed] = until("a failed attempt", lambda: [one for one in deliveries(http, webhook) if one["attempts"] == 1])
    assert (failed["status"], failed["response_status"]) == ("pending", answer)
    assert cause in failed["error"]
    assert failed["next_attempt_at"] > failed["attempted_at"]
    [delivered] = until("another attempt", lambda: [one for one in deliveries(http, webhook) if one["status"] == "delivered"])
    assert delivered["attempts"] == 2
    first, second = receiver.received
    assert first[0]["webhook-id"] == second[0]["webhook-id"]
    assert first[1] == second[1]


def test_a_rotated_secret_is_signed_with_beside_the_old_one(http: httpx.Client, receiver: Receiver) -> None:
    old = register(http, receiver)
    new = http.post(f"/v1/webhook_endpoints/{old['id']}/rotate_secret", json={"tunesmith": {"grace_seconds": 3600}}).json()
    assert new["signing_secret"] != old["signing_secret"]
    http.post(f"/v1/webhook_endpoints/{old['id']}/test")
    until("the test event", lambda: receiver.received)
    headers, body = receiver.received[0]
    for secret in (old["signing_secret"], new["signing_secret"]):
        OpenAI(api_key="unused").webhooks.verify_signature(body, headers, secret=secret)
    http.post(f"/v1/webhook_endpoints/{old['id']}/rotate_secret", json={"tunesmith": {"grace_seconds": 0}})
    http.post(f"/v1/webhook_endpoints/{old['id']}/test")
    until("another test event", lambda: len(receiver.received) == 2)
    headers, body = receiver.received[1]
    with pytest.raises(InvalidWebhookSignatureError):
        OpenAI(api_key="unused").webhooks.verify_signature(body, headers, secret=new["signing_secret"])


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/hook",
        "https://169.254.169.254/latest/meta-data",
        "https://user:pass@127.0.0.1/",
        "https://0x7f.1/",
        "ftp://a.example/",
    ],
)
def test_an_address_that_may_not_be_asked_is_refused(http: httpx.Client, receiver: Receiver, url: str) -> None:
    webhook = register(http, receiver)
    for path in ("/v1/webhook_endpoints", f"/v1/webhook_endpoints/{webhook['id']}"):
        answer = http.post(path, json={"url": url})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "webhook_url_refused")
        assert answer.json()["error"]["param"] == "url"
    assert http.get(f"/v1/webhook_endpoints/{webhook['id']}").json()["url"] == receiver.url


def test_an_endpoint_that_does_not_answer_is_told_of_and_tried_again(http: httpx.Client) -> None:
    webhook = http.post("/v1/webhook_endpoints", json={"url": "https://127.0.0.1:1/hook"}).json()
    refusal = http.post(f"/v1/webhook_endpoints/{webhook['id']}/test", json={"event_type": "fine_tuning.job.failed"})
    assert (refusal.status_code, refusal.json()["error"]["code"]) == (400, "webhook_unreachable")
    [delivery] = deliveries(http, webhook)
    assert (delivery["event_type"], delivery["status"], delivery["attempts"]) == ("fine_tuning.job.failed", "pending", 1)


def test_a_grace_is_said_in_one_way(http: httpx.Client, receiver: Receiver) -> None:
    path = f"/v1/webhook_endpoints/{register(http, receiver)['id']}/rotate_secret"
    both = http.post(path, json={"keep_old_secret_active_for_24_hours": True, "tunesmith": {"grace_seconds": 60}})
    assert (both.status_code, both.json()["error"]["param"]) == (400, "tunesmith.grace_seconds")


def test_what_is_not_named_stays(http: httpx.Client, receiver: Receiver) -> None:
    made = register(http, receiver, name="ci")
    path = f"/v1/webhook_endpoints/{made['id']}"
    before = http.get(path).json()
    assert http.post(path, json={}).json() == before
    assert http.post(path, json={"name": "cd"}).json() == before | {"name": "cd"}
    asked = {"event_types[]": "webhook.updated", "resource_ids[]": made["id"]}
    [logged] = http.get("/v1/organization/audit_logs", params=asked).json()["data"]
    assert logged["webhook.updated"]["changes_requested"] == {"name": "cd"}, "one entry: nothing is logged where nothing changes"


def test_loopback_is_refused_unless_allowed(tmp_path: Path) -> None:
    with running_gateway(tmp_path, model=False) as gateway, gateway.http() as http:
        answer = http.post("/v1/webhook_endpoints", json={"url": "https://127.0.0.1/hook"})
    assert answer.status_code == 400
    assert "loopback" in answer.json()["error"]["message"]


def test_a_project_has_its_own_webhooks(gateway: Gateway, http: httpx.Client, receiver: Receiver) -> None:
    webhook = register(http, receiver)
    with gateway.http(gateway.other_key()) as stranger:
        assert stranger.get("/v1/webhook_endpoints").json()["data"] == []
        assert stranger.get(f"/v1/webhook_endpoints/{webhook['id']}").status_code == 404
        assert stranger.delete(f"/v1/webhook_endpoints/{webhook['id']}").status_code == 404
        assert stranger.post(f"/v1/webhook_endpoints/{webhook['id']}/test").status_code == 404
    with gateway.http(gateway.other_key(("read",))) as reader:
        assert reader.post("/v1/webhook_endpoints", json={"url": receiver.url}).status_code == 403


def test_a_deleted_endpoint_is_sent_nothing_more(gateway: Gateway, http: httpx.Client, receiver: Receiver) -> None:
    webhook = register(http, receiver)
    receiver.answers[:] = [500]
    http.post(f"/v1/webhook_endpoints/{webhook['id']}/test")
    until("a failed attempt", lambda: receiver.received)
    http.delete(f"/v1/webhook_endpoints/{webhook['id']}")

    async def anything_due() -> bool:
        async with gateway.parts.store.read() as tx:
            return await tx.deliveries_due()

    cancelled_job(gateway)
    assert not gateway.do(anything_due())
    assert len(receiver.received) == 1


def test_attempts_are_spread_over_three_days_and_end() -> None:
    due = [next_attempt(attempts, 0.0, 1.0) for attempts in range(1, len(PAUSES) + 2)]
    assert due[-1] is None
    assert due[0] == 5
    assert 70 <= sum(pause.total_seconds() for pause in PAUSES) / 3600 <= 74
