"""One optimizer step is what plain PyTorch would do with the whole batch at once."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from trainers.data import Batch
from trainers.engine import TorchEngine, adamw
from trainers.methods.supervised import Supervised


@dataclass
class Scored:
    logp: Tensor
    weights: Tensor
    correct: Tensor


class Bigram(nn.Module):
    """Predicts each token from the one before it: a model small enough to check by hand."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(5, 5))

    def score(self, batch: Batch) -> Scored:
        logits = self.table[batch.input_ids[:, :-1]]
        logp = torch.log_softmax(logits, -1).gather(2, batch.input_ids[:, 1:, None]).squeeze(2)
        labelled = batch.weights[:, 1:] > 0
        correct = logits.argmax(-1) == batch.input_ids[:, 1:]
        return Scored(logp[labelled], batch.weights[:, 1:][labelled], correct[labelled])


def batch(ids: list[list[int]], weights: list[list[float]]) -> Batch:
    tensor = torch.tensor(weights)
    return Batch(torch.tensor(ids), torch.tensor([len(row) for row in ids]), tensor, sum(map(len, ids)), float(tensor.sum()))


ROWS = [[0, 1, 2], [3, 4, 0], [1, 1, 2], [2, 3, 4]]
WEIGHTS = [[0.0, 1.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.5, 0.0], [0.0, 1.0, 0.0]]
WHOLE = sum(map(sum, WEIGHTS))


def engine(model: Bigram, clip: float = 1e9) -> TorchEngine:
    parameters = list(model.parameters())
    return TorchEngine(model, parameters, adamw(parameters, 0.1), max_grad_norm=clip, rank=0, world_size=1)


@pytest.mark.parametrize("split", [[4], [2, 2], [1, 1, 1, 1], [3, 1]])
def test_micro_batches_add_up_to_the_whole_batch(split: list[int]) -> None:
    model, plain = Bigram(), Bigram()
    pieces, start = [], 0
    for size in split:
        pieces.append(batch(ROWS[start : start + size], WEIGHTS[start : start + size]))
        start += size
    result = engine(model).step(pieces, Supervised(), weight=WHOLE, learning_rate=0.1, signal=1)

    scores = plain.score(batch(ROWS, WEIGHTS))
    loss = -(scores.logp * scores.weights).sum() / WHOLE
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.1, weight_decay=0.1)
    loss.backward()
    norm = float(plain.table.grad.norm()) if plain.table.grad is not None else 0.0
    optimizer.step()
    torch.testing.assert_close(model.table, plain.table)
    assert result.sums.mean_loss == pytest.approx(float(loss.detach()))
    assert result.grad_norm == pytest.approx(norm)
    assert (result.sums.labels, result.sums.tokens, result.sums.weight) == (5, 12, WHOLE)
    assert result.sums.accuracy == pytest.approx(float(scores.correct.float().mean()))


def test_gradients_are_clipped_to_the_global_norm() -> None:
    model = Bigram()
    built = engine(model, clip=1e-3)
    result = built.step([batch(ROWS, WEIGHTS)], Supervised(), weight=WHOLE, learning_rate=0.0, signal=1)
    assert result.grad_norm > 1e-2
    assert model.table.grad is not None
    assert float(model.table.grad.norm()) == pytest.approx(1e-3, rel=1e-3)


def test_gradients_of_one_step_do_not_reach_the_next() -> None:
    model = Bigram()
    built = engine(model)
    norms = [built.step([batch(ROWS, WEIGHTS)], Supervised(), weight=WHOLE, learning_rate=0.0, signal=1).grad_norm for _ in range(2)]
    assert norms[0] == norms[1]


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nothing_is_updated_by_a_gradient_that_is_no_number(poison: float) -> None:
    model = Bigram()
    with torch.no_grad():
        model.table[0, 0] = poison
    before = model.table.detach().clone()
    result = engine(model).step([batch(ROWS, WEIGHTS)], Supervised(), weight=WHOLE, learning_rate=0.1, signal=1)
    assert not result.finite
    assert torch.equal(model.table.nan_to_num(7.0), before.nan_to_num(7.0))


def test_evaluation_changes_nothing() -> None:
    model = Bigram()
    before = model.table.detach().clone()
    sums = engine(model).evaluate([batch(ROWS[:2], WEIGHTS[:2]), batch(ROWS[2:], WEIGHTS[2:])], Supervised())
    assert torch.equal(model.table, before)
    scores = model.score(batch(ROWS, WEIGHTS))
    assert sums.mean_loss == pytest.approx(float(-(scores.logp * scores.weights).sum().detach() / WHOLE))


def test_gradients_stay_where_they_are_once_a_rank_has_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks tell each other in a few numbers; what would be thrown away is not sent first."""
    model, sent = Bigram(), []
    parameters = list(model.parameters())
    of_two = TorchEngine(model, parameters, adamw(parameters, 0.1), max_grad_norm=1.0, rank=0, world_size=2)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: sent.append(tensor.numel()))
    step = {"weight": WHOLE, "learning_rate": 0.1, "signal": 0}
    assert not of_two.step([batch(ROWS, WEIGHTS)], Supervised(), **step).out_of_memory
    monkeypatch.setattr(model, "score", _no_memory)
    assert of_two.step([batch(ROWS, WEIGHTS)], Supervised(), **step).out_of_memory
    assert sent == [7, 25, 7]


def _no_memory(_: Batch) -> Scored:
    raise MemoryError
