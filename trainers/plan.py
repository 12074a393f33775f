"""How many rows one forward pass takes, and how much memory a worker needs for it. Pure arithmetic over sizes.

Knows no torch, no job and no cluster. `run` calls it once a job for the micro-batch, which is kept in every checkpoint,
since another split adds up in another order; the service calls the same functions for its estimate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from trainers.model_files import Sizes
from trainers.spec import AdapterSpec

CPU_TOKENS = 2048
"""Tokens of one forward pass on a processor: beyond this matrix products get no faster, only memory grows."""
MEMORY_SHARE = 0.4
"""Part of the memory that activations may take at the most."""
USABLE_SHARE = 0.85
"""Part of the memory that a worker may take in all; the rest is fragmentation and neighbours."""
MARGIN_SHARE = 0.1
"""What fragmentation and passing copies add to the rest; the measured peaks are in docs/estimate.md."""
PROCESS_BYTES = {True: 900 << 20, False: 1500 << 20}
"""On a processor the interpreter with its libraries (resident); on a GPU the device's context and its libraries' workspaces."""
HEAD_CHUNK_BYTES = {True: 48 << 20, False: 512 << 20}
"""Most bytes of float32 logits that the head makes at a time, on a processor and on a GPU; beyond it only memory grows."""
SMALL_ATTENTION = 128 * 128
"""Queries times keys of a row up to which attention over packed tokens keeps its probabilities."""
PACKED_MODULES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
"""Linear modules of a decoder that `decoder` runs over packed tokens."""
LOGIT_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Settings of a model whose logits are more than a product with the head: they exist in full then."""
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
    def of(cls, config: Mapping[str, Any], modules: Iterable[str], *, on_cpu: bool) -> Shape:
        """From config.json and the paths of linear modules; what it does not name is taken as the widest it could be."""
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
            packed=on_cpu and llama_like,
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
        """Inputs of both halves, queries, keys, values, attention's output, gate and up; see `blocks` and `attention`."""
        probabilities = self.heads * max(1, min(longest, SMALL_ATTENTION // longest))
        return 2 * self.hidden + 2 * self.queries + 2 * self.kv + 2 * self.intermediate + probabilities + 2

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
    r: int
    dropout: bool


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
class Load:
    """What one worker holds and computes: a whole base model with an adapter on it."""

    shape: Shape
    parameters: int
    """Numbers of the base model."""
    adapters: Adapters
    on_cpu: bool

    @classmethod
    def of(cls, sizes: Sizes, adapter: AdapterSpec, *, on_cpu: bool) -> Load:
        """What `adapter` on a base model of these sizes comes to."""
        adapters = Adapters(sizes.adapter(adapter.target_modules, adapter.r), adapter.r, adapter.dropout > 0)
        return cls(Shape.of(sizes.config, sizes.linear, on_cpu=on_cpu), sizes.parameters, adapters, on_cpu)

    def memory(self, rows: int, longest: int) -> Memory:
        """While it trains with micro-batches of `rows` rows of at most `longest` tokens. The adapter is float32 on every device."""
        shape, tokens, adapter = self.shape, rows * longest, 4 * self.adapters.numbers
        parts = {
            "process": PROCESS_BYTES[self.on_cpu],
            "weights": self.parameters * shape.bytes_per_number,
            "adapter": adapter,
            "gradients": adapter,
            "optimizer": 2 * adapter,
            # A checkpoint is copied to the host, and once more as the bytes of its files; on a GPU that is other memory.
            "copies": 2 * 3 * adapter if self.on_cpu else 0,
            "activations": tokens * (shape.activation_bytes(longest, self.adapters) + shape.working_bytes),
            "head": self._head_bytes(tokens),
        }
        return Memory(**parts, margin=int(MARGIN_SHARE * sum(parts.values())))

    def _head_bytes(self, tokens: int) -> int:
        shape = self.shape
        if shape.full_logits:  # logits, the same in float32, their log-softmax, and the gradients of these
            return tokens * shape.vocabulary * (2 * shape.bytes_per_number + 12)
        logits = min(HEAD_CHUNK_BYTES[self.on_cpu], tokens * shape.vocabulary * 4)
        return 2 * logits + 3 * tokens * shape.hidden * shape.bytes_per_number

    def micro_batch(self, *, longest: int, rows: int, memory_bytes: int) -> int:
        """Rows of one forward pass: at least 1, at most `rows`, the rank's share of a batch.

        `longest` is the longest row in tokens, `memory_bytes` what the device has for this worker in all.
        """
        longest = max(1, longest)
        left = int(memory_bytes * USABLE_SHARE) - self.memory(0, longest).total
        per_token = self.shape.activation_bytes(longest, self.adapters) + self.shape.working_bytes
        tokens = min(int(memory_bytes * MEMORY_SHARE), max(0, left)) // per_token
        if self.on_cpu:
            tokens = min(tokens, CPU_TOKENS)
        return max(1, min(rows, tokens // longest))


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
