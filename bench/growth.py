"""How cost ought to grow: the exponent of what was measured, and the bytes that an engine's workers send. Pure arithmetic.

Knows no model, process or clock. Called by `scaling`, which prints what it measured beside it. The operations of a token
are those of the service's estimate, service.durations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from trainers.spec import EngineName


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """b of the least-squares fit y = a · x^b through points (x, y), all above 0 and at least two of them apart."""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    mean_x, mean_y = (sum(column) / len(logs) for column in zip(*logs, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)


def sent_bytes(engine: EngineName, workers: int, *, whole: int, trained: int, pieces: int = 1, scatters: bool = True) -> float:
    """Bytes that each worker sends in a step of `pieces` micro-batches, with rings (Patarasuk & Yuan 2009).

    `whole` and `trained` are bytes of the model's weights and of what is trained of it. DeepSpeed 0.19 reduces gradients of
    ZeRO 1 and 2 whole to every worker, so they send 3 where the paper (Rajbhandari et al. 2020, section 7) has 2. Where the
    backend has no reduce-scatter of its own (gloo: `scatters` False) ZeRO 3 sends as much for it as for an all-reduce.
    """
    gather = (workers - 1) / workers
    reduce = 2 * gather
    if engine == "torch":
        return reduce * trained
    if engine == "zero1":
        return (reduce + gather) * trained
    if engine == "zero2":
        return (pieces * reduce + gather) * trained
    return pieces * (2 * gather * whole + (gather if scatters else reduce) * trained)


def exchanged_bytes(sharing: int, tokens: int, *, layers: int, queries: int, kv: int, size: int) -> float:
    """Bytes that each of `sharing` workers sends in a step for attention over rows that they share (Jacobs et al. 2023).

    `tokens` are its own of the step, `queries` and `kv` the widths of queries and of keys, `size` bytes of a number. Queries,
    keys and values go out and attention's output comes back, once forward and once backward.
    """
    return 2 * layers * tokens * (2 * queries + 2 * kv) * size * (sharing - 1) / sharing
