"""How many rows one forward pass takes. Pure arithmetic over the model's shape, the rows and the device's memory.

Called by `run` once a job; the answer is kept in every checkpoint, since another split adds up in another order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

CPU_TOKENS = 2048
"""Tokens of one forward pass on a processor: beyond this matrix products get no faster, only memory grows."""
MEMORY_SHARE = 0.4
"""Part of the memory that activations may take; the rest is weights, optimizer, fragmentation and neighbours."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a decoder decides the size of its activations."""

    hidden: int
    intermediate: int
    kv: int
    """Width of keys, and of values."""
    layers: int
    bytes_per_number: int

    @classmethod
    def of(cls, config: Any, bytes_per_number: int) -> Shape:
        """From a transformers configuration; what it does not name is taken as the widest it could be."""
        hidden, heads = config.hidden_size, config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or hidden // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        return cls(
            hidden,
            getattr(config, "intermediate_size", None) or 4 * hidden,
            kv_heads * head_dim,
            config.num_hidden_layers,
            bytes_per_number,
        )

    @property
    def activation_bytes(self) -> int:
        """Kept for the backward pass, for each token: inputs of both norms, of attention, of every projection and of the gate."""
        return self.layers * (6 * self.hidden + 2 * self.kv + 3 * self.intermediate) * self.bytes_per_number


def micro_batch(shape: Shape, *, longest: int, rows: int, memory_bytes: int, on_cpu: bool) -> int:
    """Rows of one forward pass: at least 1, at most `rows`, the rank's share of a batch.

    `longest` is the longest row in tokens, `memory_bytes` what the device has for this worker in all.
    """
    tokens = int(memory_bytes * MEMORY_SHARE) // shape.activation_bytes
    if on_cpu:
        tokens = min(tokens, CPU_TOKENS)
    return max(1, min(rows, tokens // max(1, longest)))


def host_memory_bytes() -> int:
    """Memory of this machine or of its container, whichever is less. Total, not free: the plan must not change with the hour."""
    total = int(next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal")).split()[1]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    words = limit.read_text().strip() if limit.is_file() else "max"
    return total if words == "max" else min(total, int(words))
