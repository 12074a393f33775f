"""What a run changes while it trains, as one object apart from the base model and from the loop.

`TrainingState` lives on the device; `Snapshot` is a copy of it on the host that `checkpoint` stores and reads.
Random numbers are no part of it: each step seeds them from (seed, step, rank), so the step says it all.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of each parameter besides its step count."""
METRICS_HEADER = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")


class Trainable(Protocol):
    """The part of model.TrainingModel that holds what is trained."""

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The adapter's parameters, always in the same order."""
        ...

    def adapter_state(self) -> dict[str, Tensor]:
        """The adapter's tensors under the names PEFT stores them by."""
        ...

    def load_adapter_state(self, state: dict[str, Tensor]) -> None:
        """Put stored tensors in the adapter's place."""
        ...


@dataclass(frozen=True, slots=True)
class MetricsRow:
    """One line of metrics.csv; validation is None between evaluations."""

    step: int
    train_loss: float
    train_accuracy: float
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None


@dataclass(slots=True)
class Cursor:
    """Where the job is: plain numbers, stored as JSON."""

    step: int = 0
    """Optimizer steps done; also the sampler's next step."""
    tokens: int = 0
    """Non-padding tokens seen by all runs."""
    trained_tokens: int = 0
    """Labelled tokens trained on by all runs."""
    micro_batch: int = 0
    """Rows of one forward pass. Kept over a resume, for another split sums in another order."""
    best_valid_loss: float | None = None
    evaluations_without_gain: int = 0
    stopped_early: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A TrainingState on the host, at a step. Tensors are copies that nobody changes."""

    adapter: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    cursor: Cursor
    history: tuple[MetricsRow, ...]


@dataclass(slots=True)
class TrainingState:
    """Adapter parameters (inside `model`), optimizer, and how far the job is."""

    model: Trainable
    optimizer: torch.optim.AdamW
    cursor: Cursor = field(default_factory=Cursor)
    history: list[MetricsRow] = field(default_factory=list)

    def snapshot(self) -> Snapshot:
        """A copy on the host; waits for the device."""
        adapter = {name: _host_copy(tensor) for name, tensor in self.model.adapter_state().items()}
        return Snapshot(adapter, self._optimizer_tensors(), replace(self.cursor), tuple(self.history))

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot. Raises ValueError when its tensors do not fit this model."""
        self.model.load_adapter_state(snapshot.adapter)
        parameters = self.model.trainable_parameters()
        for index, parameter in enumerate(parameters):
            moments = {name: snapshot.optimizer[_key(name, index)] for name in MOMENTS}
            if any(moment.shape != parameter.shape for moment in moments.values()):
                raise ValueError(f"the optimizer state does not fit parameter {index} of shape {tuple(parameter.shape)}")
            steps = torch.tensor(float(snapshot.cursor.step), device=parameter.device)
            copies = {name: moment.to(parameter.device, copy=True) for name, moment in moments.items()}
            self.optimizer.state[parameter] = {"step": steps, **copies}
        self.cursor, self.history = replace(snapshot.cursor), list(snapshot.history)

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        tensors = {}
        for index, parameter in enumerate(self.model.trainable_parameters()):
            state = self.optimizer.state[parameter]
            for name in MOMENTS:  # before the first step there is no state: AdamW's moments begin at zero
                tensors[_key(name, index)] = _host_copy(state[name] if state else torch.zeros_like(parameter))
        return tensors


def _key(moment: str, index: int) -> str:
    return f"{moment}.{index:05d}"


def _host_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make the random numbers of a step a function of (seed, step, rank), so that a resumed run draws the same."""
    digest = hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little"))


def write_metrics(rows: Iterable[MetricsRow]) -> bytes:
    """metrics.csv: numbers in full precision, empty cells where there was no evaluation."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(METRICS_HEADER)
    for row in rows:
        writer.writerow(["" if value is None else repr(value) for value in asdict(row).values()])
    return text.getvalue().encode()


def read_metrics(data: bytes) -> list[MetricsRow]:
    """What write_metrics wrote. Raises ValueError for another header."""
    header, *lines = csv.reader(io.StringIO(data.decode()))
    if tuple(header) != METRICS_HEADER:
        raise ValueError(f"metrics.csv has the columns {header}")
    return [MetricsRow(int(line[0]), *(float(cell) if cell else None for cell in line[1:])) for line in lines]  # type: ignore[arg-type]
