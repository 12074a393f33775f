"""DeepSpeed's ZeRO behind the Engine interface: optimizer state, gradients and weights divided over the workers.

Loop, loss, learning rate and AdamW are ours, so that a job has the same curve on every engine; DeepSpeed divides, reduces,
clips, and leaves out a step whose gradient is not finite. Nothing of its checkpoints is used, see `ZeroHolder`. Its source
(0.19.8) is the reference for what is called here. Called by `run`; knows no data order, reports or storage.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainers.data import Batch
from trainers.engine import StepResult, Sums, adamw, count, evaluate, no_sums, reduce_sums
from trainers.method import Method, Scores
from trainers.spec import DeepSpeedSpec
from trainers.state import MOMENTS, host_copy, moment_key

DIVIDES_WEIGHTS = 3
"""The stage from which on no worker holds the whole model."""


class Divisible(Protocol):
    """The part of model.TrainingModel that is given to DeepSpeed."""

    network: Any
    device: torch.device
    dtype: torch.dtype

    def score(self, batch: Batch) -> Scores:
        """Log-probabilities of the labelled positions."""
        ...

    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        ...


class DeepSpeedEngine:
    """ZeRO of stage 1, 2 or 3 over the process group; with one worker over a group of its own."""

    def __init__(
        self,
        model: Divisible,
        *,
        stage: int,
        settings: DeepSpeedSpec | None,
        weight_decay: float,
        max_grad_norm: float,
        device: torch.device,
        rank: int,
        world_size: int,
    ) -> None:
        """Takes the model over: what it holds is moved to `device` or divided."""
        self.rank, self.world_size, self._device = rank, world_size, device
        _prepare(device)
        config = _config(stage, settings, max_grad_norm, model.dtype)
        self.zero = _initialize(model, config, device, weight_decay)
        model.device = device

    def step(self, batches: Iterable[Batch], method: Method, *, weight: float, learning_rate: float, signal: int) -> StepResult:
        """See Engine."""
        sums = no_sums()
        for batch, last in _with_last(batches):
            self.zero.set_gradient_accumulation_boundary(last)
            scores = self.score(batch)
            loss = method.loss(scores)
            # DeepSpeed takes the mean over the workers; ours is the sum over the global batch's weight.
            self.zero.backward(loss * (self.world_size / weight))
            sums += count(batch, scores, loss)
        totals, signal = reduce_sums(self, sums, signal, self._device)
        for group in self.zero.optimizer.param_groups:
            group["lr"] = learning_rate
        self.zero.step()
        return StepResult(totals, float(self.zero.get_global_grad_norm()), not self.zero.optimizer.overflow, signal)

    def probe(self, batches: Iterable[Batch], method: Method) -> bool:
        """See Engine. Not tried: the ranks meet within the passes, so one that found no memory could not tell the others."""
        return True

    def evaluate(self, batches: Iterable[Batch], method: Method) -> Sums:
        """See Engine."""
        return evaluate(self, batches, method, self._device)

    def score(self, batch: Batch) -> Scores:
        """See Engine. Through DeepSpeed's own forward pass, where its hooks begin."""
        return _Scores(*self.zero(batch))

    def close(self) -> None:
        """See Engine."""
        self.zero.destroy()


class ZeroHolder:
    """Trained tensors and moments that are divided over the workers: gathered one at a time, so that no worker holds all twice.

    A checkpoint so holds what any engine and any number of workers can go on from, and no file of DeepSpeed's, which would
    be a pickle, is ever written or read: docs/decisions/0020-checkpoints-know-no-engine.md.
    """

    def __init__(self, engine: DeepSpeedEngine, model: Divisible, *, keeps: bool) -> None:
        """`keeps`: whether this rank wants the copies."""
        self._zero, self._model, self._keeps = engine.zero, model, keeps
        _set_steps(self._zero.optimizer, 0)

    def weights(self) -> dict[str, Tensor]:
        """See state.Holder: the float32 masters."""
        from deepspeed.utils import safe_get_full_fp32_param

        whole = ((name, safe_get_full_fp32_param(parameter)) for name, parameter in self._model.trained().items())
        return {name: host_copy(tensor) for name, tensor in whole if self._keeps}

    def moments(self) -> dict[str, Tensor]:
        """See state.Holder."""
        from deepspeed.utils import safe_get_full_optimizer_state

        parameters = enumerate(self._model.trained().values())
        places = [(moment_key(name, index), parameter, name) for index, parameter in parameters for name in MOMENTS]
        whole = ((key, safe_get_full_optimizer_state(parameter, name)) for key, parameter, name in places)
        return {key: host_copy(tensor) for key, tensor in whole if self._keeps}

    def load(self, weights: dict[str, Tensor], moments: dict[str, Tensor], step: int) -> None:
        """See state.Holder. What the workers compute with, its float32 master and the moments, each where its part lies."""
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        for index, (name, parameter) in enumerate(self._model.trained().items()):
            with torch.no_grad(), GatheredParameters([parameter], modifier_rank=0):
                parameter.copy_(weights[name])
            safe_set_full_fp32_param(parameter, weights[name])
            for moment in MOMENTS:
                safe_set_full_optimizer_state(parameter, moments[moment_key(moment, index)], moment)
        _set_steps(self._zero.optimizer, step)


class _Scorer(nn.Module):
    """The whole of what DeepSpeed sees: a network whose forward pass gives the scores of a batch, as tensors."""

    def __init__(self, model: Divisible) -> None:
        super().__init__()
        self.network = model.network
        self._score = model.score

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        scores = self._score(batch)
        return scores.logp, scores.weights, scores.correct


@dataclass(frozen=True, slots=True)
class _Scores:
    logp: Tensor
    weights: Tensor
    correct: Tensor


def _with_last(batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool]]:
    """Each batch and whether it is the last."""
    waiting = iter(batches)
    batch = next(waiting)
    for following in waiting:
        yield batch, False
        batch = following
    yield batch, True


def _config(stage: int, settings: DeepSpeedSpec | None, max_grad_norm: float, dtype: torch.dtype) -> dict[str, Any]:
    """DeepSpeed's configuration; of a job's own settings only what DeepSpeedSpec lists can be among them."""
    return {
        "train_micro_batch_size_per_gpu": 1,  # ours are of any size; DeepSpeed only counts with this
        "gradient_accumulation_steps": 1,  # so that it does not divide the loss; boundaries are set batch by batch
        "gradient_clipping": max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "zero_optimization": {**(settings.given() if settings else {}), "stage": stage},
    }


def _prepare(device: torch.device) -> None:
    """What DeepSpeed finds in its surroundings, before it is imported for the first time in this process."""
    if not dist.is_initialized():  # one worker that nobody made a group for
        backend = "gloo" if device.type == "cpu" else "nccl"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    os.environ["LOCAL_RANK"] = str(device.index or 0)
    warnings.filterwarnings("ignore", ".*(all_gather_into_tensor|reduce_scatter_tensor).* is deprecated", FutureWarning)
    _import_quietly()


def _import_quietly() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports parts of torch that torch has deprecated
        import deepspeed
        import deepspeed.runtime.zero.muon.original_muon  # otherwise imported, with its warnings, at the first engine
    # Its own collective over shared memory would be compiled here, for a minute and with gcc; gloo does the same.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    for logger in (logging.getLogger(name) for name in list(logging.root.manager.loggerDict) if name.startswith("DeepSpeed")):
        logger.handlers.clear()  # it writes to stdout
        logger.propagate = True
        logger.setLevel(logging.ERROR)


def _initialize(model: Divisible, config: dict[str, Any], device: torch.device, weight_decay: float) -> Any:
    """DeepSpeed's engine around the model. Asserts that it is what was asked for: some settings make it silently another."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    assert get_accelerator().device_name().partition(":")[0] == device.type, "DeepSpeed was imported for another device"
    scorer, stage = _Scorer(model), config["zero_optimization"]["stage"]
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    if stage == DIVIDES_WEIGHTS:  # weight by weight, for a device need not hold the whole
        deepspeed.zero.Init(module=scorer, config_dict_or_path=config)
    optimizer = adamw(list(model.trained().values()), weight_decay)
    engine, *_ = deepspeed.initialize(model=scorer, optimizer=optimizer, config=config)
    assert type(engine) is deepspeed.DeepSpeedEngine
    assert engine.zero_optimization_stage() == stage
    assert type(engine.basic_optimizer) is torch.optim.AdamW
    return engine


def owned_parts(zero: Any) -> list[Tensor]:
    """The flat float32 masters of this worker's part of what is trained, by which AdamW has its state."""
    divides_weights = hasattr(zero, "fp32_partitioned_groups_flat")
    parts: list[Tensor] = zero.fp32_partitioned_groups_flat if divides_weights else zero.single_partition_of_fp32_groups
    return parts


def _set_steps(zero: Any, step: int) -> None:
    """AdamW's count of steps, and moments of zero where there are none yet; DeepSpeed has them from the first step on only."""
    for part in owned_parts(zero):
        state = zero.optimizer.state[part]
        state["step"] = torch.tensor(float(step), device=part.device)
        for name in MOMENTS:
            state.setdefault(name, torch.zeros_like(part))
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._lazy_init_hp_params_optimizer_state()
