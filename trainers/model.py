"""A base model and what is trained of it, an adapter or all its weights, as the training loop sees it: load, score a batch.

Chooses dtype and the form of the computation: a Llama-like decoder under a LoRA on a CPU runs over packed tokens
(`decoder`), any other model through the library with its LoRA products fused, and a model whose output is more than a
product with its head through full logits. Which one holds is found out by a probe, so a wrong guess costs speed, never
truth. For an engine that divides weights (ZeRO-3) everything runs by modules, on whose forward passes it hangs its hooks;
so it does where ranks share rows (`sequence`), which takes the place of the library's attention.
Knows nothing of optimizers, losses, jobs or storage. Called by the loop, by evaluation, and by `verify`.
"""

from __future__ import annotations

import json
import types
from dataclasses import dataclass, replace
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
from trainers.sequence import ATTENTION, Exchange, not_shared
from trainers.spec import AdapterSpec, EngineName

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
    """A base model and what is trained of it."""

    def __init__(
        self,
        network: Any,
        device: torch.device,
        dtype: torch.dtype,
        *,
        by_modules: bool = False,
        fused: bool = True,
        exchange: Exchange | None = None,
    ) -> None:
        """For `load`, and for tests that bring a model of their own: what of `network` requires gradients is trained.

        `by_modules`: compute by the modules' own forward passes, the same on every rank also for a batch without labels.
        `fused`: LoRA products in one piece, which reads weights of modules that are not called. `exchange`: of ranks that share
        rows, where the network's attention is the exchange's. Raises TrainingFailed when they do not compute what one alone does.
        """
        self.network, self.device, self.dtype = network, device, dtype
        named = [(_stored_name(name), parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
        self._trained = dict(sorted(named))
        self._base: Any = network.get_base_model() if isinstance(network, PeftModel) else network
        self._head = _scoring_head(self._base)
        self._by_modules, self._exchange = by_modules, exchange
        self._packed = _packed_decoder(self._base) if device.type == "cpu" and not by_modules else None
        self._takes_hidden = True
        if fused:
            fuse_lora(network)
        self._choose_form()

    @classmethod
    def load(
        cls,
        directory: Path,
        adapter: AdapterSpec,
        *,
        seed: int,
        device: torch.device,
        engine: EngineName = "torch",
        activation_checkpointing: bool = False,
        exchange: Exchange | None = None,
    ) -> TrainingModel:
        """The model in `directory` with a new adapter that depends on `seed` alone, or with all its weights trained.

        float32 on a CPU; on a GPU the base is bfloat16 and the adapter float32. What ZeRO trains on a GPU is bfloat16, for
        it keeps float32 masters; plain torch keeps none, so there a whole model is float32. For zero3 it stays in the
        host's memory until the engine has divided it. Only local safetensors are read and no code of the model's is run.
        Raises OSError or ValueError when that makes no model, ValueError when `adapter` names no module of it, and
        TrainingFailed when the ranks of the exchange can't share the rows of such a model.
        """
        plain = engine == "torch"
        dtype = torch.float32 if device.type == "cpu" or (plain and adapter.type == "full") else torch.bfloat16
        attention = {"attn_implementation": ATTENTION} if exchange else {}
        network: Any = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True, **attention
        )
        network.config.use_cache = False
        if activation_checkpointing:
            network.activation_checkpointing_enable({"use_reentrant": False})
        if adapter.type == "lora":
            network = _with_lora(network, adapter, seed, in_float32=plain and device.type != "cpu")
        whole = torch.device("cpu") if engine == "zero3" else device
        by_modules = not plain or activation_checkpointing or exchange is not None
        fused = engine != "zero3" and not activation_checkpointing
        return cls(network.to(whole), whole, dtype, by_modules=by_modules, fused=fused, exchange=exchange)

    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained, under the names that it is stored by, always in the same order."""
        return dict(self._trained)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What is trained, always in the same order."""
        return list(self._trained.values())

    def adapter_state(self) -> dict[str, Tensor]:
        """The trained tensors, not copied, under the names that PEFT stores an adapter's by, or transformers a model's."""
        return {name: parameter.detach() for name, parameter in self._trained.items()}

    def load_adapter_state(self, state: dict[str, Tensor]) -> None:
        """Put stored tensors in the place of the trained ones. Raises ValueError, with nothing changed, when they do not fit."""
        self.require_fit(state)
        with torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(state[name])

    def require_fit(self, state: dict[str, Tensor]) -> None:
        """Raises ValueError unless these are the trained tensors' names and shapes; before the engine divides them."""
        if missing := self._trained.keys() - state.keys():
            raise ValueError(f"the adapter's state lacks {len(missing)} tensors, such as {min(missing)}")
        if unexpected := state.keys() - self._trained.keys():
            raise ValueError(f"the adapter's state has {len(unexpected)} tensors too many, such as {min(unexpected)}")
        for name, parameter in self._trained.items():
            if state[name].shape != parameter.shape:
                raise ValueError(f"{name} has shape {tuple(state[name].shape)}, {tuple(parameter.shape)} expected")

    def save_adapter(self, directory: Path, *, base_model: str | None = None) -> None:
        """adapter_config.json and adapter_model.safetensors as PEFT reads them; `base_model` is what the config names as its base.

        The same adapter gives the same bytes.
        """
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.to("cpu").contiguous() for name, tensor in self.adapter_state().items()}
        save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {key: _plain(value) for key, value in self.network.peft_config[ADAPTER_NAME].to_dict().items()}
        config |= {"base_model_name_or_path": base_model, "inference_mode": True}
        (directory / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    def train(self) -> None:
        """Dropout on."""
        self.network.train()

    def eval(self) -> None:
        """Dropout off."""
        self.network.eval()

    def score(self, batch: Batch) -> Scores:
        """Log-probabilities of the labels (positions of weight above 0), differentiable with respect to what is trained.

        A batch without labels gives empty scores whose backward pass gives every parameter a gradient of zeros.
        """
        rows, positions = (batch.weights > 0).nonzero(as_tuple=True)
        weights = batch.weights[rows, positions].to(self.device)
        labels = batch.input_ids[rows, positions].to(self.device)
        if len(rows) == 0 and not self._by_modules:
            touched = torch.stack([parameter.sum() for parameter in self._trained.values()]).sum() * 0.0
            return Scores(touched.expand(1)[:0], weights, torch.empty(0, dtype=torch.bool, device=self.device))
        logp, correct = self._logprobs(batch, rows, positions - 1, labels)
        return Scores(logp, weights, correct)

    def _logprobs(self, batch: Batch, rows: Tensor, sources: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        rows, sources = rows.to(self.device), sources.to(self.device)
        if not self._takes_hidden:
            return _logprobs_from_logits(self._logits(batch)[rows, sources], labels)
        if self._packed is not None and self._packed.takes(batch) and in_place(self.network):
            hidden = self._packed.hidden(batch, training=self.network.training)
        else:
            hidden = self._base.base_model(**self._inputs(batch)).last_hidden_state[rows, sources]
        return self._head(hidden, labels)

    def _logits(self, batch: Batch) -> Tensor:
        return self._base(**self._inputs(batch)).logits

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        """What the library is called with; whether the rows are parts is told to attention by the way."""
        ids = batch.input_ids.to(self.device)
        if self._exchange is not None:
            self._exchange.in_parts = batch.positions is not None
        if batch.positions is None:
            return {"input_ids": ids, "use_cache": False}
        return {"input_ids": ids[:, :-1], "position_ids": batch.positions.to(self.device).unsqueeze(0), "use_cache": False}

    @torch.no_grad()
    def _choose_form(self) -> None:
        """Keep the fastest form whose log-probabilities of a probe are those of the library's own logits."""
        was_training, batch = self.network.training, _probe(self._base.config.get_text_config().vocab_size)
        self.eval()
        rows, positions = (batch.weights > 0).nonzero(as_tuple=True)
        labels = batch.input_ids[rows, positions].to(self.device)
        where = (batch, rows, positions - 1, labels)
        expected, _ = _logprobs_from_logits(self._logits(batch)[rows, positions - 1], labels)
        if not self._agrees(expected, *where):
            self._packed = None
            self._takes_hidden = self._agrees(expected, *where)
        self._takes_hidden &= not transforms_logits(self._base.config.to_dict())
        if self._exchange is not None:
            self._require_same(expected, batch, self._exchange)
        self.network.train(was_training)

    def _require_same(self, expected: Tensor, batch: Batch, exchange: Exchange) -> None:
        """Raises TrainingFailed, on every rank, unless each part of the probe scores as it does in the whole."""
        numbers = batch.weights.clone()
        numbers[numbers > 0] = torch.arange(1.0, len(expected) + 1)
        scores = self.score(exchange.layout.part(replace(batch, weights=numbers)))
        whole, tolerance = expected[scores.weights.long() - 1], TOLERANCE[self.dtype] * float(expected.abs().max())
        if not exchange.agree(torch.allclose(scores.logp, whole, rtol=0, atol=tolerance)):
            raise not_shared("something beside its attention looks at several tokens at once")

    def _agrees(self, expected: Tensor, batch: Batch, rows: Tensor, sources: Tensor, labels: Tensor) -> bool:
        logp, _ = self._logprobs(batch, rows, sources, labels)
        return bool((logp - expected).abs().max() <= TOLERANCE[self.dtype] * expected.abs().max())


def _refuse_head(base: Any, adapter: AdapterSpec) -> None:
    head = next(name for name, module in base.named_modules() if module is base.get_output_embeddings())
    if not isinstance(adapter.target_modules, str) and any(f".{head}".endswith(f".{target}") for target in adapter.target_modules):
        raise ValueError(f"the output head {head} can't be adapted; leave it out of target_modules")


def _with_lora(base: Any, adapter: AdapterSpec, seed: int, *, in_float32: bool) -> PeftModel:
    _refuse_head(base, adapter)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(base, lora_config(adapter), ADAPTER_NAME, autocast_adapter_dtype=in_float32)


def _scoring_head(base: Any) -> nn.Module:
    """The output head, which given labels as well says their log-probabilities: called as a module, so that hooks see it."""
    head = base.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise ValueError("the output head is not a plain linear module")
    head.forward = types.MethodType(_score_or_project, head)
    return head


def _score_or_project(self: nn.Linear, hidden: Tensor, labels: Tensor | None = None) -> Any:
    if labels is None:
        return nn.Linear.forward(self, hidden)
    return token_logprobs(hidden, self.weight, labels)


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
