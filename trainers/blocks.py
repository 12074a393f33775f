"""The two halves of a decoder layer, x + attention(norm(x)) and x + mlp(norm(x)), each one node of the graph.

One node keeps little (inputs of products; what is cheap is computed again in the backward pass) and adds gradients in
place. Frozen base, LoRA or nothing on each projection. Knows nothing of transformers or PEFT: `decoder` fills in the
parts. Their gradients are compared with autograd's in tests/unit/test_kernels.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from trainers.attention import Attention
from trainers.kernels import (
    Lowered,
    Projection,
    gated_silu,
    gated_silu_again,
    project,
    project_backward,
    rms_norm,
    rms_norm_backward,
    rotate,
)


@dataclass(frozen=True)
class Norm:
    """An RMS norm with frozen weight."""

    weight: Tensor
    eps: float


@dataclass(frozen=True)
class AttentionParts:
    """The modules of x + attention(norm(x)). Heads are normed before rotation where the model does so (Qwen3)."""

    norm: Norm
    inputs: tuple[Projection, Projection, Projection]
    """Query, key, value."""
    output: Projection
    head_norms: tuple[Norm, Norm] | None
    head_dim: int

    @property
    def adapters(self) -> list[Tensor]:
        """The trained tensors in the order in which gradients come back."""
        return [tensor for p in (*self.inputs, self.output) for tensor in p.adapter]


@dataclass(frozen=True)
class MlpParts:
    """The modules of x + down(silu(gate(norm(x))) · up(norm(x)))."""

    norm: Norm
    inputs: tuple[Projection, Projection]
    """Gate, up."""
    output: Projection

    @property
    def adapters(self) -> list[Tensor]:
        """The trained tensors in the order in which gradients come back."""
        return [tensor for p in (*self.inputs, self.output) for tensor in p.adapter]


@dataclass(frozen=True)
class Step:
    """What all layers share while they work on one batch."""

    attention: Attention
    cos: Tensor
    """[tokens, 1, head_dim / 2]"""
    sin: Tensor
    training: bool


class AttentionBlock(Function):
    """Called as `apply(x, parts, step, kept, *parts.adapters)`: x [tokens, hidden] -> [tokens, hidden], or [kept, hidden] rows of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: AttentionParts, step: Step, kept: Tensor | None, *_: Tensor) -> Tensor:
        normed, inverse = rms_norm(x, parts.norm.weight, parts.norm.eps)
        (q, k, v), lowered = project(normed, parts.inputs, training=step.training)
        q, k, v = (y.view(len(x), -1, parts.head_dim) for y in (q, k, v))
        q, k, raw = _norm_heads(q, k, parts.head_norms)
        q, k = rotate(q, step.cos, step.sin), rotate(k, step.cos, step.sin)
        mixed, state = step.attention.forward(q, k, v)
        flat, residual = mixed.view(len(x), -1), x
        if kept is not None:
            flat, residual = flat[kept], x[kept]
        [y], last = project(flat, [parts.output], training=step.training, addend=residual)
        ctx.parts, ctx.step, ctx.counts = parts, step, (len(raw), len(lowered.masks), len(last.masks))
        saved = (x, inverse, q, k, v, mixed, kept, lowered.low, last.low, *raw, *lowered.masks, *last.masks, *state)
        ctx.save_for_backward(*saved)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        parts, step = ctx.parts, ctx.step
        x, inverse, q, k, v, mixed, kept, low, last_low, *rest = ctx.saved_tensors
        raw, masks, last_masks, state = _split(rest, ctx.counts)
        grad, flat = grad.contiguous(), mixed.view(len(x), -1)
        last = Lowered(last_low, last_masks)
        grad_flat, of_output = project_backward([grad], flat if kept is None else flat[kept], [parts.output], last, needs_x=True)
        if kept is not None:
            grad, grad_flat = (torch.zeros(len(x), g.shape[1], dtype=g.dtype).index_copy_(0, kept, g) for g in (grad, grad_flat))
        grads = step.attention.backward(grad_flat.view_as(mixed), q, k, v, mixed, state)
        grad_q, grad_k = (rotate(g, step.cos, -step.sin) for g in grads[:2])
        grad_q, grad_k = _norm_heads_backward(grad_q, grad_k, raw, parts.head_norms)
        normed = (x * inverse).mul_(parts.norm.weight)
        flat_grads = [g.reshape(len(x), -1) for g in (grad_q, grad_k, grads[2])]
        grad_normed, of_inputs = project_backward(flat_grads, normed, parts.inputs, Lowered(low, masks), needs_x=ctx.needs_input_grad[0])
        grad_x = None if grad_normed is None else rms_norm_backward(grad_normed, x, inverse, parts.norm.weight).add_(grad)
        return grad_x, None, None, None, *of_inputs, *of_output


class MlpBlock(Function):
    """Called as `apply(x, parts, step, *parts.adapters)`: x [tokens, hidden] -> the same shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: MlpParts, step: Step, *_: Tensor) -> Tensor:
        normed, inverse = rms_norm(x, parts.norm.weight, parts.norm.eps)
        (gate, up), lowered = project(normed, parts.inputs, training=step.training)
        [y], last = project(gated_silu(gate, up), [parts.output], training=step.training, addend=x)
        ctx.parts, ctx.counts = parts, (len(lowered.masks),)
        ctx.save_for_backward(x, inverse, gate, up, lowered.low, last.low, *lowered.masks, *last.masks)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        parts = ctx.parts
        x, inverse, gate, up, low, last_low, *rest = ctx.saved_tensors
        masks, last_masks = _split(rest, ctx.counts)
        grad = grad.contiguous()
        product, activated, slope = gated_silu_again(gate, up)
        grad_product, of_output = project_backward([grad], product, [parts.output], Lowered(last_low, last_masks), needs_x=True)
        grads = [slope.mul_(up).mul_(grad_product), activated.mul_(grad_product)]
        normed = (x * inverse).mul_(parts.norm.weight)
        needs_x = ctx.needs_input_grad[0]
        grad_normed, of_inputs = project_backward(grads, normed, parts.inputs, Lowered(low, masks), needs_x=needs_x)
        grad_x = None if grad_normed is None else rms_norm_backward(grad_normed, x, inverse, parts.norm.weight).add_(grad)
        return grad_x, None, None, *of_inputs, *of_output


class RmsNorm(Function):
    """Called as `apply(x, norm)`: the norm after the last layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Norm) -> Tensor:
        y, inverse = rms_norm(x, norm.weight, norm.eps)
        ctx.norm = norm
        ctx.save_for_backward(x, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return rms_norm_backward(grad, *ctx.saved_tensors, ctx.norm.weight), None


def _split(tensors: Sequence[Tensor], counts: Sequence[int]) -> list[tuple[Tensor, ...]]:
    """The tensors in groups of these counts, and a last group of the rest."""
    groups, start = [], 0
    for count in counts:
        groups.append(tuple(tensors[start : start + count]))
        start += count
    return [*groups, tuple(tensors[start:])]


def _norm_heads(q: Tensor, k: Tensor, norms: tuple[Norm, Norm] | None) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Queries and keys, normed where the model does so, and what the backward pass needs then."""
    if norms is None:
        return q, k, ()
    (normed_q, inverse_q), (normed_k, inverse_k) = (rms_norm(x, norm.weight, norm.eps) for x, norm in zip((q, k), norms, strict=True))
    return normed_q, normed_k, (q, inverse_q, k, inverse_k)


def _norm_heads_backward(grad_q: Tensor, grad_k: Tensor, raw: tuple[Tensor, ...], norms: tuple[Norm, Norm] | None) -> tuple[Tensor, Tensor]:
    if norms is None:
        return grad_q, grad_k
    q, inverse_q, k, inverse_k = raw
    return rms_norm_backward(grad_q, q, inverse_q, norms[0].weight), rms_norm_backward(grad_k, k, inverse_k, norms[1].weight)
