"""DeepSpeed's ZeRO behind the Engine interface: optimizer state, gradients and weights divided over the workers.

Loop, loss, learning rate and AdamW are ours, so that a job has the same curve on every engine; DeepSpeed divides, reduces,
clips, and leaves out a step whose gradient is not finite. Nothing of its checkpoints is used, see `ZeroHolder`. Its source
(0.19.8) is the reference for what is called here. Called by `run`; knows no data order, reports or storage.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainers.data import Batch
from trainers.engine import StepResult, Sums, adamw, count, evaluate, no_sums, reduce_sums
from trainers.failure import TrainingFailed
from trainers.mapped import MappedAdamW, StateFiles
from trainers.method import Method, Scores
from trainers.spec import QUANTIZED, DeepSpeedSpec
from trainers.state import MOMENTS, host_copy, moment_key

DIVIDES_WEIGHTS = 3
"""The stage from which on no worker holds the whole model."""
QUANTIZED_FROM = 500_000
"""Numbers of a frozen weight that is worth it to be kept as int8; DeepSpeed's own measure."""
NVME_SUB_GROUP = 100_000_000
"""Numbers that ZeRO 3 updates at a time where optimizer state lies on NVMe; DeepSpeed's own 10⁹ would be 4 GB."""


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
        state_dir: Path | None = None,
    ) -> None:
        """Takes the model over: what it holds is moved to `device` or divided. Optimizer state lies in files of `state_dir`, if given."""
        self.rank, self.world_size, self._device = rank, world_size, device
        self._files = None if state_dir is None else StateFiles(state_dir)
        _prepare(device)
        config = _config(stage, settings, max_grad_norm, model.dtype)
        self.zero = _initialize(model, config, settings, device, weight_decay, self._files)
        if self._files is not None:
            _into_files(self.zero.optimizer)
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
        self.give_state_back()
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

    def give_state_back(self) -> None:
        """Optimizer state that was looked at leaves memory, where it lies in files."""
        if self._files is not None:
            self._files.give_all_back()

    def close(self) -> None:
        """See Engine."""
        import deepspeed

        self.zero.destroy()
        # ZeRO 3 stays referred to from within DeepSpeed, and what it holds would stay until the process ends: memory, or a disk.
        self.zero.optimizer.optimizer.state.clear()
        for part in owned_parts(self.zero.optimizer):
            part.data, part.grad = part.data.new_empty(0), None
        if self._files is not None:
            self._files.forget()
        # The group of ZeRO++'s second copies is kept for the whole process, and another engine would take it for its own.
        second = deepspeed.utils.groups._get_zero_param_intra_parallel_group()
        if second is not None:
            deepspeed.comm.destroy_process_group(second)


class ZeroHolder:
    """Trained tensors and moments that are divided over the workers: gathered one at a time, so that no worker holds all twice.

    A checkpoint so holds what any engine and any number of workers can go on from, and no file of DeepSpeed's, which would
    be a pickle, is ever written or read: docs/decisions/0020-checkpoints-know-no-engine.md.
    """

    def __init__(self, engine: DeepSpeedEngine, model: Divisible, *, keeps: bool) -> None:
        """`keeps`: whether this rank wants the copies."""
        self._zero, self._model, self._keeps = engine.zero, model, keeps
        self._give_state_back = engine.give_state_back
        _set_steps(self._zero.optimizer, 0)

    def weights(self) -> dict[str, Tensor]:
        """See state.Holder: the float32 masters."""
        from deepspeed.utils import safe_get_full_fp32_param

        return self._gathered((name, partial(safe_get_full_fp32_param, parameter)) for name, parameter in self._model.trained().items())

    def moments(self) -> dict[str, Tensor]:
        """See state.Holder."""
        from deepspeed.utils import safe_get_full_optimizer_state

        return self._gathered(
            (moment_key(name, index), partial(safe_get_full_optimizer_state, parameter, name))
            for index, parameter in enumerate(self._model.trained().values())
            for name in MOMENTS
        )

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
            self._give_state_back()
        _set_steps(self._zero.optimizer, step)

    def _gathered(self, whole: Iterable[tuple[str, Callable[[], Tensor]]]) -> dict[str, Tensor]:
        """Copies by name; every rank gathers each, and at most one is whole at a time."""
        copies: dict[str, Tensor] = {}
        for name, gather in whole:
            tensor = gather()
            if self._keeps:
                copies[name] = host_copy(tensor)
            self._give_state_back()
        return copies


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
        "zero_optimization": {**_zero_settings(stage, settings), "stage": stage},
    }


def _zero_settings(stage: int, settings: DeepSpeedSpec | None) -> dict[str, Any]:
    """A job's own. To DeepSpeed state on NVMe is state in the host's memory: that it lies in files is ours (docs/decisions/0024)."""
    given = settings.given() if settings else {}
    if settings and settings.on_nvme:
        given["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
        if stage == DIVIDES_WEIGHTS:  # of so many numbers the masters are in memory at a time, when weights are made of them
            given.setdefault("sub_group_size", NVME_SUB_GROUP)
    if given.pop("zero_quantized_nontrainable_weights", False):
        given["stage3_allgather_sequential"] = True  # gathered together they would come out as int8: see _quantize_frozen
    return given


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


def _initialize(
    model: Divisible,
    config: dict[str, Any],
    settings: DeepSpeedSpec | None,
    device: torch.device,
    weight_decay: float,
    files: StateFiles | None,
) -> Any:
    """DeepSpeed's engine around the model. Asserts that it is what was asked for: some settings make it silently another."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    assert get_accelerator().device_name().partition(":")[0] == device.type, "DeepSpeed was imported for another device"
    if settings and QUANTIZED & settings.wanted:
        _require_kernels()
    scorer, stage = _Scorer(model), config["zero_optimization"]["stage"]
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    if stage == DIVIDES_WEIGHTS:  # weight by weight, for a device need not hold the whole
        deepspeed.zero.Init(module=scorer, config_dict_or_path=config)
        if settings and settings.zero_optimization.zero_quantized_nontrainable_weights:
            _quantize_frozen(scorer)
    kind = torch.optim.AdamW if files is None else partial(MappedAdamW, files=files)
    optimizer = adamw(list(model.trained().values()), weight_decay, kind)
    engine, *_ = deepspeed.initialize(model=scorer, optimizer=optimizer, config=config)
    assert type(engine) is deepspeed.DeepSpeedEngine
    assert engine.zero_optimization_stage() == stage
    assert engine.basic_optimizer is optimizer
    return engine


def _require_kernels() -> None:
    """DeepSpeed builds them on each node when they are first used. Raises TrainingFailed where they can't be had."""
    from deepspeed.runtime.zero import partition_parameters

    try:
        partition_parameters.CUDAQuantizer()
    except Exception as error:  # of the compiler, of the linker, or of DeepSpeed, which has no class for it
        raise TrainingFailed("kernels_missing", f"DeepSpeed's kernels for quantization can't be built here: {error}", "config") from error


def _quantize_frozen(scorer: nn.Module) -> None:
    """Each worker's part of the frozen weights as int8, with DeepSpeed's kernels and where its gathering finds it.

    Its own setting is not used: in 0.19.8 it rounds what was frozen before the division to whole numbers, quantizes nothing but
    float16 afterwards, and loses what it gathers together (`AllGatherCoalescedHandle`).
    """
    import deepspeed
    from deepspeed.runtime.zero import partition_parameters

    quantizer = partition_parameters.CUDAQuantizer()
    deepspeed.zero.Init.quantizer_module = quantizer
    for weight in scorer.parameters():
        part = weight.ds_tensor
        even = part.ds_numel % 8 == 0 and weight.ds_numel == weight.ds_numel_aligned  # else padding would move the groups of its scales
        if weight.requires_grad or weight.ds_persist or weight.ds_numel < QUANTIZED_FROM or not even:
            continue
        quantized, scale = quantizer.quantize(part)
        quantized.ds_quant_scale = scale
        for fact in ("ds_numel", "status", "final_location"):
            setattr(quantized, fact, getattr(part, fact))
        weight.ds_tensor = quantized


def owned_parts(zero: Any) -> list[Tensor]:
    """The flat float32 masters of this worker's part of what is trained, by which AdamW has its state."""
    divides_weights = hasattr(zero, "fp32_partitioned_groups_flat")
    parts: list[Tensor] = zero.fp32_partitioned_groups_flat if divides_weights else zero.single_partition_of_fp32_groups
    return parts


def _into_files(zero: Any) -> None:
    """Masters and moments of this worker's parts into the files of its AdamW, before anything else refers to them."""
    for part in owned_parts(zero):
        zero.optimizer.adopt(part)
    # ZeRO 1 and 2 keep a view of the master for each weight, by which it is gathered and put back.
    for part, weights in zip(owned_parts(zero), getattr(zero, "bit16_groups", ()), strict=False):
        for mapping in (weight._hp_mapping for weight in weights if weight._hp_mapping is not None):
            place = mapping.hp_fragment_address
            mapping.hp_fragment = part.narrow(0, place.start, place.numel)


def _set_steps(zero: Any, step: int) -> None:
    """AdamW's count of steps, and moments of zero where there are none yet; DeepSpeed has them from the first step on only."""
    for part in owned_parts(zero):
        state = zero.optimizer.state[part]
        state["step"] = torch.tensor(float(step), device=part.device)
        for name in MOMENTS:
            state.setdefault(name, torch.zeros_like(part))
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._lazy_init_hp_params_optimizer_state()
