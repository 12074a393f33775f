"""What a client can ask of the service and what it is told, in words of no transport.

A request for a job is OpenAI's JSON object. `surfaces` translates, `test_scenarios` asks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

T = TypeVar("T")
Body = dict[str, Any]
Kind = Literal["invalid", "unauthenticated", "forbidden", "missing", "exhausted", "broken"]


@dataclass(frozen=True)
class Refusal(Exception):
    """What a surface said no with: of which sort it is ("broken" is the service's fault), the exact code, the words, the field."""

    kind: Kind
    code: str
    message: str
    param: str | None


@dataclass(frozen=True)
class Page(Generic[T]):
    items: list[T]
    has_more: bool


@dataclass(frozen=True)
class File:
    id: str
    filename: str
    purpose: str
    bytes: int
    created_at: int


@dataclass(frozen=True)
class Fault:
    line: int | None
    path: str
    rule: str
    message: str


@dataclass(frozen=True)
class Report:
    ok: bool
    summary: str
    rows: int
    tokens: int
    trained_tokens: int
    fault_count: int
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class Failure:
    """Why a job failed; `faults` are those of the data check's report."""

    code: str
    message: str
    param: str | None
    cause: str
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class Job:
    id: str
    phase: str
    model: str
    training_file: str
    seed: int
    suffix: str | None
    metadata: dict[str, str]
    r: int
    epochs: int | None
    """What "auto" has become; None until the data check is done."""
    steps: int | None
    epoch: int
    created_at: int
    finished_at: int | None
    tuned_model: str | None
    trained_tokens: int | None
    result_files: tuple[str, ...]
    outcomes: tuple[str | None, ...]
    """Of its attempts."""
    error: Failure | None


@dataclass(frozen=True)
class Event:
    seq: int
    level: str
    type: str
    message: str
    data: Body = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    id: str
    model: str
    step: int
    train_loss: float | None


@dataclass(frozen=True)
class Artifact:
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Model:
    id: str
    owned_by: str
    job_id: str | None
    base_model: str | None


@dataclass(frozen=True)
class Estimate:
    ok: bool
    steps: int | None
    trained_tokens: int | None
    memory: int | None
    fits: bool | None
    training: Report


class Surface(Protocol):
    """What a client can do. Every method raises Refusal."""

    def upload(self, data: bytes, filename: str = "rows.jsonl", purpose: str = "fine-tune") -> File: ...
    def file(self, file_id: str) -> File: ...
    def files(self, after: str | None = None, limit: int = 100) -> Page[File]: ...
    def delete_file(self, file_id: str) -> None: ...
    def download(self, file_id: str) -> bytes: ...
    def check(self, file_id: str, **asked: Any) -> Report: ...
    def create(self, body: Body, key: str | None = None) -> Job: ...
    def job(self, job_id: str) -> Job: ...
    def jobs(self, after: str | None = None, limit: int = 100, metadata: dict[str, str] | None = None) -> Page[Job]: ...
    def cancel(self, job_id: str) -> Job: ...
    def pause(self, job_id: str) -> Job: ...
    def resume(self, job_id: str) -> Job: ...
    def watch(self, job_id: str) -> list[Event]:
        """The events of a job to its end."""
        ...

    def checkpoints(self, job_id: str, after: str | None = None, limit: int = 100) -> Page[Checkpoint]: ...
    def artifacts(self, job_id: str) -> list[Artifact]: ...
    def artifact(self, job_id: str, name: str) -> bytes: ...
    def models(self) -> list[Model]: ...
    def model(self, name: str) -> Model: ...
    def delete_model(self, name: str) -> None: ...
    def estimate(self, body: Body) -> Estimate: ...
