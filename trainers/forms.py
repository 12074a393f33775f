"""How what was trained lies in files: an adapter as PEFT loads it, or a whole model as transformers does.

Checkpoints and published models are written and read through a `Form`. Knows no job, storage or engine; called by `run`,
`checkpoint`, `publish` and `verify`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


class Form(Protocol):
    """One of the two."""

    folder: str
    """Name of the folder that holds the files, in checkpoints and among artifacts."""

    def write(self, weights: dict[str, Tensor], directory: Path, dtype: torch.dtype) -> None:
        """The files, in a new directory. The same weights give the same bytes."""
        ...

    def read(self, directory: Path) -> dict[str, Tensor]:
        """What was written, on the host, in float32 if it was. Raises OSError or ValueError."""
        ...

    def open(self, directory: Path, base_dir: Path, dtype: torch.dtype) -> Any:
        """The tuned model as any user of the libraries gets it. Raises OSError or ValueError."""
        ...


class AdapterForm:
    """A LoRA beside its base model. It is float32 on every device."""

    folder = "adapter"

    def __init__(self, config: bytes) -> None:
        """`config`: adapter_config.json."""
        self._config = config

    def write(self, weights: dict[str, Tensor], directory: Path, dtype: torch.dtype) -> None:
        """See Form."""
        directory.mkdir(parents=True)
        save_file(weights, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        (directory / ADAPTER_CONFIG).write_bytes(self._config)

    def read(self, directory: Path) -> dict[str, Tensor]:
        """See Form."""
        return load_file(directory / ADAPTER_WEIGHTS)

    def open(self, directory: Path, base_dir: Path, dtype: torch.dtype) -> Any:
        """See Form."""
        return PeftModel.from_pretrained(_open(base_dir, dtype), directory)


class ModelForm:
    """All weights of a model, under the names that its library stores them by."""

    folder = "model"

    def __init__(self, base_dir: Path) -> None:
        """`base_dir`: the base model, for its configuration."""
        self._base_dir = base_dir

    def write(self, weights: dict[str, Tensor], directory: Path, dtype: torch.dtype) -> None:
        """See Form. The library's own writing, for some models are stored under other names than they are computed with."""
        config = AutoConfig.from_pretrained(self._base_dir, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        skeleton.save_pretrained(directory, state_dict={name: tensor.to(dtype) for name, tensor in weights.items()})

    def read(self, directory: Path) -> dict[str, Tensor]:
        """See Form."""
        return {name: parameter.detach() for name, parameter in _open(directory, torch.float32).named_parameters()}

    def open(self, directory: Path, base_dir: Path, dtype: torch.dtype) -> Any:
        """See Form."""
        return _open(directory, dtype)


def _open(directory: Path, dtype: torch.dtype) -> Any:
    """A model from local safetensors. Raises ValueError when a tensor is missing, which the library would make up."""
    model, found = AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True, output_loading_info=True
    )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"{len(missing)} tensors are missing, such as {missing[0]}")
    return model
