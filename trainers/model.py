"""A base model with an adapter on it, as the training loop sees it: load, score a batch, keep the adapter.

Chooses dtype and the form of the computation: a Llama-like decoder on a CPU runs over packed tokens (`decoder`),
any other model through the library with its LoRA products fused, and a model whose output is more than a product
with its head through full logits. Which one holds is found out by a probe, so a wrong guess costs speed, never
truth. Knows nothing of optimizers, losses, jobs or storage. Called by the loop, by evaluation, and by `verify`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from trainers.adapters import lora_config
from trainers.data import Batch
from trainers.decoder import PackedDecoder, Unlike, fuse_lora, in_place
from trainers.head import token_logprobs
from trainers.plan import transforms_logits
from trainers.spec import AdapterSpec

ADAPTER_NAME = "default"
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""How far, relative to the largest, log-probabilities may differ between two forms that are the same mathematics."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What the head says of a micro-batch's labelled positions, in row order: see trainers.method.Scores."""

    logp: Tensor
    weights: Tensor
    correct: Tensor


class TrainingModel:
    """A frozen base model and the adapter that is trained."""

    def __init__(self, peft_model: PeftModel, device: torch.device, dtype: torch.dtype) -> None:
        """For `load`, and for tests that bring a model of their own. Raises ValueError when the output head is trained."""
        self.peft_model, self.device, self.dtype = peft_model, device, dtype
        named = [(_stored_name(name), parameter) for name, parameter in peft_model.named_parameters() if parameter.requires_grad]
        self._adapter = dict(sorted(named))
        self._base: Any = peft_model.get_base_model()
        self._head = _frozen_head(self._base)
        self._packed = _packed_decoder(self._base) if device.type == "cpu" else None
        self._takes_hidden = True
        fuse_lora(peft_model)
        self._choose_form()

    @classmethod
    def load(cls, directory: Path, adapter: AdapterSpec, *, seed: int, device: torch.device) -> TrainingModel:
        """The model in `directory` with a new adapter that depends on `seed` alone.

        float32 on a CPU; on a GPU the base is bfloat16 and the adapter float32. Only local safetensors are
        read and no code of the model's is run. Raises OSError or ValueError when that makes no model, and
        ValueError when `adapter` names no module of it.
        """
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        base = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
        base.config.use_cache = False
        _refuse_head(base, adapter)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            peft_model = get_peft_model(base, lora_config(adapter), ADAPTER_NAME, autocast_adapter_dtype=device.type != "cpu")
        return cls(peft_model.to(device), device, dtype)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The adapter's parameters, always in the same order."""
        return list(self._adapter.values())

    def adapter_state(self) -> dict[str, Tensor]:
        """The adapter's tensors, not copied, under the names that PEFT stores them by."""
        return {name: parameter.detach() for name, parameter in self._adapter.items()}

    def load_adapter_state(self, state: dict[str, Tensor]) -> None:
        """Put stored tensors in the adapter's place. Raises ValueError, with nothing changed, when they do not fit."""
        if missing := self._adapter.keys() - state.keys():
            raise ValueError(f"the adapter's state lacks {len(missing)} tensors, such as {min(missing)}")
        if unexpected := state.keys() - self._adapter.keys():
            raise ValueError(f"the adapter's state has {len(unexpected)} tensors too many, such as {min(unexpected)}")
        for name, parameter in self._adapter.items():
            if state[name].shape != parameter.shape:
                raise ValueError(f"{name} has shape {tuple(state[name].shape)}, {tuple(parameter.shape)} expected")
        with torch.no_grad():
            for name, parameter in self._adapter.items():
                parameter.copy_(state[name])

    def save_adapter(self, directory: Path, *, base_model: str | None = None) -> None:
        """adapter_config.json and adapter_model.safetensors as PEFT reads them; `base_model` is what the config names as its base.

        The same adapter gives the same bytes.
        """
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.to("cpu").contiguous() for name, tensor in self.adapter_state().items()}
        save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {key: _plain(value) for key, value in self.peft_model.peft_config[ADAPTER_NAME].to_dict().items()}
        config |= {"base_model_name_or_path": base_model, "inference_mode": True}
        (directory / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    def train(self) -> None:
        """Dropout on."""
        self.peft_model.train()

    def eval(self) -> None:
        """Dropout off."""
        self.peft_model.eval()

    def score(self, batch: Batch) -> Scores:
        """Log-probabilities of the labels (positions of weight above 0), differentiable with respect to the adapter.

        A batch without labels gives empty scores whose backward pass gives every parameter a gradient of zeros.
        """
        rows, positions = (batch.weights > 0).nonzero(as_tuple=True)
        weights = batch.weights[rows, positions].to(self.device)
        labels = batch.input_ids[rows, positions].to(self.device)
        if len(rows) == 0:
            touched = torch.stack([parameter.sum() for parameter in self._adapter.values()]).sum() * 0.0
            return Scores(touched.expand(1)[:0], weights, torch.empty(0, dtype=torch.bool, device=self.device))
        logp, correct = self._logprobs(batch, rows, positions - 1, labels)
        return Scores(logp, weights, correct)

    def _logprobs(self, batch: Batch, rows: Tensor, sources: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if not self._takes_hidden:
            return _logprobs_from_logits(self._logits(batch)[rows, sources], labels)
        if self._packed is not None and self._packed.takes(batch) and in_place(self.peft_model):
            hidden = self._packed.hidden(batch, training=self.peft_model.training)
        else:
            decoded = self._base.base_model(input_ids=batch.input_ids.to(self.device), use_cache=False)
            hidden = decoded.last_hidden_state[rows.to(self.device), sources.to(self.device)]
        return token_logprobs(hidden, self._head, labels)

    def _logits(self, batch: Batch) -> Tensor:
        return self._base(input_ids=batch.input_ids.to(self.device), use_cache=False).logits

    @torch.no_grad()
    def _choose_form(self) -> None:
        """Keep the fastest form whose log-probabilities of a probe are those of the library's own logits."""
        was_training, batch = self.peft_model.training, _probe(self._base.config.get_text_config().vocab_size)
        self.eval()
        rows, positions = (batch.weights > 0).nonzero(as_tuple=True)
        labels = batch.input_ids[rows, positions].to(self.device)
        where = (batch, rows, positions - 1, labels)
        expected, _ = _logprobs_from_logits(self._logits(batch)[rows, positions - 1], labels)
        if not self._agrees(expected, *where):
            self._packed = None
            self._takes_hidden = self._agrees(expected, *where)
        self._takes_hidden &= not transforms_logits(self._base.config.to_dict())
        self.peft_model.train(was_training)

    def _agrees(self, expected: Tensor, batch: Batch, rows: Tensor, sources: Tensor, labels: Tensor) -> bool:
        logp, _ = self._logprobs(batch, rows, sources, labels)
        return bool((logp - expected).abs().max() <= TOLERANCE[self.dtype] * expected.abs().max())


def _refuse_head(base: Any, adapter: AdapterSpec) -> None:
    head = next(name for name, module in base.named_modules() if module is base.get_output_embeddings())
    if not isinstance(adapter.target_modules, str) and any(f".{head}".endswith(f".{target}") for target in adapter.target_modules):
        raise ValueError(f"the output head {head} can't be adapted; leave it out of target_modules")


def _frozen_head(base: Any) -> Tensor:
    head = base.get_output_embeddings()
    if type(head) is not nn.Linear or head.weight.requires_grad:
        raise ValueError("the output head is not a plain frozen linear module")
    return head.weight


def _packed_decoder(base: Any) -> PackedDecoder | None:
    try:
        return PackedDecoder(base.base_model)
    except Unlike:
        return None


def _probe(vocabulary: int) -> Batch:
    """Two rows that begin alike, every token labelled."""
    ids = (torch.arange(16) * 7919 + 11).reshape(2, 8) % vocabulary
    ids[1, :4] = ids[0, :4]
    weights = torch.ones(2, 8)
    weights[:, 0] = 0
    return Batch(input_ids=ids, lengths=torch.tensor([8, 8]), weights=weights, tokens=16, weight_sum=14.0)


def _logprobs_from_logits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logp = logits.log_softmax(-1).gather(1, labels.unsqueeze(1)).squeeze(1)
    return logp, logits.argmax(-1) == labels


def _stored_name(name: str) -> str:
    return name.replace(f".{ADAPTER_NAME}.", ".")


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value
