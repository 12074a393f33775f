"""A model under training against the plain libraries: same losses, same gradients, same files; and the same bits each time."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from tests.tiny_model import write_tiny_model
from trainers.adapters import lora_config
from trainers.data import Batch
from trainers.model import TrainingModel
from trainers.spec import AdapterSpec

CPU = torch.device("cpu")
VOCABULARY = 97
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def llama(**changes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SHAPE | {"tie_word_embeddings": True} | changes))


def qwen2() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**SHAPE))


def qwen3() -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8))


def mistral() -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=12))


def neox() -> Any:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(GPTNeoXConfig(**{key: value for key, value in SHAPE.items() if key != "num_key_value_heads"}))


def granite() -> Any:
    """Made of Llama's parts, yet not computed as Llama is."""
    from transformers import GraniteConfig, GraniteForCausalLM

    return GraniteForCausalLM(GraniteConfig(**SHAPE, residual_multiplier=0.22, logits_scaling=1.0))


def gemma2() -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8))


FORMS = [
    (llama, "packed"),
    (qwen2, "packed"),
    (qwen3, "packed"),
    (mistral, "packed"),
    (neox, "hidden"),
    (granite, "hidden"),
    (gemma2, "logits"),
]
SPEC = AdapterSpec(r=4, alpha=8)


def pair(make: Callable[[], Any], spec: AdapterSpec = SPEC) -> tuple[TrainingModel, PeftModel]:
    """Ours and the plain libraries' around the same weights, with an adapter that has been trained a while."""
    torch.manual_seed(0)
    base = make()
    for parameter in base.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    plain = get_peft_model(base, lora_config(spec), autocast_adapter_dtype=False)
    for name, parameter in plain.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return TrainingModel(copy.deepcopy(plain), CPU, torch.float32), plain


def form(model: TrainingModel) -> str:
    if model._packed is not None:
        return "packed"
    return "hidden" if model._takes_hidden else "logits"


def batch(rows: int, length: int, prefix: int, labels: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(rows * length + prefix)
    ids = torch.randint(1, VOCABULARY, (rows, length), generator=generator)
    ids[:, :prefix] = ids[0, :prefix]
    weights, lengths = torch.zeros(rows, length), [length - i % 3 for i in range(rows)]
    for row, end in enumerate(lengths):
        ids[row, end:] = 0
        weights[row, max(1, end - 1 - labels) : end - 1] = 1.0 + 0.5 * row
    return Batch(ids, torch.tensor(lengths), weights, sum(lengths), float(weights.sum()))


BATCHES = [
    batch(4, 20, 9),
    batch(4, 20, 0),
    batch(1, 9, 0),
    batch(3, 12, 6, labels=40),
    batch(3, 9, 9),
    batch(2, 150, 0),
    batch(3, 170, 90),
]


def plain_loss(model: PeftModel, some: Batch) -> Tensor:
    """The loss as one would write it with the libraries alone."""
    mask = (torch.arange(some.input_ids.shape[1]) < some.lengths.unsqueeze(1)).long()
    logits = model(input_ids=some.input_ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    losses = cross_entropy(logits.flatten(0, 1), some.input_ids[:, 1:].flatten(), reduction="none")
    return (losses * some.weights[:, 1:].flatten()).sum()


def our_loss(model: TrainingModel, some: Batch) -> Tensor:
    scores = model.score(some)
    return -(scores.logp * scores.weights).sum()


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_training(ours: TrainingModel, plain: PeftModel, some: Batch) -> None:
    ours.network.zero_grad()
    plain.zero_grad()
    expected, loss = plain_loss(plain, some), our_loss(ours, some)
    expected.backward()
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=2e-6, atol=0)
    got, wanted = gradients(ours.network), gradients(plain)
    assert got.keys() == wanted.keys()
    for name, grad in wanted.items():
        assert (got[name] - grad).norm() <= 2e-5 * grad.norm(), name


@pytest.mark.parametrize(("make", "expected_form"), FORMS)
def test_losses_and_gradients_are_the_plain_libraries(make: Callable[[], Any], expected_form: str) -> None:
    ours, plain = pair(make)
    ours.train()
    plain.train()
    assert form(ours) == expected_form
    for some in BATCHES:
        assert_same_training(ours, plain, some)


def test_an_adapter_on_some_modules_only() -> None:
    ours, plain = pair(llama, AdapterSpec(r=4, alpha=8, target_modules=["q_proj", "v_proj", "up_proj"]))
    assert form(ours) == "packed"
    assert_same_training(ours, plain, BATCHES[0])


def test_scores_say_which_labels_were_most_probable() -> None:
    ours, plain = pair(llama)
    some = batch(4, 20, 9, labels=18)
    best = plain(input_ids=some.input_ids, use_cache=False).logits.argmax(-1)
    rows, positions = (some.weights > 0).nonzero(as_tuple=True)
    some.input_ids[rows[:5], positions[:5]] = best[rows[:5], positions[:5] - 1]
    assert ours.score(batch(4, 20, 9, labels=18)).correct.dtype == torch.bool
    scores = ours.score(some)
    best = plain(input_ids=some.input_ids, use_cache=False).logits.argmax(-1)
    assert torch.equal(scores.correct, best[rows, positions - 1] == some.input_ids[rows, positions])
    assert torch.equal(scores.weights, some.weights[rows, positions])


@pytest.mark.parametrize("make", [llama, neox])
def test_a_batch_without_labels_gives_gradients_of_zero(make: Callable[[], Any]) -> None:
    ours, _ = pair(make)
    empty = Batch(torch.zeros(1, 2, dtype=torch.int64), torch.tensor([0]), torch.zeros(1, 2), 0, 0.0)
    scores = ours.score(empty)
    assert scores.logp.shape == scores.weights.shape == scores.correct.shape == (0,)
    (-(scores.logp * scores.weights).sum()).backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in ours.trainable_parameters())


@pytest.mark.parametrize("make", [llama, neox])
def test_dropout_acts_in_training_only_and_follows_the_seed(make: Callable[[], Any]) -> None:
    ours, plain = pair(make, AdapterSpec(r=4, alpha=8, dropout=0.5))
    ours.eval()
    plain.eval()
    assert_same_training(ours, plain, BATCHES[0])
    ours.train()

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return our_loss(ours, BATCHES[0]).detach()

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


@pytest.mark.parametrize("make", [llama, neox])
def test_equal_rows_draw_their_own_dropout(make: Callable[[], Any]) -> None:
    ours, _ = pair(make, AdapterSpec(r=4, alpha=8, dropout=0.5))
    ours.train()
    torch.manual_seed(1)
    weights = torch.zeros(2, 8)
    weights[:, [4, 7]] = 1
    scores = ours.score(Batch(torch.arange(1, 9).repeat(2, 1), torch.tensor([8, 8]), weights, 16, 4.0))
    first, _, second, _ = scores.logp
    assert first != second


def test_a_disabled_adapter_is_disabled_on_the_fast_path_too() -> None:
    ours, plain = pair(llama)
    with ours.network.disable_adapter(), plain.disable_adapter(), torch.no_grad():
        torch.testing.assert_close(our_loss(ours, BATCHES[0]), plain_loss(plain, BATCHES[0]))
    assert_same_training(ours, plain, BATCHES[0])


def test_evaluation_builds_no_graph() -> None:
    ours, _ = pair(llama)
    with torch.no_grad():
        assert not ours.score(BATCHES[0]).logp.requires_grad


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def load(directory: Path, seed: int = 1, **spec: Any) -> TrainingModel:
    return TrainingModel.load(directory, AdapterSpec(r=4, **spec), seed=seed, device=CPU)


def test_loading_depends_on_the_seed_alone_and_leaves_the_generator_as_it_was(directory: Path) -> None:
    torch.manual_seed(5)
    first = load(directory)
    drawn = torch.rand(1)
    torch.rand(7)
    again, other = load(directory), load(directory, seed=2)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    assert all(torch.equal(a, b) for a, b in zip(first.adapter_state().values(), again.adapter_state().values(), strict=True))
    assert not torch.equal(first.trainable_parameters()[0], other.trainable_parameters()[0])


def test_only_the_adapter_is_trained_and_its_names_are_pefts(directory: Path) -> None:
    model = load(directory)
    assert model.adapter_state().keys() == get_peft_model_state_dict(model.network).keys()
    trained = [parameter for parameter in model.network.parameters() if parameter.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in model.trainable_parameters()}
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}
    assert not any("lm_head" in name for name in model.adapter_state())


def trained(directory: Path) -> TrainingModel:
    model = load(directory)
    with torch.no_grad():
        for n, parameter in enumerate(model.trainable_parameters()):
            parameter += 0.01 * (n + 1)
    return model


def test_plain_peft_loads_what_is_saved(directory: Path, tmp_path: Path) -> None:
    model = trained(directory)
    model.save_adapter(tmp_path, base_model="tiny")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(directory), tmp_path)
    torch.testing.assert_close(our_loss(model, BATCHES[0]), plain_loss(plain, BATCHES[0]))
    stored = get_peft_model_state_dict(plain, save_embedding_layers=False)  # "auto" asks the Hub
    assert all(torch.equal(stored[name], tensor) for name, tensor in model.adapter_state().items())


def test_the_same_adapter_is_saved_as_the_same_bytes(directory: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        trained(directory).save_adapter(tmp_path / name)
    targets = json.loads((tmp_path / "one" / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(targets)  # a set's order differs from process to process
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_stored_adapter_takes_the_place_of_the_present_one(directory: Path) -> None:
    model, other = trained(directory), load(directory, seed=9)
    other.load_adapter_state(model.adapter_state())
    assert torch.equal(our_loss(other, BATCHES[0]), our_loss(model, BATCHES[0]))


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape"])
def test_an_adapter_that_does_not_fit_changes_nothing(directory: Path, fault: str) -> None:
    model = load(directory)
    before = {name: tensor.clone() for name, tensor in model.adapter_state().items()}
    state = {name: tensor + 1 for name, tensor in before.items()}
    name = max(state)
    if fault == "unexpected":
        state["foreign"] = state[name]
    elif fault == "missing":
        del state[name]
    else:
        state[name] = state[name][:1, :1]
    with pytest.raises(ValueError, match="foreign" if fault == "unexpected" else name):
        model.load_adapter_state(state)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.adapter_state().items())


@pytest.mark.parametrize("targets", [["lm_head"], ["no_such_module"]])
def test_targets_that_cannot_be_adapted_are_refused(directory: Path, targets: list[str]) -> None:
    with pytest.raises(ValueError, match=r"(?i)target.modules"):
        load(directory, target_modules=targets)


def test_weights_that_are_not_safetensors_and_code_are_not_read(directory: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "model"
    foreign.mkdir()
    config = json.loads((directory / "config.json").read_text())
    (foreign / "config.json").write_text(json.dumps(config))
    torch.save({}, foreign / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load(foreign)
    (foreign / "config.json").write_text(json.dumps(config | {"model_type": "evil", "auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    (foreign / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ValueError, match="evil"):
        load(foreign)


TRAIN = """
import hashlib, sys, torch
from pathlib import Path
from tests.unit.test_model import BATCHES, load, our_loss
torch.set_num_threads(2)
model = load(Path(sys.argv[1]), dropout=float(sys.argv[2]))
model.train()
optimizer = torch.optim.AdamW(model.trainable_parameters(), lr=1e-2)
torch.manual_seed(0)
for some in BATCHES:
    our_loss(model, some).backward()
    optimizer.step()
    optimizer.zero_grad()
print(hashlib.sha256(b"".join(t.numpy().tobytes() for t in model.adapter_state().values())).hexdigest())
"""


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_two_processes_train_the_same_bits(directory: Path, dropout: float) -> None:
    command = [sys.executable, "-c", TRAIN, str(directory), str(dropout)]
    hashes = [subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1] for _ in range(2)]
    assert hashes[0] == hashes[1]
    assert len(hashes[0]) == 64
