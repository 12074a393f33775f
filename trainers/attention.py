"""Causal attention over packed rows with a shared prefix, forward and backward, on a CPU.

Works on tensors as `packing.Layout` lays them: prefix tokens attend to the prefix, tokens of a row to the
prefix and to their own row. Short rows take plain batched products, whose probabilities are kept; long ones
torch's flash kernel, which keeps one number a query. Called by the blocks in `blocks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainers.packing import Layout
from trainers.plan import SMALL_ATTENTION

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
Kept = tuple[Tensor, ...]


@dataclass(frozen=True)
class Attention:
    """Attention of one batch's layout for a model of `heads` query heads and `kv_heads` key heads."""

    layout: Layout
    heads: int
    kv_heads: int
    scale: float
    dtype: torch.dtype
    masks: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """Additive causal masks by (queries, keys), made once for all layers."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Kept]:
        """q [tokens, heads, dim], k and v [tokens, kv_heads, dim] -> out like q, and what `backward` needs besides."""
        out, kept = torch.empty_like(q), []
        for queries, keys, values, target in zip(self._rows(q), self._with_prefix(k), self._with_prefix(v), self._rows(out), strict=True):
            one = self._attend if _small(queries, keys) else self._attend_flash
            result, state = one(queries, keys, values)
            target.copy_(result)
            kept += state
        return out, tuple(kept)

    def backward(self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, kept: Kept) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v from `grad`, the gradient of `out`."""
        grads = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        states = iter(kept)
        parts = zip(*(self._rows(t) for t in (grad, out, q, grads[0])), *(self._with_prefix(t) for t in (k, v)), strict=True)
        for part, (grad_out, result, queries, target, keys, values) in enumerate(parts):
            if _small(queries, keys):
                grad_q, grad_k, grad_v = self._attend_backward(grad_out, queries, keys, values, next(states))
            else:
                grad_q, grad_k, grad_v = self._flash_backward(grad_out, queries, keys, values, result, next(states))
            target.copy_(grad_q)
            self._add_keys(grads[1], grad_k, part)
            self._add_keys(grads[2], grad_v, part)
        return grads

    def _rows(self, x: Tensor) -> Iterator[Tensor]:
        """Views [rows, queries, heads, dim] of the prefix, where there is one, and of the rows."""
        prefix, rows, suffix = self.layout.prefix, self.layout.rows, self.layout.suffix
        if prefix:
            yield x[:prefix].unsqueeze(0)
        yield x[prefix:].view(rows, suffix, *x.shape[1:])

    def _with_prefix(self, x: Tensor) -> Iterator[Tensor]:
        """Keys [rows, keys, kv_heads, dim] for the same parts: the rows' are led by the prefix's."""
        *shared, own = self._rows(x)
        yield from shared
        yield torch.cat([shared[0].expand(len(own), -1, -1, -1), own], 1) if shared else own

    def _add_keys(self, total: Tensor, grad: Tensor, part: int) -> None:
        prefix, is_prefix = self.layout.prefix, bool(self.layout.prefix) and part == 0
        if is_prefix:
            total[:prefix] += grad[0]
            return
        total[:prefix] += grad[:, :prefix].sum(0)
        total[prefix:] += grad[:, prefix:].reshape(-1, *total.shape[1:])

    def _mask(self, queries: int, keys: int) -> Tensor:
        """[queries, keys]: 0 where query i of the last `queries` positions may look, -inf elsewhere."""
        if (queries, keys) not in self.masks:
            hidden = torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)
            self.masks[queries, keys] = torch.zeros(queries, keys, dtype=self.dtype).masked_fill_(hidden, float("-inf"))
        return self.masks[queries, keys]

    def _grouped(self, x: Tensor) -> Tensor:
        """[rows, queries, heads, dim] -> [rows · kv_heads, group · queries, dim]: heads that share keys become queries of one product."""
        return x.unflatten(2, (self.kv_heads, -1)).permute(0, 2, 3, 1, 4).reshape(len(x) * self.kv_heads, -1, x.shape[-1])

    def _ungrouped(self, x: Tensor, like: Tensor) -> Tensor:
        rows, queries, heads, dim = like.shape
        return x.view(rows, self.kv_heads, -1, queries, dim).permute(0, 3, 1, 2, 4).reshape(rows, queries, heads, dim)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Kept]:
        queries, keys = self._grouped(q), self._grouped(k)
        mask = self._mask(q.shape[1], k.shape[1]).repeat(self.heads // self.kv_heads, 1)
        logits = torch.baddbmm(mask.expand(len(queries), -1, -1), queries, keys.transpose(1, 2), alpha=self.scale)
        probabilities = torch.softmax(logits, -1)
        return self._ungrouped(torch.bmm(probabilities, self._grouped(v)), q), (probabilities,)

    def _attend_backward(self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        grad_out = self._grouped(grad)
        grad_v = torch.bmm(probabilities.transpose(1, 2), grad_out)
        grad_p = torch.bmm(grad_out, self._grouped(v).transpose(1, 2))
        grad_s = torch.ops.aten._softmax_backward_data(grad_p, probabilities, -1, probabilities.dtype).mul_(self.scale)
        grad_q, grad_k = torch.bmm(grad_s, self._grouped(k)), torch.bmm(grad_s.transpose(1, 2), self._grouped(q))
        return self._ungrouped(grad_q, q), self._ungrouped(grad_k, k), self._ungrouped(grad_v, v)

    def _flash_mask(self, q: Tensor, k: Tensor) -> tuple[bool, Tensor | None]:
        square = q.shape[1] == k.shape[1]  # the kernel skips what a causal flag hides, but counts from the first key
        return square, None if square else self._mask(q.shape[1], k.shape[1])

    def _attend_flash(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Kept]:
        causal, mask = self._flash_mask(q, k)
        out, lse = _flash(*(x.transpose(1, 2) for x in (q, k, v)), 0.0, causal, attn_mask=mask, scale=self.scale)
        return out.transpose(1, 2), (lse,)

    def _flash_backward(self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        causal, mask = self._flash_mask(q, k)
        swapped = (x.transpose(1, 2) for x in (grad, q, k, v, out))
        grads = _flash_backward(*swapped, lse, 0.0, causal, attn_mask=mask, scale=self.scale)
        grad_q, grad_k, grad_v = (x.transpose(1, 2) for x in grads)
        return grad_q, grad_k, grad_v


def _small(q: Tensor, k: Tensor) -> bool:
    """Whether plain products beat the flash kernel."""
    return q.shape[1] * k.shape[1] <= SMALL_ATTENTION
