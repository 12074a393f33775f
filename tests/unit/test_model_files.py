"""What is taken of a model's files, what is refused, and what is told of the rest."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.safetensors_maker import SHAPES, plain_header, tensor_file, write_model
from trainers.model_files import INDEX, Unusable, files_to_take, inspect
from trainers.safetensors_file import Malformed, read_tensors

NEEDED = ["config.json", "tokenizer.json", "model.safetensors"]
F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def test_only_what_is_known_is_taken() -> None:
    beside = [
        "README.md",
        "LICENSE",
        "training_args.bin",
        "pytorch_model.bin",
        "onnx/model.onnx",
        "consolidated.safetensors",
        "runs/x.json",
    ]
    assert files_to_take([*NEEDED, *beside, "chat_template.jinja"]) == sorted([*NEEDED, "LICENSE", "chat_template.jinja"])


def test_parts_are_taken_with_their_index_but_not_beside_the_whole() -> None:
    parts = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", INDEX]
    assert files_to_take(["config.json", "tokenizer.json", *parts]) == sorted(["config.json", "tokenizer.json", *parts])
    assert files_to_take([*NEEDED, *parts]) == sorted(NEEDED)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["config.json", "tokenizer.json", "pytorch_model.bin"], r"pickled \(pytorch_model\.bin\)"),
        (["config.json", "tokenizer.json", "model.pt"], r"pickled \(model\.pt\)"),
        (["config.json", "tokenizer.json", "consolidated.00.pth"], r"pickled \(consolidated\.00\.pth\)"),
        (["config.json", "tokenizer.json"], r"no model\.safetensors"),
        (["config.json", "tokenizer.json", "adapter_model.safetensors"], r"no model\.safetensors"),
        (["config.json", "tokenizer.json", "model-00001-of-00002.safetensors"], r"no model\.safetensors\.index\.json"),
        ([*NEEDED, "modeling_mine.py"], r"code of its own \(modeling_mine\.py\)"),
        (["tokenizer.json", "model.safetensors"], r"no config\.json"),
        (["config.json", "model.safetensors"], r"no tokenizer\.json"),
    ],
)
def test_what_can_not_be_a_base_model_is_refused(names: list[str], reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        files_to_take(names)


def test_facts(tmp_path: Path) -> None:
    assert inspect(write_model(tmp_path)) == {
        "architecture": "LlamaForCausalLM",
        "model_type": "llama",
        "dtype": "F32",
        "parameters": 32 + 16 + 24 + 4 + 4,
        "tie_word_embeddings": True,
        "hidden_size": 4,
        "vocab_size": 8,
        "layers": 1,
        "max_length": 64,
        "linear_modules": ["model.layers.0.mlp.down_proj", "model.layers.0.self_attn.q_proj"],
    }


def test_neither_head_nor_router_nor_experts_are_linear_modules(tmp_path: Path) -> None:
    directory = write_model(tmp_path, config={"tie_word_embeddings": False})
    more = {"lm_head.weight": [8, 4], "model.layers.0.mlp.gate.weight": [2, 4], "model.layers.0.mlp.experts.0.up_proj.weight": [4, 4]}
    header, size = plain_header(SHAPES | more)
    tensor_file(directory / "model.safetensors", header, bytes(size))
    facts = inspect(directory)
    assert facts["linear_modules"] == ["model.layers.0.mlp.down_proj", "model.layers.0.self_attn.q_proj"]
    assert facts["parameters"] == 80 + 32 + 8 + 16


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "m.M"}}, r"config\.json asks for code of its own \(auto_map\)"),
        ("config.json", {"text_config": {"auto_map": {}}}, "auto_map"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["t.T", None]}}, r"tokenizer_config\.json asks for code"),
        ("config.json", {"quantization_config": {"quant_method": "gptq"}}, r"quantised \(gptq\)"),
        ("config.json", {"architectures": ["BertForMaskedLM"]}, "no causal language model"),
        ("config.json", {"architectures": None}, "no causal language model"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, file: str, change: dict[str, Any], reason: str) -> None:
    path = write_model(tmp_path) / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(Unusable, match=reason):
        inspect(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"a": ' * 100_000])
def test_settings_that_are_no_json_object(tmp_path: Path, text: str) -> None:
    (write_model(tmp_path) / "config.json").write_text(text)
    with pytest.raises(Unusable, match=r"config\.json is not"):
        inspect(tmp_path)


@pytest.mark.parametrize(
    ("dtype", "size", "bits"),
    [("F32", 4, struct.pack("<f", float("nan"))), ("F16", 2, struct.pack("<e", float("inf"))), ("BF16", 2, b"\x80\xff")],
)
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, dtype: str, size: int, bits: bytes) -> None:
    header, total = plain_header(SHAPES, dtype, size)
    data = bytearray(total)
    data[34 * size : 35 * size] = bits  # in the second tensor
    tensor_file(write_model(tmp_path) / "model.safetensors", header, bytes(data))
    with pytest.raises(Unusable, match=r"model\.layers\.0\.self_attn\.q_proj\.weight holds infinities or NaN"):
        inspect(tmp_path)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_large_finite_numbers_are_fine(tmp_path: Path, dtype: str) -> None:
    largest = {"F32": b"\xff\xff\x7f\x7f", "F16": b"\xff\x7b", "BF16": b"\x7f\x7f"}[dtype]
    file = tensor_file(tmp_path / "m", {"a": {"dtype": dtype, "shape": [3], "data_offsets": [0, 3 * len(largest)]}}, 3 * largest)
    assert read_tensors(file)[0].is_finite()


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({}, b""),
        ({"a": F32}, bytes(7)),
        ({"a": F32}, bytes(9)),
        ({"a": F32, "b": F32}, bytes(8)),
        ({"a": F32 | {"shape": [3]}}, bytes(8)),
        ({"a": F32 | {"shape": [0], "data_offsets": [0, 0]}}, b""),
        ({"a": F32 | {"dtype": "F8_E4M3", "shape": [8]}}, bytes(8)),
        ({"a": F32 | {"data_offsets": [-8, 0]}}, b""),
        ({"a": {"dtype": "F32"}}, bytes(8)),
        ('{"a": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}, "a": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
        ("[]", b""),
        ("not json", b""),
    ],
)
def test_files_that_safetensors_itself_may_let_pass_are_refused(tmp_path: Path, header: dict[str, Any] | str, data: bytes) -> None:
    with pytest.raises(Malformed, match=r"^m\.safetensors: "):
        read_tensors(tensor_file(tmp_path / "m.safetensors", header, data))


def test_a_header_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    file.write_bytes((2**40).to_bytes(8, "little") + b"{}")
    with pytest.raises(Malformed, match="no safetensors file"):
        read_tensors(file)


def test_an_index_that_lists_other_tensors_is_refused(tmp_path: Path) -> None:
    directory = write_model(tmp_path)
    (directory / "model.safetensors").rename(directory / "model-00001-of-00001.safetensors")
    (directory / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(SHAPES, "model-00001-of-00001.safetensors")}))
    assert inspect(directory)["layers"] == 1
    (directory / INDEX).write_text(json.dumps({"weight_map": {"other": "model-00001-of-00001.safetensors"}}))
    with pytest.raises(Unusable, match="does not list the tensors"):
        inspect(directory)
