"""What a finished run leaves: the adapter with tokenizer, chat template and model card, the metrics, and RUN.json.

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

from trainers import manifest
from trainers.chat import TOKENIZER_FILES
from trainers.checkpoint import patiently, write_adapter
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


def publish(storage: Storage, spec: RunSpec, snapshot: Snapshot, adapter_config: bytes, base_dir: Path, scratch: Path) -> Published:
    """Assemble the artifacts in `scratch`, store them, manifest last."""
    write_adapter(snapshot, adapter_config, scratch / "adapter")
    for name in (*TOKENIZER_FILES, *EXTRA_TOKENIZER_FILES):
        if (base_dir / name).is_file():
            shutil.copyfile(base_dir / name, scratch / "adapter" / name)
    (scratch / "adapter" / "README.md").write_text(model_card(spec, snapshot))
    (scratch / "metrics.csv").write_bytes(write_metrics(snapshot.history))
    adapter = manifest.sha256_file(scratch / "adapter" / "adapter_model.safetensors")
    (scratch / "RUN.json").write_text(json.dumps(run_record(spec, snapshot, adapter), indent=1, sort_keys=True) + "\n")
    facts = {"step": snapshot.cursor.step, "spec": spec.model_dump(mode="json")}
    digest, _ = patiently(lambda: manifest.write(storage, spec.model_prefix, scratch, facts))
    return Published(spec.model_prefix, digest)


def run_record(spec: RunSpec, snapshot: Snapshot, adapter_sha256: str) -> dict[str, Any]:
    """RUN.json: all that it would take to do the run again, and what came out."""
    return {
        "spec": spec.model_dump(mode="json"),
        "adapter_sha256": adapter_sha256,
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
    """adapter/README.md, with the header that model hubs read."""
    metrics = "\n".join(f"| {name} | {value:.4g} |" for name, value in final_metrics(snapshot).items())
    resolved, data = spec.resolved, spec.dataset
    adapter, training = spec.tunesmith.adapter, spec.tunesmith.training
    validation = f"{spec.validation.rows:,} rows (`{spec.validation.sha256}`)" if spec.validation else "none"
    return f"""---
base_model: {spec.base_model.id}
library_name: peft
license: {spec.base_model.licence.lower()}
tags: [lora, {spec.method}, tunesmith]
---

# {spec.tuned_model}

A LoRA adapter for `{spec.base_model.id}` at revision `{spec.base_model.revision}`, made by job `{spec.job_id}` (run {spec.epoch}).

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
| adapter | {adapter.type}, r {adapter.r}, alpha {adapter.alpha}, dropout {adapter.dropout:g}, modules {adapter.target_modules} |
| longest row | {training.max_length} tokens, then {training.overlong} |
| seed | {spec.seed} |

| metric | value |
|---|---|
{metrics}

The base model's licence is `{spec.base_model.licence}`; what may be done with this adapter depends on it and on the training data.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("<{spec.base_model.id}>")
model = PeftModel.from_pretrained(base, "<this directory>")
tokenizer = AutoTokenizer.from_pretrained("<this directory>")
```
"""
