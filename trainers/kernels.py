"""CPU fp32 forms of a decoder's inner operations: same mathematics and parameters, less time and memory.

Knows modules of transformers and PEFT by their structure, nothing of batches, losses or jobs. `model.TrainingModel`
installs them; a GPU keeps the libraries' own forms. What each one brings is measured in bench/README.md.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLoraLinear
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

_onednn_linear = torch.ops.mkldnn._linear_pointwise


def times_transposed(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [n, in] · weight[out, in]ᵀ (+ bias) by oneDNN, which uses AVX-512 on every vendor's processors (MKL does not)."""
    return _onednn_linear(x, weight, bias, "none", [], "")


def times_transposed_plus(x: Tensor, weight: Tensor, addend: Tensor, bias: Tensor | None = None) -> Tensor:
    """x · weightᵀ + addend [n, out] (+ bias) in one pass over the result."""
    return _onednn_linear.binary(x, addend, weight, bias, "add")


class LoraProduct(Function):
    """y = x·Wᵀ + bias + s·(x·Aᵀ)·Bᵀ with W and bias frozen. Keeps x [n, in] and s·x·Aᵀ [n, r], nothing of size [n, out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        low = times_transposed(x, a).mul_(scale)
        ctx.save_for_backward(x, low, weight, a, b)
        ctx.scale = scale
        return times_transposed_plus(x, weight, times_transposed(low, b), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, low, weight, a, b = ctx.saved_tensors
        grad = grad.contiguous()
        grad_low = times_transposed(grad, b.t()).mul_(ctx.scale)
        grad_a = times_transposed(grad_low.t(), x.t())
        grad_b = times_transposed(low.t(), grad.t()).t()
        grad_x = times_transposed_plus(grad, weight.t(), times_transposed(grad_low, a.t())) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, grad_a, grad_b, None


class RmsNorm(Function):
    """y = weight · x / sqrt(mean(x²) + eps) over the last dimension, weight frozen. Keeps x and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rstd = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, rstd, weight)
        return (x * rstd).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, rstd, weight = ctx.saved_tensors
        grad_x = grad * weight
        along = (grad_x * x).sum(-1, keepdim=True).mul_(rstd.pow(3)).div_(-x.shape[-1])
        return grad_x.mul_(rstd).addcmul_(x, along), None, None


class GatedSilu(Function):
    """silu(gate) · up. Keeps its two inputs."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return nn.functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return grad_gate, nn.functional.silu(gate).mul_(grad)


def _lora_forward(self: PeftLoraLinear, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if self.disable_adapters or self.merged:
        return PeftLoraLinear.forward(self, x, *args, **kwargs)
    [name] = self.active_adapters
    base = self.get_base_layer()
    flat = x.reshape(-1, x.shape[-1])
    y = LoraProduct.apply(flat, base.weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name])
    return y.view(*x.shape[:-1], y.shape[-1])


def _norm_forward(self: nn.Module, hidden_states: Tensor) -> Tensor:
    return RmsNorm.apply(hidden_states, self.weight, self.variance_epsilon)


def _mlp_forward(self: nn.Module, x: Tensor) -> Tensor:
    return self.down_proj(GatedSilu.apply(self.gate_proj(x), self.up_proj(x)))


def install(model: nn.Module, which="lnm") -> None:
    for m in model.modules():
        if isinstance(m, PeftLoraLinear) and "l" in which: m.forward = types.MethodType(_lora_forward, m)
        elif type(m).__name__=="LlamaRMSNorm" and "n" in which: m.forward = types.MethodType(_norm_forward, m)
        elif type(m).__name__=="LlamaMLP" and "m" in which: m.forward = types.MethodType(_mlp_forward, m)
