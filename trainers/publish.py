"""What a finished run leaves: adapter or model with tokenizer, chat template and model card, the metrics, and RUN.json.

Writes below `models/<job>/<epoch>/`, manifest last. Says nothing about whether it is any good: that is `verify`'s.
"""

from __future__ import annotations

import json
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from trainers import manifest
from trainers.chat import TOKENIZER_FILES
from trainers.checkpoint import patiently
from trainers.forms import ADAPTER_WEIGHTS, Form
from trainers.spec import RunSpec
from trainers.state import MetricsRow, Snapshot, write_metrics
from trainers.storage import Storage

EXTRA_TOKENIZER_FILES = ("special_tokens_map.json",)
LIBRARIES = ("tunesmith", "torch", "transformers", "peft", "safetensors", "ray", "numpy", "tokenizers")


@dataclass(frozen=True, slots=True)
class Published:
    """What lies in storage now."""

    prefix: str
    manifest_sha256: str


def publish(
    storage: Storage, spec: RunSpec, snapshot: Snapshot, form: Form, dtype: torch.dtype, base_dir: Path, scratch: Path
) -> Published:
    """Assemble the artifacts in `scratch`, store them, manifest last. `dtype` is what was computed with, and a whole model's."""
    folder = scratch / form.folder
    form.write(snapshot.weights, folder, dtype)
    weights = {path.name: manifest.sha256_file(path) for path in sorted(folder.glob("*.safetensors"))}
    for name in (*TOKENIZER_FILES, *EXTRA_TOKENIZER_FILES):
        if (base_dir / name).is_file():
            shutil.copyfile(base_dir / name, folder / name)
    (folder / "README.md").write_text(model_card(spec, snapshot))
    (scratch / "metrics.csv").write_bytes(write_metrics(snapshot.history))
    (scratch / "RUN.json").write_text(json.dumps(run_record(spec, snapshot, weights), indent=1, sort_keys=True) + "\n")
    facts = {"step": snapshot.cursor.step, "spec": spec.model_dump(mode="json")}
    digest, _ = patiently(lambda: manifest.write(storage, spec.model_prefix, scratch, facts))
    return Published(spec.model_prefix, digest)


def run_record(spec: RunSpec, snapshot: Snapshot, weights: dict[str, str]) -> dict[str, Any]:
    """RUN.json: all that it would take to do the run again, and what came out; `weights` are the sha256 of the files that hold them."""
    adapter = {"adapter_sha256": weights[ADAPTER_WEIGHTS]} if ADAPTER_WEIGHTS in weights else {"model_sha256": weights}
    return {
        "spec": spec.model_dump(mode="json"),
        **adapter,
        "metrics": final_metrics(snapshot),
        "tokens": snapshot.cursor.tokens,
        "trained_tokens": snapshot.cursor.trained_tokens,
        "micro_batch": snapshot.cursor.micro_batch,
        "stopped_early": snapshot.cursor.stopped_early,
        "libraries": {name: version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def final_metrics(snapshot: Snapshot) -> dict[str, float]:
    """Of the last step, and of the last evaluation where there was one."""
    last = snapshot.history[-1]
    found = {"step": float(last.step), "train_loss": last.train_loss, "train_mean_token_accuracy": last.train_accuracy}
    scored = last_evaluation(snapshot)
    if scored is not None and scored.valid_loss is not None and scored.valid_mean_token_accuracy is not None:
        found |= {"valid_loss": scored.valid_loss, "valid_mean_token_accuracy": scored.valid_mean_token_accuracy}
    return found


def last_evaluation(snapshot: Snapshot) -> MetricsRow | None:
    """The newest row with validation numbers."""
    return next((row for row in reversed(snapshot.history) if row.valid_loss is not None), None)


def model_card(spec: RunSpec, snapshot: Snapshot) -> str:
    """README.md beside the weights, with the header that model hubs read."""
    metrics = "\n".join(f"| {name} | {value:.4g} |" for name, value in final_metrics(snapshot).items())
    resolved, data = spec.resolved, spec.dataset
    training, parts = spec.tunesmith.training, _parts(spec)
    validation = f"{spec.validation.rows:,} rows (`{spec.validation.sha256}`)" if spec.validation else "none"
    return f"""---
base_model: {spec.base_model.id}
library_name: {parts.library}
license: {spec.base_model.licence.lower()}
tags: [{spec.tunesmith.adapter.type}, {spec.method}, tunesmith]
---

# {spec.tuned_model}

{parts.what} `{spec.base_model.id}` at revision `{spec.base_model.revision}`, made by job `{spec.job_id}` (run {spec.epoch}).

| data | |
|---|---|
| training | {data.rows:,} rows, {data.tokens:,} tokens, {data.trained_tokens:,} with a label (`{data.sha256}`) |
| validation | {validation} |

The hashes name the tokenised datasets: they cover the file, the tokenizer, the chat template and the settings that decide tokens.

| setting | value |
|---|---|
| method | {spec.method} |
| epochs, batch size, steps | {resolved.n_epochs}, {resolved.batch_size}, {snapshot.cursor.step} |
| learning rate | {resolved.learning_rate:g}, {training.schedule}, warm-up {training.warmup_ratio:g} |
| weight decay, gradient clipping | {training.weight_decay:g}, {training.max_grad_norm:g} |
| adapter | {parts.settings} |
| longest row | {training.max_length} tokens, then {training.overlong} |
| seed | {spec.seed} |

| metric | value |
|---|---|
{metrics}

The base model's licence is `{spec.base_model.licence}`; what may be done with this {parts.noun} depends on it and on the training data.

```python
{parts.loading}
tokenizer = AutoTokenizer.from_pretrained("<this directory>")
```
"""


@dataclass(frozen=True, slots=True)
class _Parts:
    """Those parts of a model card that depend on what was trained."""

    library: str
    noun: str
    what: str
    settings: str
    loading: str


def _parts(spec: RunSpec) -> _Parts:
    adapter = spec.tunesmith.adapter
    if adapter.type == "full":
        return _Parts("transformers", "model", "A whole model, every weight of it trained from", "full: every weight", LOADING_A_MODEL)
    settings = f"{adapter.type}, r {adapter.r}, alpha {adapter.alpha}, dropout {adapter.dropout:g}, modules {adapter.target_modules}"
    return _Parts("peft", "adapter", "A LoRA adapter for", settings, LOADING_AN_ADAPTER.format(base=spec.base_model.id))


LOADING_A_MODEL = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("<this directory>")"""
LOADING_AN_ADAPTER = """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("<{base}>")
model = PeftModel.from_pretrained(base, "<this directory>")"""
