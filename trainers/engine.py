"""How a step runs on devices: gradients of a global batch, summed over micro-batches and ranks, then one AdamW step.

Knows a model by what `loop` hands it, nothing of data order, checkpoints or reports. `deepspeed_engine` has the engines
that divide a step's state over the workers; all of them give the same curve. `TorchEngine` is plain torch with one worker
and data-parallel with more: gradients live in one flat buffer, so a step costs one collective for them and one for its
sums, however many parameters and numbers there are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainers.data import Batch
from trainers.failure import is_out_of_memory
from trainers.method import Method, Scores

BETAS = (0.9, 0.999)
EPSILON = 1e-8
log = logging.getLogger(__name__)


class Scored(Protocol):
    """The part of model.TrainingModel that a step needs."""

    def score(self, batch: Batch) -> Scores:
        """Log-probabilities of the labelled positions."""
        ...


@dataclass(frozen=True, slots=True)
class Sums:
    """What a pass over rows adds up to, over all ranks."""

    loss: float
    """Unnormalised."""
    weight: float
    correct: float
    labels: float
    tokens: float
    """Without padding."""

    @property
    def mean_loss(self) -> float:
        """Loss for each unit of weight."""
        return self.loss / self.weight if self.weight else 0.0

    @property
    def accuracy(self) -> float:
        """Share of the labels that were the most probable token."""
        return self.correct / self.labels if self.labels else 0.0


@dataclass(frozen=True, slots=True)
class StepResult:
    """One optimizer step. When `finite` is False nothing was updated."""

    sums: Sums
    grad_norm: float
    """Global L2 norm before clipping."""
    finite: bool
    signal: int
    """The largest signal that any rank gave."""
    out_of_memory: bool = False
    """A rank had no memory for its share: nothing was updated, and the same step may be tried again in smaller pieces."""


class Engine(Protocol):
    """Runs steps and evaluations; every rank calls the same methods in the same order."""

    rank: int
    world_size: int

    def step(self, batches: Iterable[Batch], method: Method, *, weight: float, learning_rate: float, signal: int) -> StepResult:
        """One optimizer step on this rank's micro-batches of a global batch whose weights sum to `weight`."""
        ...

    def probe(self, batches: Iterable[Batch], method: Method) -> bool:
        """Whether every rank has memory for the gradients of its micro-batches; nothing is updated."""
        ...

    def evaluate(self, batches: Iterable[Batch], method: Method) -> Sums:
        """Score this rank's batches without training; the sums are over all ranks. Each rank brings equally many batches."""
        ...

    def score(self, batch: Batch) -> Scores:
        """Log-probabilities of the labelled positions; every rank calls it."""
        ...

    def close(self) -> None:
        """Give back what the engine holds; nothing is called after this."""
        ...


class TorchEngine:
    """Plain torch, or data-parallel over the process group that is initialised."""

    def __init__(
        self,
        model: Scored,
        parameters: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        *,
        max_grad_norm: float,
        rank: int,
        world_size: int,
        passes_meet: bool = False,
    ) -> None:
        """`passes_meet`: ranks wait for each other within a pass, so one that has no memory can't tell the others after it."""
        self.rank, self.world_size, self._passes_meet = rank, world_size, passes_meet
        self._model, self._optimizer, self._max_grad_norm = model, optimizer, max_grad_norm
        self._flat = _flat_gradients(parameters)

    def step(self, batches: Iterable[Batch], method: Method, *, weight: float, learning_rate: float, signal: int) -> StepResult:
        """See Engine."""
        # A rank that ran out of memory comes to this collective as well: the others wait for it here, and learn of it here.
        totals, signal = self._reduced(self._gradients(batches, method, weight), signal)
        if signal == OUT_OF_MEMORY:
            return StepResult(totals, 0.0, True, 0, out_of_memory=True)
        if self.world_size > 1:
            dist.all_reduce(self._flat)
        norm = float(torch.linalg.vector_norm(self._flat))
        finite = norm < float("inf")  # False for NaN too
        if finite:
            self._update(learning_rate, norm)
        return StepResult(totals, norm, finite, signal)

    def probe(self, batches: Iterable[Batch], method: Method) -> bool:
        """See Engine."""
        return self._reduced(self._gradients(batches, method, 1.0), 0)[1] != OUT_OF_MEMORY

    def evaluate(self, batches: Iterable[Batch], method: Method) -> Sums:
        """See Engine."""
        return evaluate(self, batches, method, self._flat.device)

    def score(self, batch: Batch) -> Scores:
        """See Engine."""
        return self._model.score(batch)

    def close(self) -> None:
        """See Engine."""

    def _gradients(self, batches: Iterable[Batch], method: Method, weight: float) -> Tensor | None:
        """This rank's gradients into the buffer, and its sums; None when memory ran out on the way."""
        self._flat.zero_()
        sums = no_sums()
        try:
            for batch in batches:
                scores = self._model.score(batch)
                loss = method.loss(scores)
                (loss / weight).backward()
                sums += count(batch, scores, loss)
        except (MemoryError, RuntimeError) as error:
            if self._passes_meet or not is_out_of_memory(error):
                raise
            log.warning("rank %d: %s", self.rank, error)
        else:
            return sums
        if self._flat.is_cuda:  # after the handler, which holds the frames and so the tensors of what failed
            torch.cuda.empty_cache()
        return None

    def _reduced(self, sums: Tensor | None, signal: int) -> tuple[Sums, int]:
        """Over all ranks; None is said by a signal above all others."""
        if sums is None:
            sums, signal = no_sums(), OUT_OF_MEMORY
        return reduce_sums(self, sums, signal, self._flat.device)

    def _update(self, learning_rate: float, norm: float) -> None:
        if norm > self._max_grad_norm:
            self._flat.mul_(self._max_grad_norm / (norm + 1e-6))
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()


def reduce_sums(engine: Engine, sums: Tensor, signal: int, device: torch.device) -> tuple[Sums, int]:
    """Numbers of all ranks in one collective on `device`; the signal travels as one flag for each rank, and the largest counts."""
    if engine.world_size == 1:
        return Sums(*sums.tolist()), signal
    numbers = torch.cat([sums, torch.zeros(engine.world_size, dtype=sums.dtype)])
    numbers[_SUMS + engine.rank] = signal
    numbers = numbers.to(device)
    dist.all_reduce(numbers)
    told: list[float] = numbers.tolist()
    return Sums(*told[:_SUMS]), int(max(told[_SUMS:]))


@torch.no_grad()
def evaluate(engine: Engine, batches: Iterable[Batch], method: Method, device: torch.device) -> Sums:
    """What any engine's evaluation is."""
    sums = no_sums()
    for batch in batches:
        scores = engine.score(batch)
        sums += count(batch, scores, method.loss(scores))
    return reduce_sums(engine, sums, 0, device)[0]


_SUMS = 5
OUT_OF_MEMORY = 1000
"""A signal of the engine's own, above all that it is given."""


def no_sums() -> Tensor:
    """What `count` is added to."""
    return torch.zeros(_SUMS, dtype=torch.float64)


def adamw(
    parameters: Sequence[nn.Parameter], weight_decay: float, kind: Callable[..., torch.optim.AdamW] = torch.optim.AdamW
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019); the learning rate is set before each step. `kind` makes it."""
    return kind(parameters, lr=0.0, betas=BETAS, eps=EPSILON, weight_decay=weight_decay, fused=True)


def _flat_gradients(parameters: Sequence[nn.Parameter]) -> Tensor:
    """One buffer that every parameter's gradient is a view of."""
    flat = torch.zeros(sum(p.numel() for p in parameters), dtype=parameters[0].dtype, device=parameters[0].device)
    start = 0
    for parameter in parameters:
        parameter.grad = flat[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
    return flat


def count(batch: Batch, scores: Scores, loss: Tensor) -> Tensor:
    """[loss, weight, correct, labels, tokens] of a micro-batch, on the host."""
    return torch.tensor(
        [float(loss.detach()), batch.weight_sum, float(scores.correct.sum()), float(scores.correct.numel()), float(batch.tokens)],
        dtype=torch.float64,
    )
