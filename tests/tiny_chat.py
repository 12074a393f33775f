"""A tokenizer of a few hundred tokens with a ChatML template, made in milliseconds: the chat half of a model's directory."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LINES = ["system user assistant", "Classify the sentiment of the text.", "positive negative", "You are a helpful assistant, hello world."]


def write_chat_model(directory: Path, template: str | None = CHATML) -> Path:
    """tokenizer.json, tokenizer_config.json, config.json and chat_template.jinja in `directory`; returns it."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=specials, initial_alphabet=sorted(alphabet), show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "tokenizer_class": "TokenizersBackend"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    if template is not None:
        (directory / "chat_template.jinja").write_text(template)
    return directory


def chat_row(user: str = "hello", assistant: str = "world", **assistant_fields: object) -> dict[str, object]:
    """A row of two messages."""
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant, **assistant_fields}]}


def write_rows(path: Path, rows: list[object]) -> Path:
    """The rows as JSON Lines; a string or bytes stand for themselves."""
    lines = [row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path
