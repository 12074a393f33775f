"""Proves that what was published is the adapter that was trained, before anybody is told that the job succeeded.

Reads everything back from storage, so it knows what a client would get, and scores a probe with plain transformers and
PEFT, so it does not depend on the trainer's own forms of the computation. Called by `run` on rank 0.
"""

from __future__ import annotations

import gc
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM

from trainers import manifest
from trainers.checkpoint import ADAPTER_WEIGHTS, patiently
from trainers.data import Batch, TokenisedDataset, pad
from trainers.failure import TrainingFailed
from trainers.method import Encoded
from trainers.model import TrainingModel
from trainers.publish import Published
from trainers.storage import Storage

PROBE_ROWS, PROBE_TOKENS = 4, 256
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.15}
"""Largest difference of a log-probability: what summing in another order comes to, with room.

An adapter that is not applied differs by far more."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the model in memory says, taken before it makes room for the one that is read back."""

    probe: Batch
    logp: Tensor
    """[labels] float32, on the host."""
    initial: dict[str, str]
    """sha256 of each adapter tensor before training."""
    dtype: torch.dtype
    device: torch.device


def expectation(model: TrainingModel, dataset: TokenisedDataset, initial: dict[str, str]) -> Expectation:
    """The trained model's log-probabilities on a probe of training rows."""
    probe = _probe(dataset)
    model.eval()
    with torch.no_grad():
        logp = model.score(probe).logp.float().cpu()
    return Expectation(probe, logp, initial, model.dtype, model.device)


def fingerprints(tensors: dict[str, Tensor]) -> dict[str, str]:
    """sha256 of each tensor's numbers."""
    return {name: manifest.sha256_bytes(t.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()) for name, t in tensors.items()}


def verify(storage: Storage, published: Published, base_dir: Path, expected: Expectation) -> None:
    """Read the artifacts back and hold them against what was trained. Raises TrainingFailed `artifact_invalid`."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-verify-") as scratch:
        directory = Path(scratch)
        try:
            patiently(lambda: _fetch(storage, published, directory))
        except manifest.ManifestBroken as error:
            raise _invalid(str(error)) from error
        _check_tensors(directory / "adapter" / ADAPTER_WEIGHTS, expected.initial)
        _check_outputs(directory / "adapter", base_dir, expected)


def _fetch(storage: Storage, published: Published, directory: Path) -> None:
    stored = manifest.read(storage, published.prefix)
    if manifest.sha256_bytes(stored.encode()) != published.manifest_sha256:
        raise manifest.ManifestBroken(f"the manifest of {published.prefix} is not the one that was written")
    manifest.fetch(storage, published.prefix, stored.files, directory)


def _check_tensors(path: Path, initial: dict[str, str]) -> None:
    """Every tensor that was trained is there, holds numbers, and not all are as they were at the start."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except Exception as error:  # safetensors raises a class of its own for each kind of damage
        raise _invalid(f"the adapter can't be read: {error}") from error
    if not tensors or tensors.keys() != initial.keys():
        raise _invalid(f"the adapter holds {len(tensors)} tensors, {len(initial)} were trained")
    for name, tensor in tensors.items():
        if tensor.numel() == 0 or not bool(torch.isfinite(tensor).all()):
            raise _invalid(f"{name} is empty or holds numbers that are not finite")
    if fingerprints(tensors) == initial:
        raise _invalid("the adapter is what it was before training")


def _check_outputs(adapter_dir: Path, base_dir: Path, expected: Expectation) -> None:
    """Plain PEFT on the plain base model says what the trained model said."""
    gc.collect()  # the trained model, if nobody holds it any more: two base models may not fit
    base = AutoModelForCausalLM.from_pretrained(
        base_dir, dtype=expected.dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    model = PeftModel.from_pretrained(base, adapter_dir).to(expected.device).eval()
    with torch.no_grad():
        logp = _plain_scores(model, expected.probe, expected.device)
    worst = float((logp - expected.logp).abs().max())
    if not worst <= TOLERANCE[expected.dtype]:
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
    return TrainingFailed("artifact_invalid", f"the published adapter was refused: {why}. Nothing can be fetched from this run.", "service")
