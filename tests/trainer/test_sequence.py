"""Sequence parallelism over gloo, four ranks: rows that ranks share give the curve of one rank that has them alone.

Two of the ranks share a row and two replicas take different rows, or all four share one, which is more than the model has keys.
Models that can't be shared are refused by every rank when they are loaded: `tell_refusals`, on two ranks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from protos.tunesmith.v1 import runs_pb2 as pb
from service.embedded import free_port
from tests.small_run import SmallRun, small_run
from tests.trainer.test_deepspeed import ADAPTERS, STEPS, STOPPED_AT, TOLERANCE, Told, finish, published, start
from trainers.data import Layout
from trainers.failure import TrainingFailed
from trainers.model import TrainingModel
from trainers.sequence import ATTENTION, Exchange
from trainers.spec import EngineName, ResourceSpec, RunSpec

RANKS = 4
SHARED: tuple[tuple[str, EngineName, int, bool], ...] = (
    # what is trained, engine, ranks that share a row, activation checkpointing
    ("lora", "torch", 2, False),
    ("lora", "zero3", 4, False),
    ("full", "zero2", 2, True),
    ("full", "torch", 4, False),
)


def spec(small: SmallRun, name: str, adapter: str, engine: EngineName, shared: int, **changes: Any) -> RunSpec:
    workers = RANKS if shared > 1 else 1
    checkpointing = {"activation_checkpointing": changes.pop("checkpointing", False)}
    made = small.spec(changes.pop("epoch", 1), f"ftjob-{name}", resolved={"engine": engine}, training=checkpointing)
    sections = {"adapter": ADAPTERS[adapter], "resources": ResourceSpec(workers=workers, sequence_parallel=shared)}
    return made.model_copy(update={"tunesmith": made.tunesmith.model_copy(update=sections)})


def planned(made: RunSpec, stop_at: dict[int, int] | None = None, *, resumes: bool = False) -> list[Any]:
    return [made.model_dump(mode="json"), stop_at or {}, resumes]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory.mktemp("sequence"), rows=16)


@pytest.fixture(scope="module")
def told(small: SmallRun) -> Told:
    """What all runs told: alone, by ranks that share rows, and one of these stopped and gone on with."""
    alone = [spec(small, f"alone-{adapter}", adapter, "torch", 1) for adapter in ADAPTERS]
    shared = [spec(small, f"{a}-{engine}-{n}", a, engine, n, checkpointing=thrifty) for a, engine, n, thrifty in SHARED]
    cut, rest = (spec(small, "cut", "lora", "torch", 2, epoch=epoch) for epoch in (1, 2))
    stop = {STOPPED_AT: pb.DIRECTIVE_CHECKPOINT_AND_STOP}
    plans = {1: [planned(made) for made in alone], RANKS: [*map(planned, shared), planned(cut, stop), planned(rest, resumes=True)]}
    groups = {workers: start(small, workers, plan) for workers, plan in plans.items()}
    try:
        return {name: run for workers, ranks in groups.items() for name, run in finish(small, workers, ranks).items()}
    finally:
        for rank in (rank for ranks in groups.values() for rank in ranks):
            rank.kill()
            rank.wait()


@pytest.mark.parametrize(("adapter", "engine", "ranks", "thrifty"), SHARED)
def test_shared_rows_have_the_curve_of_rows_that_one_rank_has(told: Told, adapter: str, engine: str, ranks: int, thrifty: bool) -> None:
    found, alone = told[f"ftjob-{adapter}-{engine}-{ranks}-1"], told[f"ftjob-alone-{adapter}-1"]
    assert (found["ended"], len(found["losses"])) == ("finished", STEPS)
    assert found["losses"] == pytest.approx(alone["losses"], rel=10 * TOLERANCE)
    assert found["norms"] == pytest.approx(alone["norms"], rel=100 * TOLERANCE)
    assert found["valid"] == pytest.approx(alone["valid"], rel=10 * TOLERANCE)
    assert alone["losses"][-1] < alone["losses"][0]


def test_each_token_is_counted_once(told: Told) -> None:
    for adapter, engine, ranks, _ in SHARED:
        assert told[f"ftjob-{adapter}-{engine}-{ranks}-1"]["tokens"] == told[f"ftjob-alone-{adapter}-1"]["tokens"]


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(small: SmallRun, told: Told) -> None:
    first, second = told["ftjob-cut-1"], told["ftjob-cut-2"]
    assert (first["ended"], second["ended"], second["resumed"]) == ("stopped", "finished", STOPPED_AT)
    assert first["losses"] + second["losses"] == told["ftjob-lora-torch-2-1"]["losses"]
    assert published(small, "cut", 2) == published(small, "lora-torch-2")


def test_models_that_ranks_cannot_share_are_refused_by_each_of_them() -> None:
    env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from tests.trainer.test_sequence import tell_refusals; tell_refusals()"]
    ranks = [subprocess.Popen(command, env=env | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True) for rank in range(2)]
    told = [json.loads(rank.communicate(timeout=200)[0].splitlines()[-1]) for rank in ranks]
    for one in told:
        assert one["plain"] == ""
        assert one["shifted"].startswith("sequence_not_shared: ")
        assert "looks at several tokens at once" in one["shifted"]
        assert "its attention has softcap" in one["capped"]


def tell_refusals() -> None:
    """One rank: what is said of each model when it is loaded, as JSON."""
    dist.init_process_group("gloo")
    exchange, told = Exchange(Layout(dist.get_rank(), 2, 2), torch.device("cpu")), dict[str, str]()
    for name, network in (("plain", _llama()), ("shifted", _shifted(_llama())), ("capped", _gemma())):
        try:
            TrainingModel(network, torch.device("cpu"), torch.float32, by_modules=True, exchange=exchange)
            told[name] = ""
        except TrainingFailed as failed:
            told[name] = str(failed)
    dist.barrier()
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()
    os._exit(0)


SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
SIZES |= {"initializer_range": 0.3}  # so that each part of the model matters


def _llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, attn_implementation=ATTENTION))


def _shifted(network: LlamaForCausalLM) -> LlamaForCausalLM:
    """As a causal convolution does: each token sees the one before it, beside attention."""

    def shift(_: object, __: object, out: Tensor) -> Tensor:
        return out + torch.nn.functional.pad(out, (0, 0, 1, 0))[:, :-1]

    network.model.layers[0].mlp.register_forward_hook(shift)
    return network


def _gemma() -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8, attn_implementation=ATTENTION))
