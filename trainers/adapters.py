"""What is trained, as PEFT understands it: an AdapterSpec becomes a LoraConfig.

Knows nothing of models, weights or files; `model.TrainingModel` calls it when it wraps a base model.
"""

from __future__ import annotations

from peft import LoraConfig, TaskType

from trainers.spec import AdapterSpec


def lora_config(spec: AdapterSpec) -> LoraConfig:
    """The LoRA (Hu et al. 2021, eq. 3) that `spec` asks for; "all-linear" is every linear module but the output head."""
    targets = spec.target_modules if isinstance(spec.target_modules, str) else sorted(set(spec.target_modules))
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=spec.r,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=targets,
        bias="none",
    )
