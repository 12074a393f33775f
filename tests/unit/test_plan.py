"""What a worker needs and may take, from sizes alone.

The sums are held against peaks measured once on the real SmolLM2; tests/trainer/test_memory.py measures anew, on other models.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sizes import LLAMA_8B, SMOLLM2
from tests.tiny_model import write_tiny_model
from trainers.model_files import Sizes, measure
from trainers.plan import (
    CPU_TOKENS,
    MEMORY_SHARE,
    RUN_BYTES,
    USABLE_SHARE,
    Adapters,
    Division,
    Load,
    Shape,
    choose_engine,
    unshareable,
    worker_memory,
)
from trainers.spec import AdapterSpec, DeepSpeedSpec, EngineName, ResourceSpec, StateOffloadSpec, TrainingSpec, TunesmithSpec, ZeroSpec

GIB = 2**30
MEASURED = [
    # rows, longest, peak in MiB of a whole run in a plain process on a processor, LoRA r 16 on all linear modules
    (8, 64, 1630),
    (2, 512, 1900),
    (4, 512, 2634),
    (2, 1024, 2849),
]


def load(adapter: AdapterSpec | None = None, *, on_cpu: bool = True, sizes: Sizes = SMOLLM2) -> Load:
    return Load.of(sizes, TunesmithSpec(adapter=adapter or AdapterSpec()), "torch", on_cpu=on_cpu)


def cpu() -> Load:
    return load()


@pytest.mark.parametrize(("rows", "longest", "peak"), MEASURED)
def test_the_estimate_lies_above_the_measured_peak_and_not_far(rows: int, longest: int, peak: int) -> None:
    assert 1.0 < cpu().memory(rows, longest).total / (peak * 2**20) < 1.15


def test_numbers_of_an_adapter() -> None:
    assert SMOLLM2.adapter("all-linear", 16) == 4_884_480
    assert SMOLLM2.adapter(["q_proj", "v_proj"], 16) == 921_600
    assert SMOLLM2.adapter(["model.layers.0.q_proj"], 1) == 2 * 576
    memory = cpu().memory(1, 16)
    assert (memory.adapter, memory.gradients, memory.optimizer) == (4 * 4_884_480, 4 * 4_884_480, 8 * 4_884_480)


def test_sizes_come_from_the_files(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    directory = write_tiny_model(tmp_path / "tiny")
    sizes, model = measure(directory), AutoModelForCausalLM.from_pretrained(directory)
    assert sizes.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert sizes.head == model.get_output_embeddings().weight.numel()
    assert sizes.looked_up == 0
    linear = {name: tuple(module.weight.shape) for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    del linear["lm_head"]
    assert dict(sizes.linear) == linear
    shape = Shape.of(sizes.config, sizes.linear, on_cpu=True)
    assert (shape.hidden, shape.intermediate, shape.queries, shape.kv, shape.layers, shape.packed) == (64, 128, 64, 32, 2, True)


def test_a_micro_batch_on_a_processor_is_bounded_by_tokens() -> None:
    assert cpu().micro_batch(longest=100, rows=64, memory_bytes=64 * GIB) == CPU_TOKENS // 100
    assert cpu().micro_batch(longest=100, rows=8, memory_bytes=64 * GIB) == 8
    assert cpu().micro_batch(longest=100_000, rows=8, memory_bytes=64 * GIB) == 1


@given(
    st.integers(1, 4096), st.integers(1, 64), st.integers(0, 200), st.booleans(), st.booleans(), st.sampled_from([10**6, 10**8, 8 * 10**9])
)
def test_more_than_one_row_is_taken_only_where_it_fits(
    longest: int, rows: int, gib: int, on_cpu: bool, dropout: bool, parameters: int
) -> None:
    asked = replace(load(AdapterSpec(dropout=0.1 if dropout else 0.0), on_cpu=on_cpu), parameters=parameters)
    chosen = asked.micro_batch(longest=longest, rows=rows, memory_bytes=gib * GIB)
    assert 1 <= chosen <= rows
    assert chosen == 1 or asked.memory(chosen, longest).total <= gib * GIB
    assert chosen == 1 or asked.memory(chosen, longest).activations <= gib * GIB * MEMORY_SHARE


def test_what_the_library_keeps_is_more_than_the_packed_form_keeps() -> None:
    packed = Shape.of(SMOLLM2.config, SMOLLM2.linear, on_cpu=True)
    other = Shape.of({**SMOLLM2.config, "hidden_act": "gelu"}, SMOLLM2.linear, on_cpu=True)
    adapters = Adapters(1, 16, dropout=False)
    assert packed.packed
    assert not other.packed
    assert other.activation_bytes(512, adapters) > packed.activation_bytes(512, adapters)
    assert not Shape.of(SMOLLM2.config, SMOLLM2.linear, on_cpu=False).packed


def test_logits_that_are_capped_exist_in_full() -> None:
    capped = replace(SMOLLM2, config={**SMOLLM2.config, "final_logit_softcapping": 30.0})
    assert load(sizes=capped).memory(4, 512).head > 4 * 512 * 49152 * 12
    assert cpu().memory(4, 512).head < 150 * 2**20


def asked(workers: int = 1, gpus: int = 1, kind: str = "lora", **resources: Any) -> TunesmithSpec:
    adapter = AdapterSpec.model_validate({"type": kind})
    return TunesmithSpec(adapter=adapter, resources=ResourceSpec(workers=workers, gpus_per_worker=gpus, **resources))


@pytest.mark.parametrize(
    ("engine", "weights", "gradients", "optimizer"), [("torch", 1, 1, 1), ("zero1", 1, 1, 4), ("zero2", 1, 4, 4), ("zero3", 4, 4, 4)]
)
def test_each_stage_of_zero_divides_one_part_more(engine: EngineName, weights: int, gradients: int, optimizer: int) -> None:
    assert Division.of(engine, 4) == Division(weights, gradients, optimizer)
    assert Division.of(engine, 1) == Division()


def test_memory_of_a_whole_model_falls_from_stage_to_stage() -> None:
    spec, stages = asked(8, kind="full"), ("zero1", "zero2", "zero3")
    found = [Load.of(LLAMA_8B, spec, engine, on_cpu=False).memory(1, 1024) for engine in stages]
    assert sorted(found, key=lambda memory: -memory.total) == found
    assert found[0].optimizer == LLAMA_8B.parameters // 8 * 16
    assert found[2].weights < found[0].weights / 3
    plain = Load.of(LLAMA_8B, spec, "torch", on_cpu=False).memory(1, 1024)
    assert (plain.weights, plain.gradients, plain.optimizer) == tuple(LLAMA_8B.parameters * each for each in (4, 4, 8))


def test_less_is_kept_when_it_is_asked_for() -> None:
    thrifty = TunesmithSpec(training=TrainingSpec(activation_checkpointing=True))
    needs = [Load.of(LLAMA_8B, spec, "torch", on_cpu=False).memory(4, 4096).activations for spec in (TunesmithSpec(), thrifty)]
    assert needs[1] < needs[0] / 5
    offload = DeepSpeedSpec(zero_optimization=ZeroSpec(offload_optimizer=StateOffloadSpec(device="cpu")))
    assert Load.of(LLAMA_8B, asked(2, kind="full", deepspeed=offload), "zero2", on_cpu=False).memory(1, 16).optimizer == 0


def test_state_on_nvme_counts_there_and_not_in_memory() -> None:
    on_nvme, in_memory = (
        DeepSpeedSpec.model_validate({"zero_optimization": {"offload_optimizer": {"device": device}}}) for device in ("nvme", "cpu")
    )
    gpu = Load.of(LLAMA_8B, asked(2, kind="full", deepspeed=on_nvme), "zero2", on_cpu=False)
    assert (gpu.memory(1, 16).optimizer, gpu.nvme_bytes) == (0, 12 * LLAMA_8B.parameters // 2)
    engines: tuple[EngineName, ...] = ("zero1", "zero2", "zero3")
    for engine in engines:
        kept, memory = (Load.of(SMOLLM2, asked(2, 0, "full", deepspeed=where), engine, on_cpu=True) for where in (on_nvme, in_memory))
        saved = memory.memory(1, 16).optimizer - kept.memory(1, 16).optimizer
        assert (saved, kept.nvme_bytes, memory.nvme_bytes) == (kept.nvme_bytes, 12 * (SMOLLM2.parameters // 2), 0), engine


def test_second_copies_of_the_weights_are_counted() -> None:
    second = DeepSpeedSpec.model_validate({"zero_optimization": {"zero_hpz_partition_size": 2}})
    with_it, without = (Load.of(LLAMA_8B, asked(8, deepspeed=given), "zero3", on_cpu=False).memory(1, 16) for given in (second, None))
    assert with_it.weights - without.weights == LLAMA_8B.parameters * 2 // 2


@pytest.mark.parametrize("setting", [{"offload_param": {"device": "cpu"}}, {"zero_hpz_partition_size": 2}])
def test_settings_of_zero3_choose_it(setting: dict[str, Any]) -> None:
    spec = asked(2, 0, deepspeed=DeepSpeedSpec.model_validate({"zero_optimization": setting}))
    choice = choose_engine(SMOLLM2, spec, longest=16, memory_bytes=None)
    assert (choice.engine, choice.why.partition(":")[0]) == ("zero3", f"{next(iter(setting))} is a setting of zero3")


def test_a_setting_that_is_off_asks_for_nothing() -> None:
    off = DeepSpeedSpec.model_validate({"zero_optimization": {"zero_quantized_weights": False}})
    assert choose_engine(SMOLLM2, asked(2, 0, deepspeed=off), longest=16, memory_bytes=None).engine == "zero2"


def test_what_zero_divides_is_less_with_more_workers_and_what_it_sends_is_not() -> None:
    one, two = (Load.of(SMOLLM2, asked(workers, 0, "full"), "zero2", on_cpu=True).memory(1, 16) for workers in (1, 2))
    assert two.optimizer * 2 == one.optimizer
    assert two.weights == one.weights
    assert one.gradients == two.gradients == 2 * 4 * SMOLLM2.parameters
    assert one.copies == two.copies == 3 * 4 * SMOLLM2.parameters, "rank 0 gathers the whole"
    gathered = Load.of(SMOLLM2, asked(2, 0, "full"), "zero3", on_cpu=True).memory(1, 16).weights
    assert gathered == 4 * SMOLLM2.parameters * 7 // 2, "its half, all gathered twice, and all as loaded"


def test_workers_share_what_the_run_leaves_of_a_node() -> None:
    usable = int(16 * GIB * USABLE_SHARE)
    assert worker_memory(16 * GIB, ResourceSpec()) == usable - RUN_BYTES
    assert worker_memory(16 * GIB, ResourceSpec(workers=4)) == (usable - RUN_BYTES) // 4
    assert worker_memory(16 * GIB, ResourceSpec(workers=4), together=2) == (usable - RUN_BYTES) // 2
    assert worker_memory(16 * GIB, ResourceSpec(workers=4, gpus_per_worker=1)) == usable, "a GPU is one worker's"
    assert worker_memory(GIB // 2, ResourceSpec()) == 0
    assert worker_memory(None, ResourceSpec()) is None


@pytest.mark.parametrize(
    ("sizes", "spec", "gib", "engine", "why"),
    [
        (SMOLLM2, asked(), 16, "torch", "one worker holds the whole base model"),
        (SMOLLM2, asked(4), 16, "torch", "their gradients are summed"),
        (SMOLLM2, asked(4), None, "torch", "their gradients are summed"),
        (LLAMA_8B, asked(8), 16, "zero3", "a worker can't hold it all: optimizer state, gradients and weights are divided over 8"),
        (LLAMA_8B, asked(8, kind="full"), 79, "zero2", "float32 masters"),
        (LLAMA_8B, asked(8, kind="full"), 39, "zero3", "float32 masters"),
        (LLAMA_8B, asked(4, gpus=0, kind="full"), 240, "torch", "summed"),
        (LLAMA_8B, asked(4, gpus=0, kind="full"), 200, "zero2", "can't hold it all"),
        (SMOLLM2, asked(2, deepspeed=DeepSpeedSpec()), 16, "zero2", "settings of DeepSpeed"),
        (SMOLLM2, asked(2, engine="zero1"), 1, "zero1", "what the job names"),
        (LLAMA_8B, asked(1), 8, "torch", "one worker"),
    ],
)
def test_the_engine_follows_from_what_a_worker_holds(sizes: Sizes, spec: TunesmithSpec, gib: int | None, engine: str, why: str) -> None:
    choice = choose_engine(sizes, spec, longest=1024, memory_bytes=None if gib is None else gib * GIB)
    assert choice.engine == engine, choice
    assert why in choice.why


@pytest.mark.parametrize(
    ("size", "config", "why"),
    [
        (1, {"num_attention_heads": 9}, ""),
        (3, {"num_attention_heads": 9}, ""),
        (2, {"num_attention_heads": 9}, "the base model's 9 attention heads can't be divided by that"),
        (2, {"num_attention_heads": 8, "sliding_window": 512}, "attention sees 512 tokens back, and the longest row has 600"),
        (2, {"num_attention_heads": 8, "sliding_window": 512, "use_sliding_window": False}, ""),
        (2, {"num_attention_heads": 8, "sliding_window": 600, "attention_chunk_size": None}, ""),
        (2, {"num_attention_heads": 8, "layer_types": ["full_attention", "linear_attention"]}, "layers of the kind linear_attention"),
        (2, {"num_attention_heads": 8, "layer_types": ["full_attention"]}, ""),
        (2, {"num_attention_heads": 8, "rope_scaling": {"type": "longrope", "long_factor": [1.0]}}, "rotary embedding (longrope)"),
        (2, {"num_attention_heads": 8, "rope_parameters": {"full_attention": {"rope_type": "dynamic"}}}, "rotary embedding (dynamic)"),
        (2, {"num_attention_heads": 8, "rope_scaling": {"rope_type": "llama3"}, "rope_theta": 5e5}, ""),
    ],
)
def test_which_base_models_workers_can_share_rows_of(size: int, config: dict[str, Any], why: str) -> None:
    told = unshareable(config, asked(workers=size, sequence_parallel=size), 600)
    assert why in told
    assert bool(why) == bool(told)


def test_workers_that_share_rows_hold_a_part_of_their_activations() -> None:
    alone, shared = (Load.of(LLAMA_8B, asked(workers=4, sequence_parallel=n), "zero2", on_cpu=False) for n in (1, 4))
    whole, part = alone.memory(1, 8192), shared.memory(1, 8192)
    assert part.activations == whole.activations // 4
    assert part.weights == whole.weights
    budget = whole.total - part.activations
    assert alone.micro_batch(longest=8192, rows=8, memory_bytes=budget) == 1 < shared.micro_batch(longest=8192, rows=8, memory_bytes=budget)
