"""Log-probabilities with their gradient taken in the forward pass, against cross-entropy on full logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from trainers.head import token_logprobs

VOCABULARY, HIDDEN, LABELS = 37, 16, 11


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(LABELS, HIDDEN, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64).to(dtype)
    return hidden, weight, torch.randint(VOCABULARY, (LABELS,), generator=generator)


@pytest.mark.parametrize("chunk", [None, 1, 4, LABELS, 100])
def test_equals_cross_entropy_and_its_gradient(chunk: int | None) -> None:
    hidden, weight, labels = inputs()
    factors = torch.linspace(-1, 2, LABELS, dtype=torch.float64)
    expected = -cross_entropy(hidden @ weight.t(), labels, reduction="none")
    [expected_grad] = torch.autograd.grad((expected * factors).sum(), hidden)
    logp, correct = token_logprobs(hidden, weight, labels, chunk)
    [grad] = torch.autograd.grad((logp * factors).sum(), hidden)
    torch.testing.assert_close(logp, expected)
    torch.testing.assert_close(grad, expected_grad)
    assert torch.equal(correct, (hidden @ weight.t()).argmax(1) == labels)


def test_any_loss_of_log_probabilities_gets_the_right_gradient() -> None:
    hidden, weight, labels = inputs()
    assert torch.autograd.gradcheck(lambda h: (token_logprobs(h, weight, labels, 3)[0].exp() ** 2).sum(), (hidden,))


def test_logits_far_from_zero_stay_finite() -> None:
    hidden, weight, labels = inputs(torch.float32)
    logp, _ = token_logprobs(hidden * 1e4, weight, labels)
    assert torch.isfinite(logp).all()


def test_half_precision_hidden_states_give_float32_log_probabilities() -> None:
    hidden, weight, labels = inputs(torch.bfloat16)
    logp, _ = token_logprobs(hidden, weight, labels)
    logp.sum().backward()
    assert logp.dtype == torch.float32
    assert hidden.grad.dtype == torch.bfloat16
    torch.testing.assert_close(logp, -cross_entropy((hidden @ weight.t()).float(), labels, reduction="none"), atol=0.05, rtol=0.02)


def test_without_gradient_none_is_computed() -> None:
    hidden, weight, labels = inputs()
    logp, _ = token_logprobs(hidden.detach(), weight, labels)
    assert not logp.requires_grad


def test_no_labels_give_no_scores() -> None:
    hidden, weight, labels = inputs()
    logp, correct = token_logprobs(hidden[:0], weight, labels[:0])
    assert logp.shape == correct.shape == (0,)


@pytest.mark.parametrize("chunk", [None, 1, 4, LABELS, 100])
def test_a_head_that_is_trained_gets_its_gradient_too(chunk: int | None) -> None:
    hidden, weight, labels = inputs()
    weight.requires_grad_()
    factors = torch.linspace(-1, 2, LABELS, dtype=torch.float64)
    expected = torch.autograd.grad((-cross_entropy(hidden @ weight.t(), labels, reduction="none") * factors).sum(), (hidden, weight))
    logp, correct = token_logprobs(hidden, weight, labels, chunk)
    torch.testing.assert_close(torch.autograd.grad((logp * factors).sum(), (hidden, weight)), expected)
    assert torch.equal(correct, (hidden @ weight.t()).argmax(1) == labels)
