"""What a worker needs, from sizes alone; the sums are held against peaks measured once on the real SmolLM2 (docs/estimate.md)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sizes import SMOLLM2
from tests.tiny_model import write_tiny_model
from trainers.model_files import measure
from trainers.plan import CPU_TOKENS, USABLE_SHARE, Adapters, Load, Shape
from trainers.spec import AdapterSpec

GIB = 2**30
MEASURED = [
    # rows, longest, peak in MiB of a whole run in a plain process on a processor, LoRA r 16 on all linear modules
    (8, 64, 1656),
    (16, 128, 3148),
    (4, 512, 2634),
    (2, 1024, 2849),
]


def cpu(adapter: AdapterSpec | None = None) -> Load:
    return Load.of(SMOLLM2, adapter or AdapterSpec(), on_cpu=True)


@pytest.mark.parametrize(("rows", "longest", "peak"), MEASURED)
def test_the_estimate_lies_above_the_measured_peak_and_not_far(rows: int, longest: int, peak: int) -> None:
    assert 1.0 < cpu().memory(rows, longest).total / (peak * 2**20) < 1.5


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
    load = replace(Load.of(SMOLLM2, AdapterSpec(dropout=0.1 if dropout else 0.0), on_cpu=on_cpu), parameters=parameters)
    chosen = load.micro_batch(longest=longest, rows=rows, memory_bytes=gib * GIB)
    assert 1 <= chosen <= rows
    # Above the activations the head grows too, up to its chunk: that is what the share that is not usable is for.
    assert chosen == 1 or load.memory(chosen, longest).total <= gib * GIB
    assert chosen == 1 or load.memory(chosen, longest).activations <= gib * GIB * USABLE_SHARE


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
    assert Load.of(capped, AdapterSpec(), on_cpu=True).memory(4, 512).head > 4 * 512 * 49152 * 12
    assert cpu().memory(4, 512).head < 150 * 2**20
