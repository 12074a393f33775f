"""How the rows of a batch become one run of tokens, with nothing computed twice and nothing that no label needs.

Tokens lie as `[shared prefix | row 0 | row 1 | …]`. What all rows begin with (a system prompt, as a rule) comes
once: causal attention makes its hidden states equal in every row. Tokens after the last one that a label is
predicted from are left out. Knows nothing of models; `decoder.PackedDecoder` calls it for each batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.data import Batch

WORTH_SHARING = 1 / 16
"""Share of the tokens that a common prefix must save: below it the second attention call costs more."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the tokens lie: `prefix` tokens, then `rows` times `suffix` tokens (shorter rows are padded on the right)."""

    prefix: int
    rows: int
    suffix: int

    @property
    def tokens(self) -> int:
        """Length of the packed run."""
        return self.prefix + self.rows * self.suffix


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch as a run of tokens. At least one token, at least one label."""

    layout: Layout
    ids: Tensor
    """[tokens] int64"""
    positions: Tensor
    """[tokens] int64: place of each token in its row."""
    kept: Tensor
    """[kept] int64, ascending: the tokens from which labels are predicted; the last layer's output is needed there only."""
    sources: Tensor
    """[labels] int64: for each label, the place in `kept` of the token it is predicted from."""


def pack(batch: Batch, *, share_prefix: bool) -> Packed:
    """The tokens that the labels of `batch` depend on. The batch carries at least one label."""
    rows, positions = (batch.weights > 0).nonzero(as_tuple=True)
    length = int(positions.max())  # the last label itself is predicted, never read
    ids = batch.input_ids[:, :length]
    prefix = _common_prefix(ids) if share_prefix else 0
    layout = Layout(prefix, len(ids), length - prefix)
    places = torch.arange(prefix, length)
    before = positions - 1
    sources = torch.where(before < prefix, before, prefix + rows * layout.suffix + before - prefix)
    kept, sources = torch.unique(sources, return_inverse=True)
    return Packed(
        layout=layout,
        ids=torch.cat([ids[0, :prefix], ids[:, prefix:].reshape(-1)]),
        positions=torch.cat([torch.arange(prefix), places.repeat(len(ids))]),
        kept=kept,
        sources=sources,
    )


def _common_prefix(ids: Tensor) -> int:
    """Tokens that all rows `ids` [rows, length] begin with, 0 when too few to be worth it; at least one token stays for the rows."""
    rows, length = ids.shape
    same = (ids == ids[0]).all(0).to(torch.int64).cumprod(0).sum()
    prefix = min(int(same), length - 1)
    return prefix if prefix * (rows - 1) >= WORTH_SHARING * rows * length and rows > 1 else 0
