"""Runs a Llama-like decoder (Llama, Mistral, Qwen2, Qwen3, SmolLM2, …) over packed tokens on a CPU.

Recognises the decoder by its parts, not by its name; whether the parts mean what they seem to is settled by
`TrainingModel`, which compares a probe's outputs with the library's and falls back to the library. Knows nothing
of heads, losses or files.
"""

from __future__ import annotations

import types
from typing import Any

from peft.tuners.lora import Linear as PeftLoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.activations import ACT2FN

from trainers.attention import Attention
from trainers.blocks import AttentionBlock, AttentionParts, MlpBlock, MlpParts, Norm, RmsNorm, Step
from trainers.data import Batch
from trainers.kernels import LoraProduct, Projection
from trainers.packing import Packed, pack

DECODER = {"embed_tokens", "layers", "norm", "rotary_emb"}
LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
HEAD_NORMS = {"q_norm", "k_norm"}
MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
SILU = type(ACT2FN["silu"])


class Unlike(Exception):
    """The decoder is not of the form that is computed here."""


class PackedDecoder:
    """A decoder's layers as parts, in the form that `blocks` computes."""

    def __init__(self, decoder: nn.Module) -> None:
        """Raises Unlike."""
        _require(_children(decoder) == DECODER, "the decoder has other parts")
        self._decoder: Any = decoder
        config: Any = decoder.config
        _require(not getattr(config, "attention_dropout", 0.0), "attention has dropout")
        _require(config.num_attention_heads % config.num_key_value_heads == 0, "heads do not share keys evenly")
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._window: int | None = getattr(config, "sliding_window", None)
        layers: Any = decoder.layers
        self._layers = [(_attention_parts(layer), _mlp_parts(layer)) for layer in layers]
        self._scale = float(layers[0].self_attn.scaling)
        self._norm = _norm(decoder.norm)
        self._dropout = any(
            p.dropout for attention, mlp in self._layers for p in (*attention.inputs, attention.output, *mlp.inputs, mlp.output)
        )

    def takes(self, batch: Batch) -> bool:
        """Whether the rows fit into the model's attention window, where it has one."""
        return self._window is None or batch.input_ids.shape[1] <= self._window

    def hidden(self, batch: Batch, *, training: bool) -> Tensor:
        """Final hidden states [labels, hidden] of the tokens that the labels are predicted from; needs at least one label.

        With dropout rows do not share their prefix: each would have drawn its own.
        """
        packed = pack(batch, share_prefix=not (training and self._dropout))
        step = self._step(packed, training)
        x = self._decoder.embed_tokens(packed.ids)
        for place, (attention, mlp) in enumerate(self._layers):
            kept = packed.kept if place == len(self._layers) - 1 else None
            x = AttentionBlock.apply(x, attention, step, kept, *attention.adapters)
            x = MlpBlock.apply(x, mlp, step, *mlp.adapters)
        return RmsNorm.apply(x, self._norm)[packed.sources]

    def _step(self, packed: Packed, training: bool) -> Step:
        weight = self._norm.weight
        cos, sin = self._decoder.rotary_emb(weight.new_empty(0), packed.positions.unsqueeze(0))
        half = cos.shape[-1] // 2
        cos, sin = (x.to(weight.dtype)[0, :, None, :half].contiguous() for x in (cos, sin))
        attention = Attention(packed.layout, self._heads, self._kv_heads, self._scale, weight.dtype)
        return Step(attention, cos, sin, training)


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise Unlike(what)


def _children(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def _attention_parts(layer: Any) -> AttentionParts:
    _require(_children(layer) == LAYER, "a layer has other parts")
    attention = layer.self_attn
    norms = _children(attention) - ATTENTION
    _require(norms in (set(), HEAD_NORMS), "attention has other parts")
    q, k, v, o = (_projection(getattr(attention, name)) for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
    head_norms = (_norm(attention.q_norm), _norm(attention.k_norm)) if norms else None
    _require(all(len(norm.weight) == attention.head_dim for norm in head_norms or ()), "queries are normed before they are split")
    return AttentionParts(_norm(layer.input_layernorm), (q, k, v), o, head_norms, attention.head_dim)


def _mlp_parts(layer: Any) -> MlpParts:
    mlp = layer.mlp
    _require(_children(mlp) == MLP and type(mlp.act_fn) is SILU, "the MLP is not a gated SiLU")
    gate, up, down = (_projection(getattr(mlp, name)) for name in ("gate_proj", "up_proj", "down_proj"))
    return MlpParts(_norm(layer.post_attention_layernorm), (gate, up), down)


def _norm(module: Any) -> Norm:
    known = hasattr(module, "variance_epsilon") and [name for name, _ in module.named_parameters()] == ["weight"]
    _require(known, "a norm is not an RMS norm")
    return Norm(module.weight, module.variance_epsilon)


def _projection(module: nn.Module) -> Projection:
    if type(module) is nn.Linear:
        _require(not module.weight.requires_grad, "a projection is trained itself")
        return Projection(module.weight, module.bias)
    adapted = plain_lora(module)
    _require(adapted is not None, "a projection is not linear, or adapted in another way")
    return adapted


def plain_lora(module: nn.Module) -> Projection | None:
    """The module as a projection when it is a linear module with one plain LoRA on it, else None."""
    if type(module) is not PeftLoraLinear or type(module.get_base_layer()) is not nn.Linear:
        return None
    names, base = list(module.lora_A), module.get_base_layer()
    if len(names) != 1 or module.lora_variant or module.fan_in_fan_out or any(module.lora_bias.values()):
        return None
    [name] = names
    dropout = float(getattr(module.lora_dropout[name], "p", 0.0))
    return Projection(base.weight, base.bias, module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name], dropout)


def in_place(model: nn.Module) -> bool:
    """Whether every adapter is active and unmerged, so that the parts say what the modules would compute."""
    return not any(isinstance(module, BaseTunerLayer) and (module.disable_adapters or module.merged) for module in model.modules())


def fuse_lora(model: nn.Module) -> None:
    """Let the plain LoRA modules of any architecture compute as one `LoraProduct`; with dropout they stay as they are."""
    for module in model.modules():
        parts = plain_lora(module)
        if parts is not None and not parts.dropout:
            module.forward = types.MethodType(_fused_forward, module)


def _fused_forward(self: PeftLoraLinear, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if self.disable_adapters or self.merged or args or kwargs:
        return PeftLoraLinear.forward(self, x, *args, **kwargs)
    [name], base = self.active_adapters, self.get_base_layer()
    a, b = self.lora_A[name].weight, self.lora_B[name].weight
    y = LoraProduct.apply(x.reshape(-1, x.shape[-1]), base.weight, base.bias, a, b, self.scaling[name])
    return y.view(*x.shape[:-1], y.shape[-1])
