"""Sends a run's numbers to the services that its job names; so far to Weights & Biases alone.

Stands before the gateway's reporter on rank 0 and passes everything on. Each service has a thread of its own, so training never
waits for one; its first failure becomes one warning among the job's events, and its later numbers are dropped. Called by `worker`.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from queue import SimpleQueue
from typing import Any, Protocol

from protos.tunesmith.v1 import runs_pb2 as pb
from trainers.report import Reporter
from trainers.spec import RunSpec, WandbSpec

CLOSE_SECONDS = 15.0
"""How long a run that is through waits until a service has its last numbers."""
TAG_LENGTH = 64
Numbers = tuple[int, dict[str, float]]
"""A step, and what was measured at it under OpenAI's names."""


class Service(Protocol):
    """Takes numbers. Any method may block, and may raise whatever its library raises."""

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Keep the numbers of a step; those of one step may come in parts."""
        ...

    def finish(self) -> None:
        """Nothing more will come."""
        ...


class WandbRun:
    """A run at Weights & Biases, the same one for every run of the job. The only code that knows its library."""

    def __init__(self, settings: WandbSpec, spec: RunSpec, number: int, scratch: str) -> None:
        if not os.environ.get("WANDB_API_KEY"):
            raise RuntimeError("WANDB_API_KEY is not set on the worker's node")
        import wandb  # an extra of the nodes: its absence is a failure like any other

        self._run: Any = wandb.init(
            project=settings.project,
            entity=settings.entity,
            name=settings.name or spec.job_id,
            id=f"{spec.job_id}-{number}",
            resume="allow",
            reinit="create_new",
            tags=_tags(settings, spec),
            config=_config(spec),
            dir=scratch,
            settings={"console": "off", "silent": True, "disable_git": True, "disable_code": True},
        )

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """See Service."""
        self._run.log(numbers, step=step)

    def finish(self) -> None:
        """See Service."""
        self._run.finish()


class Delivery:
    """Carries numbers to one service, in a thread of its own, with a directory that is the service's to write to."""

    def __init__(self, name: str, connect: Callable[[str], Service], warn: Callable[[str], None]) -> None:
        self._name, self._connect, self._warn = name, connect, warn
        self._waiting: SimpleQueue[Numbers | None] = SimpleQueue()
        self._failed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, numbers: Numbers) -> None:
        """Send these when the service takes them; never waits."""
        if not self._failed:
            self._waiting.put(numbers)

    def close(self) -> None:
        """Let the service have what waits, for CLOSE_SECONDS at most."""
        self._waiting.put(None)
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        try:
            with tempfile.TemporaryDirectory(prefix="tunesmith-integration-", ignore_cleanup_errors=True) as scratch:
                service = self._connect(scratch)
                while (numbers := self._waiting.get()) is not None:
                    service.log(*numbers)
                service.finish()
        except BaseException as error:  # the library is known to raise SystemExit too
            self._failed = True
            self._warn(f"{self._name} no longer gets this job's metrics ({type(error).__name__}: {error}). Training goes on.")


class Sending:
    """The reporter behind it, with a copy of every number for the deliveries."""

    def __init__(self, inner: Reporter, deliveries: Sequence[Delivery]) -> None:
        self._inner, self._deliveries = inner, deliveries

    @property
    def stage(self) -> str:
        """See Reporter."""
        return self._inner.stage

    @stage.setter
    def stage(self, words: str) -> None:
        self._inner.stage = words

    def tell(self, report: pb.RunReport) -> None:
        """See Reporter."""
        self._inner.tell(report)
        numbers = numbers_of(report)
        for delivery in self._deliveries if numbers else ():
            delivery.put(numbers)

    def directive(self) -> int:
        """See Reporter."""
        return self._inner.directive()

    def deliver(self) -> None:
        """See Reporter; other services are not waited for."""
        self._inner.deliver()


def with_integrations(spec: RunSpec, reporter: Reporter, stack: ExitStack) -> Reporter:
    """The reporter that also serves the integrations of the job; `stack` ends their deliveries."""

    def warn(message: str) -> None:
        reporter.tell(pb.RunReport(notice=pb.Notice(level="warn", message=message)))

    deliveries: list[Delivery] = []
    for number, integration in enumerate(spec.integrations, 1):

        def connect(scratch: str, settings: WandbSpec = integration.wandb, number: int = number) -> Service:
            return WandbRun(settings, spec, number, scratch)

        deliveries.append(Delivery("Weights & Biases", connect, warn))
        stack.callback(deliveries[-1].close)
    return Sending(reporter, deliveries) if deliveries else reporter


def numbers_of(report: pb.RunReport) -> Numbers | None:
    """What a report measured, None when it is of another kind."""
    match report.WhichOneof("body"):
        case "step":
            names = ("train_loss", "train_mean_token_accuracy", "learning_rate", "grad_norm", "tokens_per_second")
            return report.step.step, {name: getattr(report.step, name) for name in names}
        case "evaluated":
            loss, accuracy = report.evaluated.valid_loss, report.evaluated.valid_mean_token_accuracy
            return report.evaluated.step, {"valid_loss": loss, "valid_mean_token_accuracy": accuracy}
        case _:
            return None


def _tags(settings: WandbSpec, spec: RunSpec) -> list[str]:
    ours = ["tunesmith", spec.job_id[:TAG_LENGTH], spec.base_model.id[:TAG_LENGTH]]
    return list(dict.fromkeys([*ours, *(settings.tags or [])]))


def _config(spec: RunSpec) -> dict[str, Any]:
    """What the job was asked, and what its autos became."""
    facts = {"job_id": spec.job_id, "model": spec.base_model.id, "method": spec.method, "seed": spec.seed}
    return facts | spec.resolved.model_dump(mode="json") | {"tunesmith": spec.tunesmith.model_dump(mode="json")}
