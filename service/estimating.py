"""Puts an estimate together: layout and memory, whether the cluster can hold it, time, cost. Pure.

Everything that has to be read or asked for is in `Known`; the application layer gathers it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from service.data_report import DataReport
from service.devices import Device
from service.durations import FORWARD_SHARE, Work, duration, past, token_flops
from service.estimate import CostEstimate, Estimate, MemoryEstimate, Placement, PlanEstimate, TimeEstimate
from service.gangs import Gang, fits_ever, gang, most_together, shortage
from service.jobs import JobSpec
from service.resolve import resolve
from service.runtime import Capacity
from service.settings import Settings
from service.store.speeds import MeasuredRun
from trainers.model_files import Sizes
from trainers.plan import RUN_BYTES, Choice, Load, choose_engine, worker_memory
from trainers.spec import DatasetRef, Resolved, ResourceSpec


@dataclass(frozen=True, slots=True)
class Known:
    """What an estimate rests on."""

    sizes: Sizes
    capacity: Capacity | None
    """None when the cluster can't be asked."""
    node_memory: int | None
    """Bytes of the node that has the least."""
    others: tuple[ResourceSpec, ...]
    """What jobs that run or wait have asked for."""
    runs: tuple[MeasuredRun, ...]
    device: Device
    reports: tuple[DataReport | None, DataReport | None]
    """Of the training and the validation file."""


def estimate(spec: JobSpec, training: DatasetRef, validation: DatasetRef | None, known: Known, settings: Settings) -> Estimate:
    """What the job would take on these datasets."""
    resources = spec.tunesmith.resources
    asked = gang(resources, known.capacity) if known.capacity else None
    longest = max(training.longest, validation.longest if validation else 0)
    choice = choose_engine(known.sizes, spec.tunesmith, longest=longest, memory_bytes=worker_memory(_memory(known, resources), resources))
    resolved = resolve(spec, training, choice.engine)
    plan = _plan(spec, resolved, longest, known, asked, choice)
    time = _time(spec, resolved, training, validation, known, asked) if asked else None
    return Estimate(
        ok=True,
        training=known.reports[0],
        validation=known.reports[1],
        resolved=resolved,
        trained_tokens=training.trained_tokens * resolved.n_epochs,
        plan=plan,
        placement=_placement(plan, known, asked),
        time=time,
        cost=_cost(time, asked, settings) if time and asked else None,
        notes=tuple(_notes(plan, time, asked)),
    )


def _memory(known: Known, resources: ResourceSpec) -> int | None:
    return known.device.memory_bytes if resources.gpus_per_worker else known.node_memory


def _plan(spec: JobSpec, resolved: Resolved, longest: int, known: Known, asked: Gang | None, choice: Choice) -> PlanEstimate:
    resources = spec.tunesmith.resources
    on_cpu = resources.gpus_per_worker == 0
    load = Load.of(known.sizes, spec.tunesmith, resolved.engine, on_cpu=on_cpu)
    rows = -(-resolved.batch_size // resources.replicas)
    memory = _memory(known, resources)
    share = worker_memory(memory, resources)
    together = most_together(asked, known.capacity) if asked and known.capacity else None
    chosen = None if share is None else load.micro_batch(longest=longest, rows=rows, memory_bytes=share)
    need = load.memory(chosen or 1, longest)
    return PlanEstimate(
        engine=resolved.engine,
        device="cpu" if on_cpu else "gpu",
        workers=resources.workers,
        cpus_per_worker=asked.cpus_per_worker if asked else None,
        gpus_per_worker=resources.gpus_per_worker,
        micro_batch=chosen,
        micro_batches=None if chosen is None else -(-rows // chosen),
        memory=MemoryEstimate(**asdict(need), total=need.total, available=worker_memory(memory, resources, together)),
        run_memory=RUN_BYTES if on_cpu else 0,
        reasons=tuple(_reasons(load, choice, rows, chosen)),
    )


def _device_reason(load: Load) -> str:
    if load.on_cpu:
        return "no GPU is asked for: it trains on the processor, in float32"
    if load.engine != "torch":
        return "on a GPU it computes in bfloat16, with float32 masters of what is trained"
    if load.adapters.full:
        return "on a GPU plain torch trains a whole model in float32"
    return "on a GPU the base model is bfloat16 and the adapter float32"


def _reasons(load: Load, choice: Choice, rows: int, micro_batch: int | None) -> list[str]:
    told = [choice.why, _device_reason(load)]
    if load.checkpointing:
        told.append("only each layer's input is kept for the backward pass, and the rest is computed again")
    if load.sharing > 1:
        told.append(f"{load.sharing} workers share each row, a part of its tokens each (sequence parallelism)")
    if load.on_nvme:
        told.append(f"optimizer state lies on NVMe: {load.nvme_bytes / 2**30:.1f} GiB of each worker's node, which must have them free")
    elif load.offloaded:
        told.append("optimizer state lies in the host's memory, which is not counted here")
    if micro_batch is not None and micro_batch < rows:
        whom = "a worker" if load.sharing == 1 else "the workers that share them"
        told.append(f"{rows} rows of a step are too many at once for {whom}: they go through {micro_batch} at a time")
    return told


def _placement(plan: PlanEstimate, known: Known, asked: Gang | None) -> Placement:
    if known.capacity is None or asked is None:
        return Placement(fits=None, starts_now=None, reason="the cluster can't be asked just now")
    used = [gang(other, known.capacity) for other in known.others]
    waits = shortage(asked, known.capacity, used)
    if not fits_ever(asked, known.capacity):
        return Placement(fits=False, starts_now=False, reason=waits)
    memory = plan.memory
    if memory.available is None:
        return Placement(fits=None, starts_now=None, reason=waits or "it is not known how much memory a worker has")
    if memory.total > memory.available:
        need = f"a worker needs about {memory.total / 2**30:.1f} GiB and may take {memory.available / 2**30:.1f} GiB"
        hint = "lower max_length or the adapter's rank, set activation_checkpointing, use fewer workers on a node, or a smaller base model"
        return Placement(fits=False, starts_now=False, reason=f"{need}: {hint}")
    return Placement(fits=True, starts_now=not waits, reason=f"fits; {waits}" if waits else "fits")


def _time(
    spec: JobSpec, resolved: Resolved, training: DatasetRef, validation: DatasetRef | None, known: Known, asked: Gang
) -> TimeEstimate | None:
    assert known.capacity is not None
    adapter, every = spec.tunesmith.adapter, spec.tunesmith.evaluation.every_steps
    evaluations = -(-resolved.steps // every) if validation else 0
    scored = token_flops(known.sizes, adapter, validation) * validation.tokens * FORWARD_SHARE if validation else 0.0
    load = Load.of(known.sizes, spec.tunesmith, resolved.engine, on_cpu=asked.gpus == 0)
    work = Work(
        flops=token_flops(known.sizes, adapter, training) * training.tokens * resolved.n_epochs,
        evaluation_flops=scored * evaluations,
        steps=resolved.steps,
        weights_bytes=load.parameters * load.shape.bytes_per_number,
    )
    earlier = [past(run, known.sizes, gang(run.resources, known.capacity)) for run in known.runs]
    return duration(work, asked, earlier, known.device)


def _cost(time: TimeEstimate, asked: Gang, settings: Settings) -> CostEstimate | None:
    """GPUs and cores at their prices; None unless there is a price for what the job trains on."""
    gpu, cpu = settings.price_per_gpu_hour, settings.price_per_cpu_hour
    if (gpu if asked.gpus else cpu) is None:
        return None
    paid = [(asked.gpus, "GPU", gpu), (asked.cpus, "core", cpu)]
    lines = [(count, noun, price) for count, noun, price in paid if count and price is not None]
    per_second = sum(count * price for count, _, price in lines) / 3600
    told = " and ".join(f"{count} {noun}{'' if count == 1 else 's'} at {price:g}" for count, noun, price in lines)
    based_on = f"{told} {settings.currency} an hour each"
    return CostEstimate(low=time.low * per_second, high=time.high * per_second, currency=settings.currency, based_on=based_on)


def _notes(plan: PlanEstimate, time: TimeEstimate | None, asked: Gang | None) -> list[str]:
    told: list[str] = []
    if asked is None:
        told.append("Time and cost are left out: the cluster can't be asked just now.")
    elif time is None:
        told.append("Time and cost are left out: the GPU's type is not one whose speed is known; set TUNESMITH_GPU_TFLOPS.")
    if plan.micro_batch is None and plan.device == "gpu":
        told.append("The GPU's memory is not known: set TUNESMITH_GPU_MEMORY_BYTES. Memory is counted for one row at a time.")
    elif plan.micro_batch is None:
        told.append("The nodes' memory is not known, because the cluster can't be asked. Memory is counted for one row at a time.")
    return told
