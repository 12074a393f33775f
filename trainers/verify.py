"""Proves that what was published is what was trained, before anybody is told that the job succeeded.

Reads everything back from storage, so it knows what a client would get, and scores a probe with plain transformers and
PEFT, so it does not depend on the trainer's own forms of the computation. Called by `run` on rank 0.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainers import manifest
from trainers.checkpoint import patiently
from trainers.data import Batch, TokenisedDataset, pad
from trainers.failure import TrainingFailed
from trainers.forms import Form
from trainers.method import Encoded, Scores
from trainers.model import TrainingModel
from trainers.publish import Published
from trainers.storage import Storage

PROBE_ROWS, PROBE_TOKENS = 4, 256
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.15}
"""Largest difference of a log-probability: what summing in another order comes to, with room.

An adapter that is not applied differs by far more."""
ROUNDED_TOLERANCE = 2.0
"""The same where the trained model computed with weights rounded to int8, and what is published is read back unrounded: on
SmolLM2-135M that alone was up to 0.86 (1,252 labels). It tells apart less: what an adapter changes may be smaller."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the model in memory says, taken before it makes room for the one that is read back."""

    probe: Batch
    logp: Tensor
    """[labels] float32, on the host."""
    initial: dict[str, str]
    """sha256 of each trained tensor before training."""
    dtype: torch.dtype
    device: torch.device
    tolerance: float


def expectation(
    model: TrainingModel, score: Callable[[Batch], Scores], dataset: TokenisedDataset, initial: dict[str, str], *, rounded: bool = False
) -> Expectation:
    """The trained model's log-probabilities on a probe of training rows. Every rank takes part: each may hold a part of the model.

    `rounded`: whether it computes with weights that are rounded to int8.
    """
    probe = _probe(dataset)
    model.eval()
    with torch.no_grad():
        logp = score(probe).logp.float().cpu()
    tolerance = ROUNDED_TOLERANCE if rounded else TOLERANCE[model.dtype]
    return Expectation(probe, logp, initial, model.dtype, model.device, tolerance)


def fingerprints(tensors: dict[str, Tensor]) -> dict[str, str]:
    """sha256 of each tensor's numbers, whatever type they are computed in."""
    return {name: _fingerprint(tensor) for name, tensor in tensors.items()}


def _fingerprint(tensor: Tensor) -> str:
    return manifest.sha256_bytes(memoryview(tensor.detach().cpu().float().contiguous().numpy()).cast("B"))


def verify(storage: Storage, published: Published, form: Form, base_dir: Path, expected: Expectation) -> None:
    """Read the artifacts back and hold them against what was trained. Raises TrainingFailed `artifact_invalid`."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-verify-") as scratch:
        directory = Path(scratch)
        try:
            patiently(lambda: _fetch(storage, published, directory))
        except manifest.ManifestBroken as error:
            raise _invalid(str(error)) from error
        _check_tensors(form, directory / form.folder, expected)
        _check_outputs(form, directory / form.folder, base_dir, expected)


def _fetch(storage: Storage, published: Published, directory: Path) -> None:
    stored = manifest.read(storage, published.prefix)
    if manifest.sha256_bytes(stored.encode()) != published.manifest_sha256:
        raise manifest.ManifestBroken(f"the manifest of {published.prefix} is not the one that was written")
    manifest.fetch(storage, published.prefix, stored.files, directory)


def _check_tensors(form: Form, directory: Path, expected: Expectation) -> None:
    """Every tensor that was trained is there, holds numbers, and not all are as they were at the start."""
    try:
        tensors = form.read(directory)
    except Exception as error:  # safetensors raises a class of its own for each kind of damage
        raise _invalid(f"the {form.folder} can't be read: {error}") from error
    if not tensors or tensors.keys() != expected.initial.keys():
        raise _invalid(f"the {form.folder} holds {len(tensors)} tensors, {len(expected.initial)} were trained")
    for name, tensor in tensors.items():
        if tensor.numel() == 0 or not bool(torch.isfinite(tensor).all()):
            raise _invalid(f"{name} is empty or holds numbers that are not finite")
    if fingerprints(tensors) == expected.initial:
        raise _invalid(f"the {form.folder} is what it was before training")


def _check_outputs(form: Form, directory: Path, base_dir: Path, expected: Expectation) -> None:
    """The plain libraries say of the files what the trained model said."""
    gc.collect()  # the trained model, if nobody holds it any more: two base models may not fit
    model = form.open(directory, base_dir, expected.dtype).to(expected.device).eval()
    with torch.no_grad():
        logp = _plain_scores(model, expected.probe, expected.device)
    worst = float((logp - expected.logp).abs().max())
    if not worst <= expected.tolerance:
        raise _invalid(f"read back, it answers otherwise than the trained model: log-probabilities differ by up to {worst:.3g}")


def _plain_scores(model: torch.nn.Module, probe: Batch, device: torch.device) -> Tensor:
    """[labels] log-probabilities by the libraries' own forward pass; one row at a time, so without padding."""
    found = []
    for ids, length, weights in zip(probe.input_ids, probe.lengths, probe.weights, strict=True):
        row = ids[: int(length)].to(device)
        logits = model(input_ids=row.unsqueeze(0)).logits[0, :-1].float()
        logp = torch.log_softmax(logits, -1).gather(1, row[1:].unsqueeze(1)).squeeze(1)
        found.append(logp[(weights[1 : int(length)] > 0).to(device)].cpu())
    return torch.cat(found)


def _probe(dataset: TokenisedDataset) -> Batch:
    """A few short rows, each up to its last label and cut at its beginning where it is long."""
    shortest = np.argsort(dataset.lengths, kind="stable")[:PROBE_ROWS]
    return pad([_end(dataset.row(int(row))) for row in shortest])


def _end(row: Encoded) -> Encoded:
    end = int(np.flatnonzero(row.weights)[-1]) + 1
    start = max(0, end - PROBE_TOKENS)
    weights = row.weights[start:end].copy()
    weights[0] = 0.0
    return Encoded(row.input_ids[start:end], weights)


def _invalid(why: str) -> TrainingFailed:
    return TrainingFailed("artifact_invalid", f"what was published was refused: {why}. Nothing can be fetched from this run.", "service")
