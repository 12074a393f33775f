"""What a base model's directory may hold, and what its files tell without torch.

Only safetensors, configuration and tokenizer are taken; pickles and code never are. Knows no catalogue and no
storage. Called by the service when a model is pulled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.safetensors_file import Malformed, Tensor, read_tensors

CONFIG, TOKENIZER, INDEX, SINGLE = "config.json", "tokenizer.json", "model.safetensors.index.json", "model.safetensors"
TEMPLATE = "chat_template.jinja"
SETTINGS = {CONFIG, "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_LEGAL = re.compile(r"(LICEN[CS]E|NOTICE)(\.(txt|md))?", re.I)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".h5", ".msgpack")
_CODE = (".py", ".pyc", ".so")
_NO_CODE = "remote code is never run, so take a model that transformers knows by itself"
_NOT_LINEAR = re.compile(r"emb|^wte$|^wpe$|^router$|^gate$")
_EMBEDDING = re.compile(r"^(embed_tokens|wte|embed_in|word_embeddings)$")
_HEADS = {"lm_head", "embed_out", "output"}
_EXPERT = re.compile(r"\.experts\.\d+\.")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many numbers a base model holds, and where an adapter can sit."""

    config: Mapping[str, Any]
    """config.json."""
    parameters: int
    head: int
    """Numbers of the output head, which a tied embedding is too."""
    looked_up: int
    """Numbers of an embedding that is only looked up, so multiplied with nothing; 0 when it is the head too."""
    linear: Mapping[str, tuple[int, ...]]
    """Shape of the matrix of each linear module, by its path."""

    def adapter(self, targets: str | Iterable[str], r: int) -> int:
        """Numbers of a LoRA of rank `r` on the modules that `targets` names: A [r, in] and B [out, r] each."""
        return r * sum(sum(self.linear[name]) for name in self.targeted(targets))

    def targeted(self, targets: str | Iterable[str]) -> list[str]:
        """Paths of the linear modules named, by their whole path or its last parts; a string ("all-linear") names all."""
        if isinstance(targets, str):
            return list(self.linear)
        return [path for path in self.linear if any(f".{path}".endswith(f".{target}") for target in targets)]


class Unusable(ValueError):
    """The files are no base model that may be stored; the message says why and what would do."""


def files_to_take(names: Iterable[str]) -> list[str]:
    """Those of a model's files that are stored, by name. Raises Unusable when the model brings code or lacks a part."""
    names = {name for name in names if "/" not in name}
    if code := sorted(name for name in names if name.endswith(_CODE)):
        raise Unusable(f"it brings code of its own ({code[0]}); {_NO_CODE}")
    taken = {name for name in names if name in SETTINGS or name in (TOKENIZER, TEMPLATE) or _LEGAL.fullmatch(name)}
    taken |= _weights(names)
    for needed in (CONFIG, TOKENIZER):
        if needed not in taken:
            raise Unusable(f"it has no {needed}")
    return sorted(taken)


def _weights(names: set[str]) -> set[str]:
    if SINGLE in names:
        return {SINGLE}
    shards = {name for name in names if _SHARD.fullmatch(name)}
    if shards and INDEX in names:
        return shards | {INDEX}
    if shards:
        raise Unusable(f"it has weights in parts but no {INDEX}")
    if pickles := sorted(name for name in names if name.endswith(_PICKLES)):
        raise Unusable(f"its weights are pickled ({pickles[0]}), and loading those can run code; convert them to safetensors first")
    raise Unusable(f"it has no {SINGLE}")


def inspect(directory: Path) -> dict[str, Any]:
    """Facts of the model in `directory`, which holds nothing but `files_to_take`.

    Checks form and content: no code asked for, whole safetensors, finite numbers. Raises Unusable.
    """
    config = _checked_settings(directory)
    try:
        tensors = _tensors(directory)
    except Malformed as error:
        raise Unusable(str(error)) from error
    for tensor in tensors:
        if not tensor.is_finite():
            raise Unusable(f"{tensor.file.name}: {tensor.name} holds infinities or NaN")
    return _facts(config, tensors)


def measure(directory: Path) -> Sizes:
    """How large the stored model in `directory` is, from its headers alone. Raises Unusable."""
    config = _read_object(directory / CONFIG)
    try:
        tensors = _tensors(directory)
    except Malformed as error:
        raise Unusable(str(error)) from error
    facts = _facts(config, tensors)
    shapes = {tensor.name.removesuffix(".weight"): tensor.shape for tensor in tensors}
    table = next((tensor.elements for tensor in tensors if _EMBEDDING.search(_module(tensor))), 0)
    tied = facts["tie_word_embeddings"]
    head = table if tied else next((tensor.elements for tensor in tensors if _module(tensor) in _HEADS), table)
    linear = {name: shapes[name] for name in facts["linear_modules"]}
    return Sizes(config, facts["parameters"], head, 0 if tied else table, linear)


def _checked_settings(directory: Path) -> dict[str, Any]:
    """config.json, once no settings file asks for code."""
    for path in sorted(directory.glob("*.json")):
        if path.name in SETTINGS and "auto_map" in _keys(_read_object(path)):
            raise Unusable(
                f"{path.name} asks for code of its own (auto_map), and remote code is never run; take a model that transformers knows"
            )
    config = _read_object(directory / CONFIG)
    if "quantization_config" in config:
        method = config["quantization_config"].get("quant_method") if isinstance(config["quantization_config"], dict) else None
        raise Unusable(f"its weights are quantised ({method or 'by a method of its own'}); take the model they were made from")
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        raise Unusable(f"it is no causal language model: {CONFIG} names the architectures {architectures}")
    return config


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise Unusable(f"{path.name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Unusable(f"{path.name} is not a JSON object")
    return value


def _keys(value: Any) -> Iterator[str]:
    """Every key at any depth."""
    if isinstance(value, dict):
        yield from value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _keys(item)


def _tensors(directory: Path) -> list[Tensor]:
    files = sorted(directory.glob("*.safetensors"))
    tensors = [tensor for file in files for tensor in read_tensors(file)]
    if (directory / INDEX).is_file():
        listed = _read_object(directory / INDEX).get("weight_map")
        if listed != {tensor.name: tensor.file.name for tensor in tensors}:
            raise Unusable(f"{INDEX} does not list the tensors of the parts that are there")
    return tensors


def _facts(config: dict[str, Any], tensors: list[Tensor]) -> dict[str, Any]:
    """Counts are of numbers; a tied head that is stored as well counts once."""
    heads = [tensor for tensor in tensors if _module(tensor) in _HEADS]
    tied = bool(config.get("tie_word_embeddings", not heads))
    elements = {tensor.dtype: 0 for tensor in tensors}
    for tensor in tensors:
        elements[tensor.dtype] += 0 if tied and tensor in heads else tensor.elements
    return {
        "architecture": config["architectures"][0],
        "model_type": config.get("model_type"),
        "dtype": max(elements, key=lambda dtype: elements[dtype]),
        "parameters": sum(elements.values()),
        "tie_word_embeddings": tied,
        "hidden_size": config.get("hidden_size", config.get("n_embd")),
        "vocab_size": config.get("vocab_size"),
        "layers": config.get("num_hidden_layers", config.get("n_layer")),
        "max_length": config.get("max_position_embeddings", config.get("n_positions")),
        "linear_modules": sorted(_linear_modules(config, tensors)),
    }


def _linear_modules(config: dict[str, Any], tensors: list[Tensor]) -> Iterator[str]:
    """Paths of the modules an adapter can sit on: matrices that are neither embedding, head nor router.

    Experts are left out, because transformers holds those of a layer in one tensor, which is no linear module.
    """
    for tensor in tensors:
        module, _, kind = tensor.name.rpartition(".")
        last = _module(tensor)
        if kind != "weight" or len(tensor.shape) != 2 or last in _HEADS or _NOT_LINEAR.search(last) or _EXPERT.search(module):
            continue
        if tensor.shape[0] != config.get("vocab_size"):
            yield module


def _module(tensor: Tensor) -> str:
    return tensor.name.rpartition(".")[0].rpartition(".")[2]
