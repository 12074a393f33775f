"""ZeRO 1, 2 and 3 over gloo, with one worker and with two: the curve of plain torch, exact resumption, whole models published.

The loss of each step agrees with plain torch's on the same number of workers within TOLERANCE (relative, float32): the
engines add up in other orders and do nothing else differently.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from protos.tunesmith.v1 import runs_pb2 as pb
from tests.on_disk import directory_on_disk
from tests.small_run import Recorder, SmallRun, small_run
from trainers import manifest
from trainers.adapters import lora_config
from trainers.failure import TrainingFailed
from trainers.spec import AdapterSpec, DeepSpeedSpec, EngineName, ResourceSpec, RunSpec

TOLERANCE = 1e-5
ADAPTERS = {"lora": AdapterSpec(r=4, alpha=8), "full": AdapterSpec(type="full")}
ZERO: tuple[EngineName, ...] = ("zero1", "zero2", "zero3")


def zero(settings: dict[str, Any]) -> DeepSpeedSpec:
    return DeepSpeedSpec.model_validate({"zero_optimization": settings})


SUB_GROUPS: dict[str, dict[str, int]] = {"zero2": {}, "zero3": {"sub_group_size": 10_000}}
OFFLOADED, ON_NVME = (
    {engine: zero({"offload_optimizer": {"device": device}} | settings) for engine, settings in SUB_GROUPS.items()}
    for device in ("cpu", "nvme")
)
PLUS_PLUS = {  # no weight stays whole, so that all go the way that is tried
    "second-copies": lambda workers: zero({"zero_hpz_partition_size": workers, "stage3_param_persistence_threshold": 0}),
    "quantized": lambda _: zero({"zero_quantized_nontrainable_weights": True, "stage3_param_persistence_threshold": 0}),
}
THRIFTY: tuple[tuple[str, EngineName], ...] = (("lora", "torch"), ("lora", "zero3"), ("full", "zero3"))
STEPS, STOPPED_AT = 4, 2
Told = dict[str, Any]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory.mktemp("engines"), rows=16)


@pytest.fixture(scope="module")
def told(small: SmallRun) -> dict[int, Told]:
    """What all runs told, by the number of workers; both groups of processes work at the same time."""
    with directory_on_disk() as nvme:
        groups = {workers: start(small, workers, plan(small, workers), nvme) for workers in (1, 2)}
        try:
            found = {workers: finish(small, workers, ranks) for workers, ranks in groups.items()}
        finally:
            for rank in (rank for ranks in groups.values() for rank in ranks):
                rank.kill()
                rank.wait()
        assert list(nvme.iterdir()) == [], "files of optimizer state have no names"
        return found


def spec(small: SmallRun, job: str, adapter: str, engine: EngineName, workers: int, epoch: int = 1, **changes: Any) -> RunSpec:
    resources = ResourceSpec(workers=workers, gpus_per_worker=int(job == "quantized"), deepspeed=changes.pop("deepspeed", None))
    made = small.spec(epoch, f"ftjob-{job}-{workers}", resolved={"engine": engine} | changes.pop("resolved", {}), **changes)
    sections = {"adapter": ADAPTERS[adapter], "resources": resources}
    return made.model_copy(update={"tunesmith": made.tunesmith.model_copy(update=sections)})


def plan(small: SmallRun, workers: int) -> list[Any]:
    """[spec, directives by step, whether it resumes] of each run."""
    runs: list[tuple[RunSpec, dict[int, int], bool]] = []
    for adapter in ADAPTERS:
        for engine in ("torch", *ZERO):
            runs.append((spec(small, f"whole-{adapter}-{engine}", adapter, engine, workers), {}, False))
        for engine in ZERO:
            cut = f"cut-{adapter}-{engine}"
            runs.append((spec(small, cut, adapter, engine, workers), {STOPPED_AT: pb.DIRECTIVE_CHECKPOINT_AND_STOP}, False))
            runs.append((spec(small, cut, adapter, engine, workers, epoch=2), {}, True))
    for engine in ZERO[1:]:
        runs.append((spec(small, f"nan-{engine}", "full", engine, workers, resolved={"learning_rate": 1e30}), {}, False))
        runs.append((spec(small, f"offload-{engine}", "full", engine, workers, deepspeed=OFFLOADED[engine]), {}, False))
        runs.append((spec(small, f"nvme-{engine}", "full", engine, workers, deepspeed=ON_NVME[engine]), {}, False))
    for adapter, engine in THRIFTY:
        checkpointing = {"activation_checkpointing": True}
        runs.append((spec(small, f"thrifty-{adapter}-{engine}", adapter, engine, workers, training=checkpointing), {}, False))
    cut, stop = "cut-nvme-zero3", {STOPPED_AT: pb.DIRECTIVE_CHECKPOINT_AND_STOP}
    runs.append((spec(small, cut, "full", "zero3", workers, deepspeed=ON_NVME["zero3"]), stop, False))
    runs.append((spec(small, cut, "full", "zero3", workers, epoch=2, deepspeed=ON_NVME["zero3"]), {}, True))
    for kind in ("second-copies", "quantized"):
        runs.append((spec(small, kind, "lora", "zero3", workers, deepspeed=PLUS_PLUS[kind](workers)), {}, False))
    # Changes its engine in the middle: what zero3 left is gone on from by zero1.
    runs.append((spec(small, "moved", "full", "zero3", workers), {STOPPED_AT: pb.DIRECTIVE_CHECKPOINT_AND_STOP}, False))
    runs.append((spec(small, "moved", "full", "zero1", workers, epoch=2), {}, True))
    return [[made.model_dump(mode="json"), stop_at, resumes] for made, stop_at, resumes in runs]


def start(small: SmallRun, workers: int, runs: list[Any], nvme: Path | None = None) -> list[subprocess.Popen[bytes]]:
    plan_file, answer = small.directory / f"plan-{workers}.json", small.directory / f"answer-{workers}.json"
    plan_file.write_text(json.dumps(runs))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(workers), "OMP_NUM_THREADS": "1"}
    env |= {"TUNESMITH_NVME_DIR": str(nvme)} if nvme else {}
    command = [sys.executable, "-m", "tests.trainer.engine_rank", plan_file, answer, small.directory / "cache", small.directory / "tiny"]
    return [started([*command, str(workers)], env | {"RANK": str(rank)}, output(small, workers, rank)) for rank in range(workers)]


def started(command: list[Any], env: dict[str, str], to: Path) -> subprocess.Popen[bytes]:
    with to.open("wb") as out, to.with_suffix(".err").open("wb") as err:
        return subprocess.Popen(command, env=env, stdout=out, stderr=err)


def output(small: SmallRun, workers: int, rank: int) -> Path:
    return small.directory / f"rank-{rank}-of-{workers}.out"


def finish(small: SmallRun, workers: int, ranks: list[subprocess.Popen[bytes]]) -> Told:
    for number, rank in enumerate(ranks):
        said = output(small, workers, number)
        assert rank.wait(timeout=280) == 0, said.with_suffix(".err").read_text()[-5000:]
        assert said.read_text() == "", "stdout is nobody's to write to"
    told: Told = json.loads((small.directory / f"answer-{workers}.json").read_text())
    return told


def published(small: SmallRun, job: str, epoch: int = 1) -> dict[str, str]:
    """sha256 of each published file but those that name the job."""
    files = manifest.read(small.storage, f"models/ftjob-{job}/{epoch}").files
    return {entry.name: entry.sha256 for entry in files if not entry.name.endswith(("RUN.json", "README.md"))}


def fetched(small: SmallRun, job: str, to: Path) -> Path:
    manifest.fetch(small.storage, f"models/ftjob-{job}/1", manifest.read(small.storage, f"models/ftjob-{job}/1").files, to)
    return to


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("engine", ZERO)
def test_the_curve_is_plain_torchs(told: dict[int, Told], engine: str, adapter: str, workers: int) -> None:
    found, plain = (told[workers][f"ftjob-whole-{adapter}-{name}-{workers}-1"] for name in (engine, "torch"))
    assert (found["ended"], found["engine"], len(found["losses"])) == ("finished", engine, STEPS)
    assert found["losses"] == pytest.approx(plain["losses"], rel=TOLERANCE)
    assert found["norms"] == pytest.approx(plain["norms"], rel=100 * TOLERANCE)
    assert found["valid"] == pytest.approx(plain["valid"], rel=TOLERANCE)
    assert found["trainable"] == plain["trainable"]
    assert plain["losses"][-1] < plain["losses"][0]


def test_two_workers_have_the_curve_of_one(told: dict[int, Told]) -> None:
    for adapter in ADAPTERS:
        one, two = (told[workers][f"ftjob-whole-{adapter}-torch-{workers}-1"] for workers in (1, 2))
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
        assert two["valid"] == pytest.approx(one["valid"], rel=1e-4)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("engine", ZERO)
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(
    small: SmallRun, told: dict[int, Told], engine: str, adapter: str, workers: int
) -> None:
    whole, cut = f"whole-{adapter}-{engine}-{workers}", f"cut-{adapter}-{engine}-{workers}"
    first, second = (told[workers][f"ftjob-{cut}-{epoch}"] for epoch in (1, 2))
    assert (first["ended"], second["ended"], second["resumed"]) == ("stopped", "finished", STOPPED_AT)
    assert first["losses"] + second["losses"] == told[workers][f"ftjob-{whole}-1"]["losses"]
    assert published(small, cut, 2) == published(small, whole)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("engine", ["torch", *ZERO])
def test_an_adapter_is_whole_and_loads_in_plain_peft(
    small: SmallRun, told: dict[int, Told], engine: str, workers: int, tmp_path: Path
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(small.directory / "tiny")
    wanted = get_peft_model_state_dict(get_peft_model(plain, lora_config(ADAPTERS["lora"])), save_embedding_layers=False)
    directory = fetched(small, f"whole-lora-{engine}-{workers}", tmp_path) / "adapter"
    tensors = load_file(directory / "adapter_model.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items()} == {name: tensor.shape for name, tensor in wanted.items()}
    base = AutoModelForCausalLM.from_pretrained(small.directory / "tiny")
    with torch.no_grad():
        before = base(torch.arange(5).unsqueeze(0)).logits.clone()
        after = PeftModel.from_pretrained(base, directory).eval()(torch.arange(5).unsqueeze(0)).logits
    assert not torch.allclose(before, after, atol=1e-3)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("engine", ["torch", *ZERO])
def test_a_whole_model_loads_in_plain_transformers(
    small: SmallRun, told: dict[int, Told], engine: str, workers: int, tmp_path: Path
) -> None:
    directory = fetched(small, f"whole-full-{engine}-{workers}", tmp_path) / "model"
    needed = {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"}
    assert needed <= {path.name for path in directory.iterdir()}
    base, tuned = (AutoModelForCausalLM.from_pretrained(where) for where in (small.directory / "tiny", directory))
    before = dict(base.named_parameters())
    assert before.keys() == dict(tuned.named_parameters()).keys()
    assert all(not torch.equal(before[name], tensor) for name, tensor in tuned.named_parameters()), "the head and the norms too"
    record = json.loads((tmp_path / "RUN.json").read_text())
    assert record["model_sha256"] == {"model.safetensors": manifest.sha256_file(directory / "model.safetensors")}
    assert "library_name: transformers" in (directory / "README.md").read_text()


@pytest.mark.parametrize("workers", [1, 2])
def test_state_is_divided_as_the_stage_says(told: dict[int, Told], workers: int) -> None:
    found: dict[str, list[int]] = told[workers]["divided"]
    for stage, (whole, optimizer, weights) in found.items():
        assert optimizer == pytest.approx(whole / workers, rel=0.01), stage
        assert weights == pytest.approx(whole / (workers if stage == "zero3" else 1), rel=0.01), stage


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("engine", ZERO[1:])
def test_a_gradient_that_is_no_number_updates_nothing(small: SmallRun, told: dict[int, Told], engine: str, workers: int) -> None:
    assert told[workers][f"ftjob-nan-{engine}-{workers}-1"]["ended"] == "diverged"
    with pytest.raises(manifest.ManifestBroken):
        manifest.read(small.storage, f"models/ftjob-nan-{engine}-{workers}/1")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("engine", ZERO[1:])
def test_optimizer_state_in_the_hosts_memory_changes_nothing(told: dict[int, Told], engine: str, workers: int) -> None:
    found, plain = (told[workers][f"ftjob-{job}-{workers}-1"] for job in (f"offload-{engine}", f"whole-full-{engine}"))
    assert found["losses"] == pytest.approx(plain["losses"], rel=TOLERANCE)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("engine", ZERO[1:])
def test_optimizer_state_on_nvme_changes_nothing(small: SmallRun, told: dict[int, Told], engine: str, workers: int) -> None:
    found, plain = (told[workers][f"ftjob-{job}-{workers}-1"] for job in (f"nvme-{engine}", "whole-full-torch"))
    assert found["losses"] == pytest.approx(plain["losses"], rel=TOLERANCE)
    assert found["norms"] == pytest.approx(plain["norms"], rel=100 * TOLERANCE)
    in_memory, in_files = (published(small, f"{where}-{engine}-{workers}") for where in ("offload", "nvme"))
    assert in_files == in_memory
    assert found["mapped files"] == 0, "the disk is free again before the process ends"


@pytest.mark.parametrize("workers", [1, 2])
def test_second_copies_of_the_weights_change_nothing(told: dict[int, Told], workers: int) -> None:
    found, plain = (told[workers][f"ftjob-{job}-{workers}-1"] for job in ("second-copies", "whole-lora-torch"))
    assert found["ended"] == "finished"
    assert found["losses"] == pytest.approx(plain["losses"], rel=TOLERANCE)


@pytest.mark.parametrize("workers", [1, 2])
def test_frozen_weights_kept_as_int8_round_the_curve_and_no_more(told: dict[int, Told], workers: int) -> None:
    found, plain = (told[workers][f"ftjob-{job}-{workers}-1"] for job in ("quantized", "whole-lora-torch"))
    assert found["ended"] == "finished", "and what it published was proven"
    assert found["losses"] == pytest.approx(plain["losses"], rel=1e-3)
    assert found["losses"] != pytest.approx(plain["losses"], rel=TOLERANCE), "they were rounded"


def test_a_node_without_kernels_for_quantization_is_told(told: dict[int, Told]) -> None:
    code, cause, message = told[1]["without kernels"]
    assert (code, cause) == ("kernels_missing", "config")
    assert "quantization can't be built here" in message


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_with_state_on_nvme_goes_on_to_the_same_bytes(small: SmallRun, told: dict[int, Told], workers: int) -> None:
    first, second = (told[workers][f"ftjob-cut-nvme-zero3-{workers}-{epoch}"] for epoch in (1, 2))
    assert (first["ended"], second["ended"], second["resumed"]) == ("stopped", "finished", STOPPED_AT)
    assert first["losses"] + second["losses"] == told[workers][f"ftjob-nvme-zero3-{workers}-1"]["losses"]
    assert published(small, f"cut-nvme-zero3-{workers}", 2) == published(small, f"nvme-zero3-{workers}")


def test_a_node_without_a_directory_for_it_is_told_before_anything_is_loaded(small: SmallRun) -> None:
    told = Recorder()
    with pytest.raises(TrainingFailed, match="TUNESMITH_NVME_DIR is not set") as failure:
        small.execute(spec(small, "nowhere", "full", "zero2", 1, deepspeed=ON_NVME["zero2"]), told)
    assert (failure.value.code, failure.value.cause, told.reports) == ("nvme_unusable", "config", [])


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("adapter", "engine"), THRIFTY)
def test_activations_computed_twice_change_nothing(told: dict[int, Told], adapter: str, engine: str, workers: int) -> None:
    found, plain = (told[workers][f"ftjob-{job}-{adapter}-{engine}-{workers}-1"] for job in ("thrifty", "whole"))
    assert found["ended"] == "finished"
    assert found["losses"] == pytest.approx(plain["losses"], rel=TOLERANCE)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_checkpoint_knows_no_engine(told: dict[int, Told], workers: int) -> None:
    first, second = (told[workers][f"ftjob-moved-{workers}-{epoch}"] for epoch in (1, 2))
    assert (first["engine"], second["engine"], second["resumed"]) == ("zero3", "zero1", STOPPED_AT)
    whole = told[workers][f"ftjob-whole-full-torch-{workers}-1"]["losses"]
    assert first["losses"] + second["losses"] == pytest.approx(whole, rel=TOLERANCE)
