"""Sizes of two models that everybody knows, without their weights. Of the larger one only two modules of a layer are named."""

from __future__ import annotations

from trainers.model_files import Sizes

LAYER = {"q_proj": (576, 576), "k_proj": (192, 576), "v_proj": (192, 576), "o_proj": (576, 576)}
LAYER |= {"gate_proj": (1536, 576), "up_proj": (1536, 576), "down_proj": (576, 1536)}
SMOLLM2 = Sizes(
    config={
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "hidden_act": "silu",
    },
    parameters=134_515_008,
    head=49152 * 576,
    looked_up=0,
    linear={f"model.layers.{n}.{name}": shape for n in range(30) for name, shape in LAYER.items()},
)
LLAMA_8B = Sizes(
    config={
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "hidden_act": "silu",
    },
    parameters=8_030_261_248,
    head=128256 * 4096,
    looked_up=128256 * 4096,
    linear={f"layers.{n}.{name}_proj": shape for n in range(32) for name, shape in {"q": (4096, 4096), "down": (4096, 14336)}.items()},
)
