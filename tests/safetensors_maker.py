"""Model directories by hand, sound or broken, without torch."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

from tests.tiny_chat import CHATML, write_chat_model

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4,
    "vocab_size": 8,
    "num_hidden_layers": 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
}
SHAPES = {
    "model.embed_tokens.weight": [8, 4],
    "model.layers.0.self_attn.q_proj.weight": [4, 4],
    "model.layers.0.mlp.down_proj.weight": [4, 6],
    "model.layers.0.mlp.down_proj.bias": [4],
    "model.norm.weight": [4],
}


def tensor_file(path: Path, header: dict[str, Any] | str, data: bytes) -> Path:
    """A safetensors file of this header, as it stands, and these bytes."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def plain_header(shapes: dict[str, list[int]], dtype: str = "F32", size: int = 4) -> tuple[dict[str, Any], int]:
    """A sound header, and the bytes of data it wants."""
    header, at = {}, 0
    for name, shape in shapes.items():
        end = at + size * prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    return header, at


def write_model(directory: Path, *, config: dict[str, Any] | None = None, template: bool = True) -> Path:
    """A causal language model in form: everything a base model needs, and numbers that mean nothing."""
    write_chat_model(directory, CHATML if template else None)
    (directory / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    header, size = plain_header(SHAPES)
    tensor_file(directory / "model.safetensors", header, bytes(size))
    return directory
