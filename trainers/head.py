"""Hidden states and the output head become log-probabilities, without the full logits ever existing.

With a frozen head the gradient is taken in the forward pass, chunk by chunk: docs/decisions/0003-gradient-in-forward.md.
A head that is trained itself needs the loss's own gradient first, so its chunks are computed a second time.
Knows nothing of models, rows or losses; `model.TrainingModel.score` calls it for the labelled positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from trainers.plan import HEAD_CHUNK_BYTES


def token_logprobs(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """log softmax(weight · hidden_i)[labels_i] for each i, and whether that label was the most probable token.

    `hidden` [labels, h], `weight` [vocab, h], `labels` [labels] int64, `chunk` labels at a time. Returns logp [labels]
    float32, differentiable with respect to `hidden` and, where it is trained, `weight`; and correct [labels] bool.
    """
    form = _TrainedHead if weight.requires_grad else _FrozenHead
    return form.apply(hidden, weight, labels, chunk or _chunk(weight))


def _chunk(weight: Tensor) -> int:
    return max(8, HEAD_CHUNK_BYTES[weight.device.type == "cpu"] // (weight.shape[0] * 4))


class _FrozenHead(Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        accumulated = torch.promote_types(hidden.dtype, torch.float32)  # float64 stays, for tests
        logp = torch.empty(len(labels), dtype=accumulated, device=hidden.device)
        correct = torch.empty(len(labels), dtype=torch.bool, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for part in _parts(len(labels), chunk):
            logp[part], correct[part], probabilities = _score_chunk(hidden[part], weight, labels[part], accumulated)
            if gradient is not None:
                torch.sub(weight[labels[part]], probabilities.to(weight.dtype) @ weight, out=gradient[part])
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(correct)
        return logp, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logp: Tensor, _: None) -> tuple[Tensor | None, ...]:
        [gradient] = ctx.saved_tensors
        return gradient * grad_logp.to(gradient.dtype).unsqueeze(-1), None, None, None


class _TrainedHead(Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        accumulated = torch.promote_types(hidden.dtype, torch.float32)
        logp = torch.empty(len(labels), dtype=accumulated, device=hidden.device)
        correct = torch.empty(len(labels), dtype=torch.bool, device=hidden.device)
        for part in _parts(len(labels), chunk):
            logp[part], correct[part], _ = _score_chunk(hidden[part], weight, labels[part], accumulated)
        # The weight is saved as autograd does: under ZeRO-3 it is whole only while its module computes, forward or backward.
        ctx.save_for_backward(hidden, weight, labels)
        ctx.chunk = chunk
        ctx.mark_non_differentiable(correct)
        return logp, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logp: Tensor, _: None) -> tuple[Tensor | None, ...]:
        hidden, weight, labels = ctx.saved_tensors
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight, dtype=grad_logp.dtype)
        for part in _parts(len(labels), ctx.chunk):
            _, _, towards = _score_chunk(hidden[part], weight, labels[part], grad_logp.dtype)
            rows = torch.arange(len(towards), device=towards.device)
            towards.neg_()[rows, labels[part]] += 1.0
            towards *= grad_logp[part].unsqueeze(1)  # the loss's gradient with respect to the logits
            grad_hidden[part] = towards.to(weight.dtype) @ weight
            grad_weight.addmm_(towards.T, hidden[part].to(grad_weight.dtype))
        return grad_hidden, grad_weight.to(weight.dtype), None, None


def _parts(count: int, chunk: int) -> Iterator[slice]:
    return (slice(start, start + chunk) for start in range(0, count, chunk))


def _score_chunk(hidden: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """logp [chunk], correct [chunk], softmax [chunk, vocab]; the softmax takes the place of the logits."""
    logits = torch.nn.functional.linear(hidden, weight).to(dtype)
    of_label = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    highest = logits.amax(1)
    total = logits.sub_(highest.unsqueeze(1)).exp_().sum(1)
    return of_label - highest - total.log(), of_label == highest, logits.div_(total.unsqueeze(1))
