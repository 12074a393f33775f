"""Files and jobs that are posted to a gateway under test, and posted again when it goes away."""

from __future__ import annotations

import json
from typing import Any

import httpx

from tests.fake_run import until
from tests.tiny_chat import chat_row

JOBS = "/v1/fine_tuning/jobs"
ROWS = [chat_row() for _ in range(12)]


def upload(client: httpx.Client) -> str:
    """Id of a file that needs no further check."""
    content = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
    answer = client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("rows.jsonl", content)})
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def job_body(file: str, *, epochs: int = 1, every: int = 4, **fields: Any) -> dict[str, Any]:
    """A job of 12 times `epochs` steps for one processor core."""
    return {
        "model": "tiny",
        "training_file": file,
        "seed": 7,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": epochs, "batch_size": 1}}},
        "tunesmith": {"resources": {"workers": 1, "cpus_per_worker": 1}, "checkpoints": {"every_steps": every}},
    } | fields


def post(client: httpx.Client, body: dict[str, Any], key: str) -> str:
    """Id of the job that is accepted under the key; anything but success fails the test."""
    answer = client.post(JOBS, json=body, headers={"idempotency-key": key})
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def ended(client: httpx.Client, job_id: str, status: str = "succeeded") -> dict[str, Any]:
    """The job, once it has that status."""

    def there() -> Any:
        answer = client.get(f"{JOBS}/{job_id}")
        return answer.json() if answer.status_code == 200 and answer.json()["status"] == status else None

    return until(f"{job_id} {status}", there, pause=0.1)
