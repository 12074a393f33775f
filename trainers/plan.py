"""Which engine a job runs on, how many rows one forward pass takes, and how much memory a worker needs. Pure arithmetic over sizes.

Knows no torch, no job and no cluster. `run` calls it once a job for the micro-batch, which is kept in every checkpoint,
since another split adds up in another order; the service calls the same functions for its estimate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from math import isqrt
from pathlib import Path
from typing import Any, Literal

from trainers.model_files import Sizes
from trainers.spec import AUTO, ZERO3_ALONE, EngineName, ResourceSpec, TunesmithSpec, ZeroSpec

CPU_TOKENS = 2048
"""Tokens of one forward pass on a processor: beyond this matrix products get no faster, only memory grows."""
MEMORY_SHARE = 0.5
"""Part of what a worker may take that activations may take at the most."""
USABLE_SHARE = 0.85
"""Part of a device's or a node's memory that runs may take; the rest is the system's, the gateway's and Ray's, which ends runs at 0.95."""
CHECKPOINTED_SHARE = 0.5
"""Part of the activations that checkpointing leaves on a processor: as measured, which is far more than what it keeps."""
RUN_BYTES = 1150 << 20
"""Of a run's own processes beside its workers (driver, supervisor, controller and its actors), once a run, in the memory of nodes:
318, 80, 278 and 4 times 115 MiB were measured (shared pages divided among those who share them)."""
MARGIN_SHARE = {True: 0.05, False: 0.1}
"""What fragmentation and passing copies add to the rest, on a processor as measured (docs/estimate.md), on a GPU on trust."""
PROCESS_BYTES = {True: 550 << 20, False: 1500 << 20}
"""On a processor a worker's interpreter with its libraries (resident); on a GPU the device's context and its libraries' workspaces."""
HEAD_CHUNK_BYTES = {True: 48 << 20, False: 512 << 20}
"""Most bytes of float32 logits that the head makes at a time, on a processor and on a GPU; beyond it only memory grows."""
SMALL_ATTENTION = 128 * 128
"""Queries times keys of a row up to which attention over packed tokens keeps its probabilities."""
PACKED_MODULES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
"""Linear modules of a decoder that `decoder` runs over packed tokens."""
LOGIT_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Settings of a model whose logits are more than a product with the head: they exist in full then."""
ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers, as config.json names them, in which attention alone looks at several tokens."""
LENGTHS_ROTATION = {"dynamic", "longrope", "su"}
"""Rotary embeddings whose frequencies are chosen by the longest position that is seen."""
GATHERED_NUMBERS, BUCKET_NUMBERS = 1_000_000_000, 500_000_000
"""Most numbers that ZeRO 3 holds whole at a time, and that a ZeRO engine reduces at a time: DeepSpeed's defaults."""
OFFLOAD_BUFFERS: Mapping[EngineName, int] = {"zero1": 3, "zero2": 2, "zero3": 1}
"""How often an engine has a worker's own part in buffers on the host, where optimizer state is offloaded; as measured."""
_NAMES = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "intermediate": ("intermediate_size", "n_inner", "ffn_dim", "d_ff"),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a decoder decides the size of its activations."""

    hidden: int
    intermediate: int
    queries: int
    """Width of queries, and of what attention gives."""
    kv: int
    """Width of keys, and of values."""
    heads: int
    layers: int
    vocabulary: int
    bytes_per_number: int
    packed: bool
    """Whether the decoder runs over packed tokens, which keeps less than the library does."""
    full_logits: bool
    """Whether the logits of all tokens exist at once."""

    @classmethod
    def of(cls, config: Mapping[str, Any], modules: Iterable[str], *, on_cpu: bool, by_modules: bool = False) -> Shape:
        """From config.json and the paths of linear modules; what it does not name is taken as the widest it could be.

        `by_modules`: the library computes, also where the packed form could.
        """
        hidden, layers, heads = (int(_named(config, name) or 1) for name in ("hidden", "layers", "heads"))
        head_dim = config.get("head_dim") or hidden // heads
        kv_heads = config.get("num_key_value_heads") or heads
        llama_like = {path.rpartition(".")[2] for path in modules} == PACKED_MODULES and config.get("hidden_act") in ("silu", "swish")
        return cls(
            hidden=hidden,
            intermediate=int(_named(config, "intermediate") or 4 * hidden),
            queries=heads * head_dim,
            kv=kv_heads * head_dim,
            heads=heads,
            layers=layers,
            vocabulary=int(config.get("vocab_size") or 0),
            bytes_per_number=4 if on_cpu else 2,
            packed=on_cpu and llama_like and not by_modules,
            full_logits=transforms_logits(config),
        )

    def activation_bytes(self, longest: int, adapters: Adapters) -> int:
        """Kept for the backward pass, for each token of a row of `longest` tokens."""
        kept = self._kept_packed(longest) if self.packed else self._kept_by_library
        low = 7 * adapters.r
        per_layer = (kept + low) * self.bytes_per_number
        if adapters.dropout:  # the packed form keeps masks; PEFT's own modules their input and mask in float32
            per_layer += (5 * self.hidden + self.queries + self.intermediate) * (1 if self.packed else 8)
        return self.layers * per_layer

    def _kept_packed(self, longest: int) -> int:
        """Inputs of both halves, queries, keys, values, attention's output, gate and up; see `blocks` and `attention`.

        Of short rows the probabilities are kept, and shorter rows than the longest may be the larger part; of others one number a query.
        """
        kept, short = 2 * self.hidden + 2 * self.queries + 2 * self.kv + 2 * self.intermediate + 2, isqrt(SMALL_ATTENTION)
        if longest <= short:
            return kept + self.heads * longest
        return max(kept + self.heads, (kept + self.heads * short) * short // longest)

    @property
    def _kept_by_library(self) -> int:
        """As autograd keeps it: both norms in float32 and once more rounded, keys and values repeated for every head, all of the MLP."""
        in_float32 = 2 * self.hidden * 4 // self.bytes_per_number
        return in_float32 + 2 * self.hidden + 6 * self.queries + 4 * self.intermediate

    @property
    def working_bytes(self) -> int:
        """For each token, what the layer at work holds besides, forward or backward."""
        return (6 * self.hidden + 2 * self.queries + 5 * self.intermediate) * self.bytes_per_number


@dataclass(frozen=True, slots=True)
class Adapters:
    """What of an adapter decides memory."""

    numbers: int
    """That are trained: those of the adapter, or all of the model's."""
    r: int
    dropout: bool
    full: bool = False


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that one worker takes at its peak, on the device it trains on."""

    process: int
    weights: int
    adapter: int
    gradients: int
    optimizer: int
    copies: int
    activations: int
    head: int
    margin: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, part.name) for part in fields(self))


@dataclass(frozen=True, slots=True)
class Division:
    """How many workers an engine divides each part of a worker's state over (Rajbhandari et al. 2020, fig. 1)."""

    weights: int = 1
    gradients: int = 1
    optimizer: int = 1

    @classmethod
    def of(cls, engine: EngineName, workers: int) -> Division:
        """ZeRO 1 divides optimizer state, 2 gradients too, 3 weights too."""
        stage = 0 if engine == "torch" else int(engine.removeprefix("zero"))
        return cls(*(workers if stage >= least else 1 for least in (3, 2, 1)))


@dataclass(frozen=True, slots=True)
class Load:
    """What one worker holds and computes: its part of a base model and of what is trained of it."""

    shape: Shape
    parameters: int
    """Numbers of the base model."""
    adapters: Adapters
    on_cpu: bool
    engine: EngineName = "torch"
    division: Division = Division()
    checkpointing: bool = False
    """Whether only each layer's input is kept for the backward pass."""
    offload: Literal["cpu", "nvme"] | None = None
    """Where optimizer state lies, if not on the device."""
    second_copies: int = 1
    """Workers that hold a second copy of the weights among them; with 1 there is none."""
    gathered: int = GATHERED_NUMBERS
    bucket: int = BUCKET_NUMBERS
    sharing: int = 1
    """Workers that share each row, a part of its tokens each."""

    @classmethod
    def of(cls, sizes: Sizes, spec: TunesmithSpec, engine: EngineName, *, on_cpu: bool) -> Load:
        """What a job on a base model of these sizes comes to on that engine."""
        adapter, resources, full = spec.adapter, spec.resources, spec.adapter.type == "full"
        numbers = sizes.parameters if full else sizes.adapter(adapter.target_modules, adapter.r)
        adapters = Adapters(numbers, 0 if full else adapter.r, adapter.dropout > 0, full)
        by_modules = full or engine != "torch" or spec.training.activation_checkpointing or resources.sequence_parallel > 1
        shape = Shape.of(sizes.config, sizes.linear, on_cpu=on_cpu, by_modules=by_modules)
        if full and engine == "torch":  # it keeps no masters beside what it computes with
            shape = replace(shape, bytes_per_number=4)
        given = resources.deepspeed.zero_optimization if resources.deepspeed and engine != "torch" else ZeroSpec()
        return cls(
            shape=shape,
            parameters=sizes.parameters,
            adapters=adapters,
            on_cpu=on_cpu,
            engine=engine,
            division=Division.of(engine, resources.workers),
            checkpointing=spec.training.activation_checkpointing,
            offload=given.offload_optimizer.device if given.offload_optimizer else None,
            second_copies=given.zero_hpz_partition_size or 1,
            gathered=given.stage3_max_live_parameters or GATHERED_NUMBERS,
            bucket=given.reduce_bucket_size or BUCKET_NUMBERS,
            sharing=resources.sequence_parallel,
        )

    def memory(self, rows: int, longest: int) -> Memory:
        """While it trains with micro-batches of `rows` rows of at most `longest` tokens. AdamW's state is float32 on every device."""
        tokens = rows * -(-longest // self.sharing)
        trained = 4 * self.adapters.numbers
        parts = {
            "process": PROCESS_BYTES[self.on_cpu],
            "weights": self._weight_bytes(),
            "adapter": 0 if self.adapters.full else self._trained_bytes() // self.division.weights,
            "gradients": self._gradient_bytes(),
            "optimizer": self._optimizer_bytes(),
            # Weights and moments on their way to storage, one checkpoint at a time; on a GPU that is other memory.
            "copies": 3 * trained if self.on_cpu else 0,
            "activations": tokens * self.token_bytes(longest),
            "head": self._head_bytes(tokens),
        }
        return Memory(**parts, margin=int(MARGIN_SHARE[self.on_cpu] * sum(parts.values())))

    def token_bytes(self, longest: int) -> int:
        """Of one token of a row of `longest`: what is kept for the backward pass, and what the layer at work holds besides."""
        shape = self.shape
        whole = shape.activation_bytes(longest, self.adapters)
        if not self.checkpointing:
            return whole + shape.working_bytes
        least = shape.layers * shape.hidden * shape.bytes_per_number + whole // shape.layers + shape.working_bytes
        return max(least, int(CHECKPOINTED_SHARE * (whole + shape.working_bytes))) if self.on_cpu else least

    @property
    def _masters(self) -> bool:
        """Whether what is trained is computed with in one type and kept by the optimizer in another place, in float32."""
        return self.engine != "torch"

    @property
    def _bytes_of_trained(self) -> int:
        """ZeRO computes in the model's own type beside its masters; plain torch trains float32 itself."""
        return self.shape.bytes_per_number if self._masters else 4

    def _weight_bytes(self) -> int:
        """ZeRO 3: the worker's part and what is gathered at a time, which DeepSpeed bounds.

        On a processor as much again as is gathered, and the whole as it was loaded: so it was measured.
        """
        each = self._bytes_of_trained if self.adapters.full else self.shape.bytes_per_number
        whole = self.parameters * each
        if self.engine != "zero3":
            return whole
        gathered = min(self.parameters, self.gathered) * each
        second = whole // self.second_copies if self.second_copies > 1 else 0
        return whole // self.division.weights + second + gathered + (gathered + whole if self.on_cpu else 0)

    def _trained_bytes(self) -> int:
        return self.adapters.numbers * self._bytes_of_trained

    def _optimizer_bytes(self) -> int:
        """Two moments, the masters, and a step's gradient in float32 where DeepSpeed makes one of the worker's own part.

        In files, moments and masters are not counted. Offloaded state brings buffers of its own, of the worker's part and of the
        largest tensor.
        """
        if self.offloaded:
            return 0
        if not self.offload:
            return 4 * self._own_numbers * (4 if self._masters else 2)
        largest = self.shape.vocabulary * self.shape.hidden if self.adapters.full else 0
        kept = 1 + OFFLOAD_BUFFERS[self.engine] + (0 if self.on_nvme else 3)
        return 4 * (kept * self._own_numbers + 2 * largest)

    @property
    def offloaded(self) -> bool:
        """Whether optimizer state lies off the device. On a processor the host's memory is the device's."""
        return self.offload is not None and not self.on_cpu

    @property
    def on_nvme(self) -> bool:
        """Whether optimizer state lies in files of the node."""
        return self.offload == "nvme"

    @property
    def _own_numbers(self) -> int:
        """Trained numbers whose optimizer state this worker has."""
        return self.adapters.numbers // self.division.optimizer

    @property
    def nvme_bytes(self) -> int:
        """Of the node's NVMe: two moments and the masters."""
        return 12 * self._own_numbers if self.on_nvme else 0

    def _gradient_bytes(self) -> int:
        """Plain torch: one buffer. ZeRO: those not reduced yet, the worker's own part, and what comes in of it from other workers."""
        whole = self._trained_bytes()
        if not self._masters:
            return whole
        part, bucket = whole // self.division.optimizer, min(self.adapters.numbers, self.bucket) * self._bytes_of_trained
        waiting = whole if self.engine == "zero1" else bucket  # ZeRO 1 reduces them all at the end
        return waiting + part + (min(part, bucket) if self.division.optimizer > 1 else 0)

    def _head_bytes(self, tokens: int) -> int:
        shape = self.shape
        own = shape.vocabulary * shape.hidden * self._bytes_of_trained if self.adapters.full else 0  # its gradient, before it is added
        if shape.full_logits:  # logits, the same in float32, their log-softmax, and the gradients of these
            return own + tokens * shape.vocabulary * (2 * shape.bytes_per_number + 12)
        logits = min(HEAD_CHUNK_BYTES[self.on_cpu], tokens * shape.vocabulary * 4)
        return own + 2 * logits + 3 * tokens * shape.hidden * shape.bytes_per_number

    def micro_batch(self, *, longest: int, rows: int, memory_bytes: int) -> int:
        """Rows of one forward pass: at least 1, at most `rows`, a replica's share of a batch.

        `longest` is the longest row in tokens, `memory_bytes` what this worker may take in all, see worker_memory.
        """
        longest = max(1, longest)
        tokens = int(memory_bytes * MEMORY_SHARE) // self.token_bytes(longest)
        if self.on_cpu:
            tokens = min(tokens, CPU_TOKENS)
        most = min(rows, tokens // -(-longest // self.sharing))
        return next((n for n in range(most, 1, -1) if self.memory(n, longest).total <= memory_bytes), 1)


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine, and why it is that one, in words."""

    engine: EngineName
    why: str


def settled_engine(spec: TunesmithSpec) -> Choice | None:
    """The engine of a job for which it does not depend on sizes: it or its settings are named, or one worker has nobody to divide with."""
    resources, workers = spec.resources, spec.resources.workers
    if resources.engine != AUTO:
        return Choice(resources.engine, f"{resources.engine} is what the job names: {_what(resources.engine, workers)}")
    if resources.deepspeed and (alone := ZERO3_ALONE & resources.deepspeed.wanted):
        return Choice("zero3", f"{min(alone)} is a setting of zero3: {_what('zero3', workers)}")
    if workers == 1 and resources.deepspeed is None and not _wants_masters(spec):
        return Choice("torch", _what("torch", workers))
    return None


def choose_engine(sizes: Sizes, spec: TunesmithSpec, *, longest: int, memory_bytes: int | None) -> Choice:
    """The engine that is settled, or the first of torch, zero2 and zero3 on which one row at a time fits a worker.

    `memory_bytes` is what a worker may take in all, see worker_memory; None where it is not known.
    """
    if settled := settled_engine(spec):
        return settled
    resources = spec.resources

    def fits(engine: EngineName) -> bool:
        need = Load.of(sizes, spec, engine, on_cpu=resources.gpus_per_worker == 0).memory(1, longest).total
        return memory_bytes is None or need <= memory_bytes

    if resources.deepspeed is not None:
        cause = "torch takes no settings of DeepSpeed"
    elif _wants_masters(spec):
        cause = "torch keeps no float32 masters beside bfloat16 weights"
    elif fits("torch"):
        return Choice("torch", _what("torch", resources.workers))
    else:
        cause = "a worker can't hold it all"
    engine: EngineName = "zero2" if fits("zero2") else "zero3"
    return Choice(engine, f"{cause}: {_what(engine, resources.workers)}")


def _wants_masters(spec: TunesmithSpec) -> bool:
    """Whole models on GPUs: bfloat16 alone loses small updates, float32 alone is slow."""
    return spec.adapter.type == "full" and spec.resources.gpus_per_worker > 0


def _what(engine: EngineName, workers: int) -> str:
    if engine == "torch":
        if workers == 1:
            return "one worker holds the whole base model, so a step is plain torch"
        return f"each of the {workers} workers holds the whole base model, and their gradients are summed (DDP)"
    parts = ("optimizer state is", "optimizer state and gradients are", "optimizer state, gradients and weights are")
    divided, stage = "worker" if workers == 1 else "workers", int(engine[-1])
    return f"{parts[stage - 1]} divided over {workers} {divided} (ZeRO {stage})"


def worker_memory(memory_bytes: int | None, resources: ResourceSpec, together: int | None = None) -> int | None:
    """Bytes that a worker may take of a GPU's memory, or of a node's `memory_bytes`; None where these are not known.

    Of a node's, the run's own processes come first, wherever they are, and `together` workers share the rest: all of them
    unless given, for a run must not depend on where its workers happen to lie.
    """
    if memory_bytes is None:
        return None
    usable = int(memory_bytes * USABLE_SHARE)
    return usable if resources.gpus_per_worker else max(0, usable - RUN_BYTES) // (together or resources.workers)


def unshareable(config: Mapping[str, Any], spec: TunesmithSpec, longest: int) -> str:
    """Why workers can't share rows of up to `longest` tokens of this base model as the job asks, in words; empty when they can.

    What config.json does not tell is found out when the model is loaded: trainers.model.
    """
    size, heads = spec.resources.sequence_parallel, int(_named(config, "heads") or 1)
    if size == 1:
        return ""
    asked = f"sequence_parallel is {size}, and the base model"
    if heads % size:
        return f"{asked}'s {heads} attention heads can't be divided by that"
    if kinds := set(config.get("layer_types") or ()) - ATTENTION_LAYERS:
        return f"{asked} has layers of the kind {min(kinds)}, which need whole rows"
    if rotations := _rotations(config) & LENGTHS_ROTATION:
        return f"{asked}'s rotary embedding ({min(rotations)}) depends on the length of the whole row"
    windows = [config.get(name) for name in ("sliding_window", "attention_chunk_size") if config.get("use_sliding_window", True)]
    narrowest = min((int(window) for window in windows if window), default=longest)
    return f"{asked}'s attention sees {narrowest} tokens back, and the longest row has {longest}" if narrowest < longest else ""


def _rotations(config: Mapping[str, Any]) -> set[str]:
    """Kinds of rotary embeddings, under the names and in the places that config.json has had for them."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    each = [found, *(part for part in found.values() if isinstance(part, dict))]
    return {str(kind) for part in each for name in ("rope_type", "type") if (kind := part.get(name))}


def transforms_logits(config: Mapping[str, Any]) -> bool:
    """Whether the model caps or scales its logits: where that is gentle, a probe can't see it."""
    return any(config.get(name) not in (None, 1, 1.0) for name in LOGIT_TRANSFORMS)


def host_memory_bytes() -> int:
    """Memory of this machine or of its container, whichever is less. Total, not free: the plan must not change with the hour."""
    total = int(next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal")).split()[1]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    words = limit.read_text().strip() if limit.is_file() else "max"
    return total if words == "max" else min(total, int(words))


def _named(config: Mapping[str, Any], part: str) -> Any:
    return next((config[name] for name in _NAMES[part] if config.get(name)), None)
