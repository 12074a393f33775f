"""Projects, keys, scopes, quotas and the audit log, through a running gateway and the official client in strict mode."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from service import tenancy
from service.rest.dependencies import ADMINISTRATION
from tests.gateway import Gateway, running_gateway

PROJECTS = "/v1/organization/projects"
AUDIT = "/v1/organization/audit_logs"
ROWS = b'{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}\n' * 12


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running_gateway(tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.fixture
def http(gateway: Gateway) -> Iterator[httpx.Client]:
    """The first admin key."""
    with gateway.http() as client:
        yield client


def project(http: httpx.Client, name: str = "search", **quotas: Any) -> str:
    made = http.post(PROJECTS, json={"name": name, "tunesmith": {"quotas": quotas}})
    assert made.status_code == 200, made.text
    return made.json()["id"]


def key(http: httpx.Client, project_id: str, *scopes: str, **fields: Any) -> dict[str, Any]:
    made = http.post(f"{PROJECTS}/{project_id}/api_keys", json={"name": "ci", "scopes": scopes or ["read", "write"], **fields})
    assert made.status_code == 200, made.text
    return made.json()


def status_with(gateway: Gateway, value: str, path: str = "/v1/files") -> int:
    with gateway.http(value) as client:
        return client.get(path).status_code


def upload(gateway: Gateway, value: str, data: bytes = ROWS) -> httpx.Response:
    with gateway.http(value) as client:
        return client.post("/v1/files", files={"file": ("rows.jsonl", data)}, data={"purpose": "fine-tune"})


def logs(http: httpx.Client, **filters: Any) -> list[dict[str, Any]]:
    answer = http.get(AUDIT, params={"limit": 100, **filters})
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def test_the_official_client_administers_projects(gateway: Gateway) -> None:
    projects = gateway.client().admin.organization.projects
    made = projects.create(name="one")
    assert (made.object, made.name, made.status, made.archived_at) == ("organization.project", "one", "active", None)
    assert projects.update(made.id, name="two").name == "two"
    assert projects.retrieve(made.id).name == "two"
    others = [projects.create(name=f"p{n}").id for n in range(4)]
    assert [found.id for found in projects.list(limit=2)][:5] == [*others[::-1], made.id]
    assert projects.archive(made.id).status == "archived"
    assert made.id not in [found.id for found in projects.list()]
    assert made.id in [found.id for found in projects.list(include_archived=True)]
    with pytest.raises(openai.BadRequestError, match="archived"):
        projects.update(made.id, name="three")


def test_the_official_client_administers_keys(gateway: Gateway, http: httpx.Client) -> None:
    project_id = project(http)
    made = [key(http, project_id, "read", name=f"k{n}") for n in range(3)]
    keys = gateway.client().admin.organization.projects.api_keys
    assert [found.id for found in keys.list(project_id, limit=2)] == [one["id"] for one in made[::-1]]
    found = keys.retrieve(made[0]["id"], project_id=project_id)
    assert (found.object, found.name, found.last_used_at) == ("organization.project.api_key", "k0", None)
    assert made[0]["value"] not in found.to_json()
    assert found.redacted_value.startswith(f"ts_{found.id}_")
    changed = keys.update(made[0]["id"], project_id=project_id, scopes=["read", "write"], expires_in_seconds=3600)
    assert changed.expires_at is not None
    assert abs(changed.expires_at - time.time() - 3600) < 60
    assert keys.delete(made[0]["id"], project_id=project_id).deleted
    with pytest.raises(openai.NotFoundError):
        keys.retrieve(made[0]["id"], project_id=project_id)


def test_a_key_is_good_until_it_is_revoked_and_not_for_one_more_request(gateway: Gateway, http: httpx.Client) -> None:
    project_id = project(http)
    made = key(http, project_id)
    assert status_with(gateway, made["value"]) == 200
    assert http.delete(f"{PROJECTS}/{project_id}/api_keys/{made['id']}").status_code == 200
    assert status_with(gateway, made["value"]) == 401


def test_a_key_expires(gateway: Gateway, http: httpx.Client) -> None:
    project_id = project(http)
    made = key(http, project_id, expires_in_seconds=1)
    assert status_with(gateway, made["value"]) == 200
    time.sleep(1.1)
    assert status_with(gateway, made["value"]) == 401
    refusal = http.post(f"{PROJECTS}/{project_id}/api_keys/{made['id']}/rotate")
    assert (refusal.status_code, "expired" in refusal.text) == (400, True)


def test_the_secret_before_a_rotation_is_good_while_its_grace_lasts(gateway: Gateway, http: httpx.Client) -> None:
    project_id = project(http)
    made = key(http, project_id)
    path = f"{PROJECTS}/{project_id}/api_keys/{made['id']}/rotate"
    rotated = http.post(path, json={"grace_seconds": 600}).json()
    assert rotated["id"] == made["id"]
    assert [status_with(gateway, value) for value in (made["value"], rotated["value"])] == [200, 200]
    again = http.post(path).json()
    assert [status_with(gateway, value) for value in (made["value"], rotated["value"], again["value"])] == [401, 401, 200]


def test_last_use_is_written_apart_from_the_request(gateway: Gateway, http: httpx.Client) -> None:
    project_id = project(http)
    made = key(http, project_id)
    path = f"{PROJECTS}/{project_id}/api_keys/{made['id']}"
    status_with(gateway, made["value"])
    assert http.get(path).json()["last_used_at"] is None
    gateway.do(gateway.app.admission.flush())
    assert abs(http.get(path).json()["last_used_at"] - time.time()) < 60


def test_an_organization_keeps_a_key_that_administers_it(gateway: Gateway, http: httpx.Client) -> None:
    own = gateway.caller
    path = f"{PROJECTS}/{own.project_id}"
    for refusal in (
        http.delete(f"{path}/api_keys/{own.key_id}"),
        http.post(f"{path}/api_keys/{own.key_id}", json={"scopes": ["read"]}),
        http.post(f"{path}/archive"),
    ):
        assert refusal.status_code == 400, refusal.text


def test_the_keys_of_an_archived_project_are_refused(gateway: Gateway, http: httpx.Client) -> None:
    project_id = project(http)
    value = key(http, project_id)["value"]
    file_id = upload(gateway, value).json()["id"]
    client = gateway.client(value)
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file_id)
    refusal = http.post(f"{PROJECTS}/{project_id}/archive")
    assert (refusal.status_code, "not ended" in refusal.text) == (400, True)
    client.fine_tuning.jobs.cancel(job.id)
    deadline = time.monotonic() + 20
    while http.post(f"{PROJECTS}/{project_id}/archive").status_code == 400:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert status_with(gateway, value) == 401


# Scopes


def routes(http: httpx.Client) -> list[tuple[str, str]]:
    """Every route of the API proper, with ids that name nothing."""
    paths = http.get("/openapi.json").json()["paths"]
    found = [(method.upper(), re.sub(r"\{[^}]*\}", "none", path)) for path, methods in paths.items() for method in methods]
    return [(method, path) for method, path in found if path.startswith("/v1/")]


def test_a_read_key_reads_everything_of_its_project_and_does_nothing_else(gateway: Gateway, http: httpx.Client) -> None:
    value = key(http, project(http), "read")["value"]
    with gateway.http(value) as client:
        for method, path in routes(http):
            answer = client.request(method, path)
            if path.startswith(ADMINISTRATION):
                assert (answer.status_code, "'admin'" in answer.text) == (403, True), (method, path)
            elif method == "GET":
                assert answer.status_code in (200, 404), (method, path, answer.text)
            else:
                assert (answer.status_code, "'write'" in answer.text) == (403, True), (method, path)


def test_a_key_without_admin_is_told_so_and_one_without_read_can_not_read(gateway: Gateway, http: httpx.Client) -> None:
    with gateway.http(key(http, project(http), "read", "write")["value"]) as client:
        assert "'admin'" in client.get(PROJECTS).json()["error"]["message"]
    assert status_with(gateway, key(http, project(http), "write")["value"]) == 403


BAD_KEYS = [b"", b"[]", b"{}", b'{"name":""}', b'{"name":"a\\u0000"}', b'{"name":"a","scopes":[]}', b'{"name":"a","scopes":["root"]}']
BAD_QUOTAS = ('"gpu_hours":NaN', '"gpu_hours":1e300', '"stored_bytes":9999999999999999999', '"requests_per_minute":0', '"jobs":1')
BAD_PROJECTS = [b"null", b'{"name":1e400}', *(f'{{"name":"a","tunesmith":{{"quotas":{{{quota}}}}}}}'.encode() for quota in BAD_QUOTAS)]
BAD_TIMES = ("-1", "1.5", "9" * 5000)
BAD_QUERIES = [
    *("limit=0", f"limit={'9' * 30}", "after=%00", "after=none", "event_types[]=%0A", "&".join(["project_ids[]=a"] * 101)),
    *(f"effective_at[gte]={value}" for value in BAD_TIMES),
]


def test_what_makes_no_sense_is_refused(http: httpx.Client) -> None:
    path = f"{PROJECTS}/{project(http)}"
    json = {"content-type": "application/json"}
    answers = [http.post(f"{path}/api_keys", content=body, headers=json) for body in BAD_KEYS]
    answers += [http.post(at, content=body, headers=json) for body in BAD_PROJECTS for at in (PROJECTS, path)]
    answers += [http.get(f"{AUDIT}?{query}") for query in BAD_QUERIES]
    assert [(answer.url, answer.text) for answer in answers if answer.status_code != 400] == []
    assert [http.get(f"{PROJECTS}/{value}").status_code for value in ("%00", "x" * 3000, "%ED%A0%80")] == [404] * 3


# Organizations


@pytest.fixture(scope="module")
def foreign(gateway: Gateway) -> tenancy.NewKey:
    """Another organization."""
    return gateway.do(tenancy.create_organization(gateway.parts.store, "theirs"))


def test_another_organization_is_not_there(gateway: Gateway, http: httpx.Client, foreign: tenancy.NewKey) -> None:
    ours = project(http)
    with gateway.http(foreign.value) as them:
        assert [found["id"] for found in them.get(PROJECTS).json()["data"]] == [foreign.project_id]
        assert {entry["project"] and entry["project"]["id"] for entry in logs(them)} == {None, foreign.project_id}
        for method, path in routes(http):
            if "/projects/none" not in path:
                continue
            theirs = path.replace("/none", f"/{ours}", 1).replace("/none", f"/{gateway.caller.key_id}")
            body = {"name": "x"} if method == "POST" and not path.endswith("/rotate") else None
            seen, unknown = them.request(method, theirs, json=body), them.request(method, path, json=body)
            assert seen.status_code == unknown.status_code == 404, (method, path, seen.text)
            assert seen.text.replace(ours, "none") == unknown.text, (method, path)
        assert them.get(PROJECTS, params={"after": ours}).status_code == 400


def test_a_key_is_found_in_its_own_project_only(gateway: Gateway, http: httpx.Client) -> None:
    made = key(http, project(http))
    assert http.get(f"{PROJECTS}/{project(http)}/api_keys/{made['id']}").status_code == 404


# Quotas


def test_a_project_has_the_services_quotas_until_it_has_its_own(http: httpx.Client) -> None:
    path = f"{PROJECTS}/{project(http, running_jobs=2)}"
    found = http.get(path).json()["tunesmith"]
    assert (found["quotas"]["running_jobs"], found["quotas"]["requests_per_minute"]) == (2, None)
    assert (found["limits"]["running_jobs"], found["limits"]["requests_per_minute"]) == (2, 6000)
    assert found["usage"] == {"running_jobs": 0, "queued_jobs": 0, "gpu_hours": 0.0, "stored_bytes": 0}
    changed = http.post(path, json={"tunesmith": {"quotas": {"running_jobs": None, "requests_per_minute": "unlimited"}}}).json()
    assert (changed["tunesmith"]["limits"]["running_jobs"], changed["tunesmith"]["limits"]["requests_per_minute"]) == (
        "unlimited",
        "unlimited",
    )
    assert http.post(path, json={"tunesmith": {"quotas": {"running_jobs": -1}}}).status_code == 400
    assert "did you mean 'queued_jobs'" in http.post(path, json={"tunesmith": {"quotas": {"queued_job": 1}}}).text


def test_a_projects_jobs_have_at_the_most_the_priority_that_it_is_given(gateway: Gateway, http: httpx.Client) -> None:
    value, jobs = key(http, project(http, priority=-5))["value"], "/v1/fine_tuning/jobs"
    body = {"model": "tiny", "training_file": upload(gateway, value).json()["id"]}
    with gateway.http(value) as client:
        for path in (jobs, f"{jobs}/estimate"):
            answer = client.post(path, json=body | {"tunesmith": {"priority": 0}})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tunesmith.priority")
            assert "may have -5 at the most" in answer.json()["error"]["message"]
        given = [client.post(jobs, json=body | more).json()["tunesmith"]["priority"] for more in ({}, {"tunesmith": {"priority": -7}})]
        assert given == [-5, -7], "a plain request has the highest that it may"


def refused(answer: httpx.Response, quota: str) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (429, "quota_exceeded", quota), answer.text
    assert f"'{quota}'" in error["message"]
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["x-should-retry"] == "false"


def test_stored_bytes(gateway: Gateway, http: httpx.Client) -> None:
    value = key(http, project(http, stored_bytes=2 * len(ROWS)))["value"]
    first = upload(gateway, value)
    assert [answer.status_code for answer in (first, upload(gateway, value))] == [200, 200]
    refused(upload(gateway, value), "stored_bytes")
    with gateway.http(value) as client:
        client.delete(f"/v1/files/{first.json()['id']}")
    assert upload(gateway, value).status_code == 200


def test_the_last_bytes_are_given_away_once_and_nothing_of_the_others_is_kept(gateway: Gateway, http: httpx.Client) -> None:
    project_id = project(http, stored_bytes=3 * len(ROWS))
    value = key(http, project_id)["value"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: upload(gateway, value), range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 5
    kept = [info.key for info in gateway.parts.storage.list(f"files/{project_id}/")]
    assert len(kept) == 3


def post_job(gateway: Gateway, value: str, file_id: str, **ours: Any) -> httpx.Response:
    with gateway.http(value) as client:
        return client.post("/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": file_id, "tunesmith": ours})


def test_queued_jobs_and_a_repeated_post_that_is_no_new_job(gateway: Gateway, http: httpx.Client) -> None:
    # No job of this project ever starts, so that every one that is accepted stays in the queue.
    value = key(http, project(http, queued_jobs=2, running_jobs=0))["value"]
    file_id = upload(gateway, value).json()["id"]
    body = {"model": "tiny", "training_file": file_id}
    with gateway.http(value) as client, ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda n: client.post("/v1/fine_tuning/jobs", json=body, headers={"idempotency-key": f"k{n}"}), range(6)))
        assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429, 429]
        number = next(n for n, answer in enumerate(answers) if answer.status_code == 200)
        again = client.post("/v1/fine_tuning/jobs", json=body, headers={"idempotency-key": f"k{number}"})
        assert (again.status_code, again.json()["id"]) == (200, answers[number].json()["id"])
        refused(client.post("/v1/fine_tuning/jobs", json=body), "queued_jobs")
        assert client.post(f"/v1/fine_tuning/jobs/{again.json()['id']}/cancel").status_code == 200
        assert client.post("/v1/fine_tuning/jobs", json=body).status_code == 200


def test_gpu_hours(gateway: Gateway, http: httpx.Client) -> None:
    value = key(http, project(http, gpu_hours=0, running_jobs=0))["value"]
    file_id = upload(gateway, value).json()["id"]
    refused(post_job(gateway, value, file_id, resources={"gpus_per_worker": 1}), "gpu_hours")
    assert post_job(gateway, value, file_id).status_code == 200, "a job without GPUs uses none"


def test_a_job_waits_while_its_project_runs_enough(gateway: Gateway, http: httpx.Client) -> None:
    gateway.runtime.total = type(gateway.runtime.total)(cpus=64, gpus=0, nodes=1)
    value = key(http, project(http, running_jobs=1))["value"]
    file_id = upload(gateway, value).json()["id"]
    jobs = [post_job(gateway, value, file_id, resources={"cpus_per_worker": 1}).json()["id"] for _ in range(2)]
    with gateway.http(value) as client:
        deadline, reason = time.monotonic() + 30, ""
        while reason != "the project runs 1 of 1 jobs":
            assert time.monotonic() < deadline, reason
            time.sleep(0.1)
            states = [client.get(f"/v1/fine_tuning/jobs/{job_id}").json()["tunesmith"] for job_id in jobs]
            reason = next((state["reason"] for state in states if state["phase"] == "queued"), "")
        assert sorted(state["phase"] for state in states)[0] == "queued"
        for job_id in jobs:
            client.post(f"/v1/fine_tuning/jobs/{job_id}/cancel")


def test_the_request_rate(gateway: Gateway, http: httpx.Client) -> None:
    project_id = project(http, requests_per_minute=3)
    value = key(http, project_id)["value"]
    with gateway.http(value) as client, gateway.http(key(http, project_id)["value"]) as second:
        answers = [client.get("/v1/files"), client.get("/v1/files/none"), second.get("/v1/models")]
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0"]
        assert {answer.headers["x-ratelimit-limit-requests"] for answer in answers} == {"3"}
        assert 50 < float(answers[0].headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 60
        late = client.get("/v1/files")
    error = late.json()["error"]
    assert (late.status_code, error["code"], error["type"]) == (429, "rate_limit_exceeded", "rate_limit_error")
    assert "'requests_per_minute'" in error["message"]
    assert 1 <= int(late.headers["retry-after"]) <= 60
    assert late.headers["x-ratelimit-remaining-requests"] == "0"
    assert http.get("/v1/files").status_code == 200, "another project has its own"


def test_no_rate_no_headers(gateway: Gateway, http: httpx.Client) -> None:
    with gateway.http(key(http, project(http, requests_per_minute="unlimited"))["value"]) as client:
        assert "x-ratelimit-limit-requests" not in client.get("/v1/files").headers


# The audit log


def test_every_change_is_logged_with_who_what_where_and_in_which_request(gateway: Gateway, http: httpx.Client) -> None:
    project_id = project(http, name="audited")
    made = key(http, project_id)
    http.post(f"{PROJECTS}/{project_id}", json={"name": "renamed", "tunesmith": {"quotas": {"running_jobs": 0}}})
    http.post(f"{PROJECTS}/{project_id}/api_keys/{made['id']}", json={"scopes": ["read", "write"]})
    with gateway.http(made["value"]) as client:
        file_id = upload(gateway, made["value"]).json()["id"]
        job = client.post(
            "/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": file_id}, headers={"x-request-id": "mine-7"}
        ).json()
        client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
        client.delete(f"/v1/files/{file_id}")
    rotated = http.post(f"{PROJECTS}/{project_id}/api_keys/{made['id']}/rotate").json()
    http.delete(f"{PROJECTS}/{project_id}/api_keys/{made['id']}")
    http.post(f"{PROJECTS}/{project_id}/archive")
    found = logs(http, **{"project_ids[]": project_id})
    assert [(entry["type"], entry["tunesmith"]["object_id"]) for entry in found[::-1]] == [
        ("project.created", project_id),
        ("api_key.created", made["id"]),
        ("project.updated", project_id),
        ("api_key.updated", made["id"]),
        ("file.created", file_id),
        ("job.created", job["id"]),
        ("job.cancelled", job["id"]),
        ("file.deleted", file_id),
        ("api_key.rotated", made["id"]),
        ("api_key.deleted", made["id"]),
        ("project.archived", project_id),
    ]
    assert {entry["actor"]["api_key"]["id"] for entry in found} == {gateway.caller.key_id, made["id"]}
    (created,) = [entry for entry in found if entry["type"] == "job.created"]
    assert (created["tunesmith"]["request_id"], created["job.created"]["model"]) == ("mine-7", "tiny")
    (updated,) = [entry for entry in found if entry["type"] == "project.updated"]
    assert updated["project.updated"]["changes_requested"]["quotas"] == {"running_jobs": 0}
    assert all(entry["tunesmith"]["request_id"] for entry in found)
    for secret in (made["value"], rotated["value"]):
        assert secret.split("_")[2] not in str(found)


def test_what_was_refused_is_not_logged(gateway: Gateway, http: httpx.Client) -> None:
    value = key(http, project(http, stored_bytes=1))["value"]
    before = len(logs(http))
    refused(upload(gateway, value), "stored_bytes")
    assert len(logs(http)) == before


def test_the_log_is_filtered_and_paged(gateway: Gateway, http: httpx.Client) -> None:
    for n in range(3):
        project(http, name=f"log {n}")
    strict = gateway.client().admin.organization.audit_logs.list(event_types=["project.created", "api_key.created"], limit=2)
    seen = [entry for entry, _ in zip(strict, range(5), strict=False)]
    assert {entry.type for entry in seen} <= {"project.created", "api_key.created"}
    assert seen[0].project_created is not None
    assert seen[0].project_created.id
    now = int(time.time())
    assert logs(http, **{"effective_at[gt]": now + 60}) == []
    assert logs(http, **{"effective_at[lt]": 1}) == []
    assert logs(http, **{"effective_at[gte]": 1, "effective_at[lte]": now + 60, "event_types[]": ["project.created"]})
    assert logs(http, **{"resource_ids[]": ["nothing"]}) == []
    for wrong in ({"effective_at[gt]": "9" * 30}, {"effective_at[gt]": "soon"}, {"event_types[]": "\x00"}, {"after": "audit_log-none"}):
        assert http.get(AUDIT, params=wrong).status_code == 400, wrong


def test_a_login_with_a_wrong_key_is_logged_once_a_minute(gateway: Gateway, http: httpx.Client) -> None:
    project_id = project(http)
    made = key(http, project_id)
    http.delete(f"{PROJECTS}/{project_id}/api_keys/{made['id']}")
    assert [status_with(gateway, made["value"]) for _ in range(3)] == [401, 401, 401]
    assert status_with(gateway, tenancy.new_key()[1]) == 401, "an id that nobody has is nobody's to read of"
    (failed,) = logs(http, **{"event_types[]": "login.failed", "project_ids[]": project_id})
    assert failed["tunesmith"]["object_id"] == made["id"]
    assert failed["login.failed"]["error_code"] == "invalid_api_key"
