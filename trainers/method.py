"""What a training objective is: its rows, how a row becomes labelled tokens, and its loss.

Free of torch at import. The data check calls `check_row` and `encode`; the training loop calls `loss`.
A method knows nothing of files, devices, adapters or the loop. See registry.py for how one is added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

    from trainers.chat import ChatTokenizer

Row = Mapping[str, Any]
"""One line of a dataset, as parsed."""

ROW_SHAPES: dict[str, frozenset[str]] = {
    "chat": frozenset({"messages"}),
    "completion": frozenset({"prompt", "completion"}),
    "preference": frozenset({"input", "preferred_output", "non_preferred_output"}),
}
"""OpenAI's row formats by the keys that tell them apart."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a row: `path` to the field ("messages[2].role", "" for the row), a stable rule name, words."""

    path: str
    rule: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row as tokens. `weights[t]` weighs the loss of predicting token t from those before it; `weights[0]` is 0."""

    input_ids: npt.NDArray[np.uint32]
    """[tokens]"""
    weights: npt.NDArray[np.float32]
    """[tokens]"""

    def __len__(self) -> int:
        return len(self.input_ids)

    def cut(self, length: int) -> Encoded:
        """The first `length` tokens."""
        return Encoded(self.input_ids[:length], self.weights[:length])


class Scores(Protocol):
    """What the fused head says of the labelled positions of one micro-batch, in row order."""

    @property
    def logp(self) -> torch.Tensor:
        """[labels] float32: log-probability of each label."""
        ...

    @property
    def weights(self) -> torch.Tensor:
        """[labels] float32: weight of each label."""
        ...

    @property
    def correct(self) -> torch.Tensor:
        """[labels] bool: whether the label was the most probable token."""
        ...


class Method(Protocol):
    """A training objective."""

    name: str
    """As the client writes it in `method.type`."""

    def check_row(self, row: Row) -> list[Fault]:
        """Everything wrong with the row's form; empty when it can be encoded."""
        ...

    def encode(self, rows: Sequence[Row], tokenizer: ChatTokenizer) -> list[Encoded | Fault]:
        """Each row (of those that `check_row` passed) as tokens, or what keeps it from being encoded."""
        ...

    def loss(self, scores: Scores) -> torch.Tensor:
        """The micro-batch's unnormalised loss, a scalar; the loop divides by the weight of the global batch."""
        ...


def shape_of(row: Row) -> str | None:
    """The row format that the row's keys belong to, None when they belong to none."""
    return next((name for name, keys in ROW_SHAPES.items() if keys <= row.keys()), None)
