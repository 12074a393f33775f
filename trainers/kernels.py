"""The inner operations of a decoder with LoRA, each with its backward pass by hand: same mathematics, less time and memory.

Plain functions on tensors [tokens, features]; they keep what the caller keeps and build no graph. Know nothing of
modules, batches or losses. `blocks` puts them together for CPUs; `LoraProduct` alone serves every device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, silu

_onednn_linear = torch.ops.mkldnn._linear_pointwise


@cache
def prefers_onednn() -> bool:
    """Whether oneDNN multiplies faster here: MKL keeps AVX-512 to Intel's processors. A fact, not a timing, so that runs repeat."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return False
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "GenuineIntel" not in cpuinfo.read_text()


def times_transposed(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [n, in] · weight[out, in]ᵀ (+ bias)."""
    if x.dtype == torch.float32 and x.device.type == "cpu" and prefers_onednn():
        return _onednn_linear(x, weight, bias, "none", [], "")
    return linear(x, weight, bias)


@dataclass(frozen=True)
class Projection:
    """A frozen linear module and, where it has one, its LoRA: y = x·Wᵀ + bias + scale·(dropout(x)·Aᵀ)·Bᵀ."""

    weight: Tensor
    """[out, in]"""
    bias: Tensor | None
    a: Tensor | None = None
    """[r, in]"""
    b: Tensor | None = None
    """[out, r]"""
    scale: float = 1.0
    dropout: float = 0.0

    @property
    def adapter(self) -> tuple[Tensor, ...]:
        """The trained tensors, A then B."""
        return () if self.a is None or self.b is None else (self.a, self.b)


@dataclass(frozen=True)
class Lowered:
    """What the backward pass of `project` needs besides its input: x·Aᵀ of all adapters side by side, and dropout's masks."""

    low: Tensor | None
    """[n, sum of ranks]"""
    masks: tuple[Tensor, ...] = ()
    """For each adapter [n, in] bool; none without dropout."""


def project(x: Tensor, projections: Sequence[Projection], *, training: bool, addend: Tensor | None = None) -> tuple[list[Tensor], Lowered]:
    """The outputs of projections that read the same `x` [n, in]; `addend` [n, out] is added to a single one's output."""
    adapted = [p for p in projections if p.adapter]
    lowered = _lower(x, adapted, training) if adapted else Lowered(None)
    outputs, column = [], 0
    for p in projections:
        y = times_transposed(x, p.weight, p.bias)
        if p.a is not None and p.b is not None:
            rank = len(p.a)
            y.addmm_(lowered.low[:, column : column + rank], p.b.t(), alpha=p.scale)
            column += rank
        outputs.append(y if addend is None else y.add_(addend))
    return outputs, lowered


def _lower(x: Tensor, adapted: Sequence[Projection], training: bool) -> Lowered:
    if not (training and adapted[0].dropout):
        return Lowered(linear(x, _stacked(adapted)))
    masks = tuple(torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - p.dropout) for p in adapted)
    low = torch.cat([linear(x * mask, p.a).div_(1 - p.dropout) for p, mask in zip(adapted, masks, strict=True)], 1)
    return Lowered(low, masks)


def _stacked(adapted: Sequence[Projection]) -> Tensor:
    return adapted[0].a if len(adapted) == 1 else torch.cat([p.a for p in adapted])


def project_backward(
    grads: Sequence[Tensor], x: Tensor, projections: Sequence[Projection], lowered: Lowered, *, needs_x: bool
) -> tuple[Tensor | None, list[Tensor]]:
    """From the outputs' gradients: that of `x` (None unless needed), and those of every A and B in order."""
    grad_x = None
    if needs_x:
        for grad, p in zip(grads, projections, strict=True):
            grad_x = _plus_product(grad_x, grad, p.weight)
    adapted = [(grad, p) for grad, p in zip(grads, projections, strict=True) if p.adapter]
    if not adapted:
        return grad_x, []
    grad_low = torch.cat([(grad @ p.b).mul_(p.scale) for grad, p in adapted], 1)
    ranks = [len(p.a) for _, p in adapted]
    lows = lowered.low.split(ranks, 1)
    grads_b = [(low.t() @ grad).mul_(p.scale).t() for (grad, p), low in zip(adapted, lows, strict=True)]
    grad_x, grads_a = _lower_backward(grad_low, x, [p for _, p in adapted], lowered.masks, grad_x)
    return grad_x, [tensor for pair in zip(grads_a, grads_b, strict=True) for tensor in pair]


def _plus_product(total: Tensor | None, grad: Tensor, weight: Tensor) -> Tensor:
    if prefers_onednn():
        product = times_transposed(grad, weight.t())
        return product if total is None else total.add_(product)
    return grad @ weight if total is None else total.addmm_(grad, weight)


def _lower_backward(
    grad_low: Tensor, x: Tensor, adapted: Sequence[Projection], masks: tuple[Tensor, ...], grad_x: Tensor | None
) -> tuple[Tensor | None, Sequence[Tensor]]:
    ranks = [len(p.a) for p in adapted]
    if not masks:
        if grad_x is not None:
            grad_x.addmm_(grad_low, _stacked(adapted))
        return grad_x, (grad_low.t() @ x).split(ranks)
    grads_a = []
    for grad, p, mask in zip(grad_low.split(ranks, 1), adapted, masks, strict=True):
        kept = grad / (1 - p.dropout)
        grads_a.append(kept.t() @ (x * mask))
        if grad_x is not None:
            grad_x.add_((kept @ p.a).mul_(mask))
    return grad_x, grads_a


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """weight · x · r with r = 1 / sqrt(mean(x²) + eps) over the last dimension (Zhang & Sennrich 2019); and r [..., 1]."""
    inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (x * inverse).mul_(weight), inverse


def rms_norm_backward(grad: Tensor, x: Tensor, inverse: Tensor, weight: Tensor) -> Tensor:
    """The gradient of x: r·w·g - x · r³ · mean(w·g·x)."""
    weighted = grad * weight
    along = (weighted * x).sum(-1, keepdim=True).mul_(inverse.pow(3)).div_(-x.shape[-1])
    return weighted.mul_(inverse).addcmul_(x, along)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE (Su et al. 2021) on halves: x [tokens, heads, dim], cos and sin [tokens, 1, dim / 2]. With -sin it is its own backward."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    out = torch.empty_like(x)
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin)
    return out


def gated_silu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up (Shazeer 2020, SwiGLU)."""
    return silu(gate).mul_(up)


def gated_silu_again(gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """silu(gate) · up, once more for the backward pass, with silu(gate) and silu'(gate), by one sigmoid for all three."""
    sigmoid = torch.sigmoid(gate)
    activated = gate * sigmoid
    slope = torch.addcmul(activated, activated, sigmoid, value=-1).add_(sigmoid)
    return activated * up, activated, slope


class LoraProduct(Function):
    """One projection as a graph node for any device and for a base of lower precision than A and B, which are cast to x's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        low = linear(x, a.to(x.dtype))
        ctx.save_for_backward(x, low, weight, a, b)
        ctx.scale = scale
        return times_transposed(x, weight, bias).addmm_(low, b.to(x.dtype).t(), alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, low, weight, a, b = ctx.saved_tensors
        grad = grad.contiguous()
        grad_low = (grad @ b.to(grad.dtype)).mul_(ctx.scale)
        grad_a, grad_b = grad_low.t() @ x, (grad.t() @ low).mul_(ctx.scale)
        grad_x = (grad @ weight).addmm_(grad_low, a.to(grad.dtype)) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, grad_a.to(a.dtype), grad_b.to(b.dtype), None
