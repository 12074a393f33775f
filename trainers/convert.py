"""GGUF to what base models are stored as: safetensors in float32, configuration, tokenizer, chat template.

`python -m trainers.convert` reads an order, `{"gguf": file, "out": directory}`, on standard input and ends with one
line on standard output: `{}`, or `{"error": …}`. A process of its own since the gateway has no torch. Called by the
service's `model_sources`.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

DIGITS = {"type": "Digits", "individual_digits": True}
LEADING_SPLITS: dict[str, list[dict[str, Any]]] = {"smollm": [DIGITS]}
"""Splits that come before byte-level BPE, by `tokenizer.ggml.pre`. GGUF names them and transformers leaves them out:
without this one, numbers after a space become other tokens than the model was trained on."""
FOREIGN = ("backend", "is_local", "local_files_only")
"""What transformers notes in tokenizer_config.json of how it was called."""


def convert(gguf: Path, out: Path) -> None:
    """Write the model into `out`. Numbers are kept exactly as GGUF defines them, which takes float32.

    Raises what transformers raises for a file that it can't read.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    _read_once()
    place = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name, "local_files_only": True}
    tokenizer: Any = AutoTokenizer.from_pretrained(**place)
    tokenizer.save_pretrained(out)
    plain = GgufConfig(gguf_file=gguf.name, dequantize=True)
    model: Any = AutoModelForCausalLM.from_pretrained(**place, quantization_config=plain, dtype=torch.float32, trust_remote_code=False)
    vars(model.config).pop("quantization_config", None)  # the weights are plain numbers now
    model.hf_quantizer = None
    model.save_pretrained(out, max_shard_size="1TB")
    tidy_config(out / "config.json")
    tidy_tokenizer(out, model.config.max_position_embeddings, _pre_tokenizer(gguf))


def tidy_config(path: Path) -> None:
    """Leave out transformers' private notes."""
    config = json.loads(path.read_text())
    _write(path, {key: value for key, value in config.items() if not key.startswith("_")})


def tidy_tokenizer(directory: Path, max_length: int, pre: str) -> None:
    """The splits that were left out, a class that every transformers knows, and the model's own length."""
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    if leading := LEADING_SPLITS.get(pre):
        tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*leading, tokenizer["pre_tokenizer"]]}
        path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config = {key: value for key, value in config.items() if key not in FOREIGN}
    _write(directory / "tokenizer_config.json", config | {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length})


def _read_once() -> None:
    """Halve the time: transformers parses the whole header three times, and makes the same table of names for every module.

    In this process, which does nothing else and ends, each is made once and kept.
    """
    import gguf

    gguf.GGUFReader = functools.cache(gguf.GGUFReader)
    gguf.get_tensor_name_map = functools.cache(gguf.get_tensor_name_map)


def _pre_tokenizer(gguf: Path) -> str:
    """`tokenizer.ggml.pre`, "" when the file does not say."""
    from gguf import GGUFReader

    field = GGUFReader(str(gguf)).get_field("tokenizer.ggml.pre")
    return str(field.contents()) if field else ""


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def main() -> int:
    """Do what standard input says."""
    order = json.load(sys.stdin)
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        convert(Path(order["gguf"]), Path(order["out"]))
        answer: dict[str, str] = {}
    except ImportError as error:
        answer = {"error": f"{error.name} is not installed here; pull on a machine with `pip install 'tunesmith[trainer]'`"}
    except Exception as error:  # whatever transformers makes of a file from outside is one line for the user
        answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 1 if answer else 0


if __name__ == "__main__":
    sys.exit(main())
