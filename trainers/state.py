"""What a run changes while it trains, as one object apart from the base model and from the loop.

`TrainingState` lives on the devices, in a form that the engine chose and that a `Holder` reads and writes; `Snapshot` is a
copy of it on the host that `checkpoint` stores and reads, whole and the same whatever the engine and the number of workers
(docs/decisions/0020-checkpoints-know-no-engine.md). Random numbers are no part of it: each step seeds them from
(seed, step, rank), so the step says it all.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of each parameter besides its step count."""
METRICS_HEADER = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")


class Trainable(Protocol):
    """The part of model.TrainingModel that holds what is trained."""

    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained, under the names that it is stored by, always in the same order."""
        ...

    def load_adapter_state(self, state: dict[str, Tensor]) -> None:
        """Put stored tensors in the place of the trained ones."""
        ...


class Holder(Protocol):
    """Trained tensors and AdamW's moments as an engine keeps them. Every rank calls the same methods in the same order."""

    def weights(self) -> dict[str, Tensor]:
        """Whole copies on the host, by name; empty on a rank that keeps nothing."""
        ...

    def moments(self) -> dict[str, Tensor]:
        """As `weights`, under the names of `moment_key`."""
        ...

    def load(self, weights: dict[str, Tensor], moments: dict[str, Tensor], step: int) -> None:
        """Go on from these, which fit, after `step` optimizer steps."""
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
    """A TrainingState on the host, at a step. Tensors are copies that nobody changes; only rank 0 has them."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    cursor: Cursor
    history: tuple[MetricsRow, ...]


@dataclass(slots=True)
class TrainingState:
    """What is trained and its optimizer (with `holder`), and how far the job is."""

    holder: Holder
    cursor: Cursor = field(default_factory=Cursor)
    history: list[MetricsRow] = field(default_factory=list)

    def snapshot(self) -> Snapshot:
        """A copy on the host; waits for the devices. Every rank takes part, for each may hold a part of each tensor."""
        return Snapshot(self.holder.weights(), self.holder.moments(), replace(self.cursor), tuple(self.history))

    def outcome(self) -> Snapshot:
        """As `snapshot`, without the moments, which nobody publishes."""
        return Snapshot(self.holder.weights(), {}, replace(self.cursor), tuple(self.history))

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot, whole on every rank, whose tensors fit this model."""
        self.holder.load(snapshot.weights, snapshot.optimizer, snapshot.cursor.step)
        self.cursor, self.history = replace(snapshot.cursor), list(snapshot.history)


class PlainHolder:
    """Every rank holds everything: plain torch, and data-parallel."""

    def __init__(self, model: Trainable, optimizer: torch.optim.Optimizer, *, keeps: bool = True) -> None:
        """`keeps`: whether this rank wants the copies."""
        self._model, self._optimizer, self._keeps = model, optimizer, keeps

    def weights(self) -> dict[str, Tensor]:
        """See Holder."""
        return {name: host_copy(parameter) for name, parameter in self._model.trained().items()} if self._keeps else {}

    def moments(self) -> dict[str, Tensor]:
        """See Holder."""
        tensors: dict[str, Tensor] = {}
        for index, parameter in enumerate(self._model.trained().values()) if self._keeps else ():
            state = self._optimizer.state[parameter]
            for name in MOMENTS:  # before the first step there is no state: AdamW's moments begin at zero
                tensors[moment_key(name, index)] = host_copy(state[name] if state else torch.zeros_like(parameter))
        return tensors

    def load(self, weights: dict[str, Tensor], moments: dict[str, Tensor], step: int) -> None:
        """See Holder."""
        self._model.load_adapter_state(weights)
        for index, parameter in enumerate(self._model.trained().values()):
            copies = {name: moments[moment_key(name, index)].to(parameter.device, copy=True) for name in MOMENTS}
            self._optimizer.state[parameter] = {"step": torch.tensor(float(step), device=parameter.device), **copies}


def moment_key(moment: str, index: int) -> str:
    """Name in a checkpoint of a moment of the trained tensor at `index`."""
    return f"{moment}.{index:05d}"


def require_moments(moments: dict[str, Tensor], shapes: Sequence[torch.Size]) -> None:
    """Raises KeyError when a moment of the trained tensors of these shapes is missing, ValueError when it has another shape."""
    for index, shape in enumerate(shapes):
        if any(moments[moment_key(name, index)].shape != shape for name in MOMENTS):
            raise ValueError(f"the optimizer state does not fit parameter {index} of shape {tuple(shape)}")


def host_copy(tensor: Tensor) -> Tensor:
    """A copy in the host's memory that nobody else holds."""
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
