"""Sequence parallelism: ranks that share rows exchange tokens for heads around attention, and back (Ulysses, Jacobs et al. 2023).

Everything but attention treats tokens one by one, so each rank computes its part of a row's tokens. In attention it computes
all tokens for a part of the heads. Called by `run`, which makes the exchange, and by `model`, which has it called in place of
the library's attention; knows no rows, losses or engines.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from trainers.data import Layout
from trainers.failure import TrainingFailed

ATTENTION = "tunesmith_sequence"
"""The name that the library knows it by. It makes no mask for a name that it does not know, and none is needed."""
UNKNOWN = ("softcap", "s_aux", "position_bias")
"""What some models ask of attention and is not computed here."""


def not_shared(why: str) -> TrainingFailed:
    """The ranks can't share rows of the base model."""
    return TrainingFailed("sequence_not_shared", f"workers can't share rows of this base model: {why}", "config")


class Exchange:
    """The ranks of one replica, and attention over rows that they share."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        """Every rank of the run makes it at the same time, with a process group there."""
        self.layout, self._size = layout, layout.sequence_parallel
        self._group = _group(layout, device)
        self.in_parts = False
        """Whether rows are parts of longer ones just now; stays until the backward pass is over, which may compute attention again."""
        AttentionInterface.register(ATTENTION, self.attention)

    def attention(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        **settings: Any,
    ) -> tuple[Tensor, None]:
        """Causal attention: [rows, heads, tokens, width] of queries, keys and values give [rows, tokens, heads, width].

        Raises TrainingFailed where the model asks for more than that.
        """
        if asked := [name for name in UNKNOWN if settings.get(name) is not None]:
            raise not_shared(f"its attention has {asked[0]}")
        if attention_mask is not None or settings.get("is_causal") is False:
            raise not_shared("its attention is not simply causal")
        if not self.in_parts:
            return sdpa_attention_forward(module, query, key, value, None, dropout, scaling, **settings)
        if sliding_window is not None and sliding_window <= (query.shape[2] - 1) * self._size:  # the rest may be padding
            raise not_shared(f"its attention sees {sliding_window} tokens back, and rows are longer")
        if key.shape[1] % self._size:  # fewer keys than ranks: each query head has its own
            key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
        query, key, value = self._heads_for_tokens([query, key, value])
        grouped = query.shape[1] != key.shape[1]
        out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=grouped)
        return self._tokens_for_heads(out), None

    def agree(self, yes: bool) -> bool:
        """Whether all ranks of the replica say so; each calls it."""
        told = torch.tensor(int(yes))
        dist.all_reduce(told, dist.ReduceOp.MIN, group=self._group)
        return bool(told)

    def _heads_for_tokens(self, parts: list[Tensor]) -> list[Tensor]:
        """[rows, heads, tokens, width] each, in one collective: all tokens of this rank's heads for this rank's tokens of all heads."""
        size = self._size
        shapes = [(x.shape[0], x.shape[1] // size, x.shape[2], x.shape[3]) for x in parts]
        pieces = [
            x.reshape(rows, size, heads, tokens, width).transpose(0, 1).reshape(size, -1)
            for x, (rows, heads, tokens, width) in zip(parts, shapes, strict=True)
        ]
        came = _AllToAll.apply(torch.cat(pieces, dim=1), self._group).split([piece.shape[1] for piece in pieces], dim=1)
        return [
            x.view(size, rows, heads, tokens, width).permute(1, 2, 0, 3, 4).reshape(rows, heads, size * tokens, width)
            for x, (rows, heads, tokens, width) in zip(came, shapes, strict=True)
        ]

    def _tokens_for_heads(self, out: Tensor) -> Tensor:
        """[rows, heads of this rank, all tokens, width] to [rows, tokens of this rank, all heads, width]."""
        size, (rows, heads, length, width) = self._size, out.shape
        sent = out.reshape(rows, heads, size, length // size, width).permute(2, 0, 3, 1, 4).reshape(size, -1)
        came = _AllToAll.apply(sent, self._group).view(size, rows, length // size, heads, width)
        return came.permute(1, 2, 0, 3, 4).reshape(rows, length // size, size * heads, width)


class _AllToAll(torch.autograd.Function):
    """[ranks, numbers]: the piece for each rank is sent to it, and its piece for this one comes back. Its own transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _exchanged(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _exchanged(grads[0], ctx.group), None


def _exchanged(x: Tensor, group: Any) -> Tensor:
    came = torch.empty_like(x, memory_format=torch.contiguous_format)
    dist.all_to_all_single(came, x.contiguous(), group=group)
    return came


def _group(layout: Layout, device: torch.device) -> Any:
    """The process group of this rank's replica. All groups are made by all ranks, in the same order, as torch wants it."""
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"  # what zero3 has not divided yet lies in the host's memory
    starts = range(0, layout.world_size, layout.sequence_parallel)
    groups = [dist.new_group(list(range(start, start + layout.sequence_parallel)), backend=backend) for start in starts]
    return groups[layout.replica]
