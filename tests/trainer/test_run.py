"""A whole run in one process: what it tells, what it leaves, and that being stopped changes no byte of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from protos.tunesmith.v1 import runs_pb2 as pb
from service import objects
from tests.small_run import Recorder, SmallRun, small_run
from trainers import manifest
from trainers.failure import Stopped
from trainers.spec import RunSpec


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def undisturbed(small: SmallRun) -> tuple[RunSpec, Recorder]:
    spec = small.spec(job="ftjob-undisturbed")
    return spec, small.execute(spec)


def test_a_run_tells_its_story_in_order(small: SmallRun, undisturbed: tuple[RunSpec, Recorder]) -> None:
    _, told = undisturbed
    kinds = [report.WhichOneof("body") for report in told.reports]
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    assert [step.step for step in told.of("step")] == list(range(1, 11))
    assert [score.step for score in told.of("evaluated")] == [4, 8, 10]
    assert [saved.step for saved in told.of("checkpoint")] == [4, 8, 10]
    first, last = told.of("step")[0], told.of("step")[-1]
    assert last.train_loss < first.train_loss
    assert (last.tokens, last.trained_tokens) == (2 * small.training.tokens, 2 * small.training.trained_tokens)
    finished = told.of("finished")[0]
    assert finished.final_valid_loss == told.of("evaluated")[-1].valid_loss
    assert last.learning_rate < first.learning_rate or first.learning_rate < 5e-3


def test_what_is_published_loads_in_plain_peft(small: SmallRun, undisturbed: tuple[RunSpec, Recorder], tmp_path: Path) -> None:
    spec, _ = undisturbed
    stored = manifest.read(small.storage, spec.model_prefix)
    names = {entry.name for entry in stored.files}
    assert {
        "RUN.json",
        "metrics.csv",
        "adapter/README.md",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "adapter/chat_template.jinja",
        "adapter/tokenizer.json",
        "adapter/tokenizer_config.json",
    } == names
    manifest.fetch(small.storage, spec.model_prefix, stored.files, tmp_path)
    base = AutoModelForCausalLM.from_pretrained(small.directory / "tiny")
    with torch.no_grad():
        plain = base(torch.arange(5).unsqueeze(0)).logits.clone()
        tuned = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(torch.arange(5).unsqueeze(0)).logits
    assert not torch.allclose(plain, tuned, atol=1e-3)
    record = json.loads((tmp_path / "RUN.json").read_text())
    assert record["adapter_sha256"] == small.adapter_sha256(spec)
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "license: mit" in card
    assert small.training.sha256 in card


def test_the_same_run_gives_the_same_bytes(small: SmallRun, undisturbed: tuple[RunSpec, Recorder]) -> None:
    again = small.spec(job="ftjob-again")
    told = small.execute(again)
    assert small.adapter_sha256(again) == small.adapter_sha256(undisturbed[0])
    assert [s.train_loss for s in told.of("step")] == [s.train_loss for s in undisturbed[1].of("step")]


def test_only_complete_checkpoints_are_kept(small: SmallRun, undisturbed: tuple[RunSpec, Recorder]) -> None:
    spec, _ = undisturbed
    assert objects.checkpoint_prefixes(small.storage, spec.job_id, 2) == [f"{spec.run_prefix}/checkpoints/step-{n}" for n in (10, 8)]


@pytest.mark.parametrize("stop_after", [1, 4, 6, 9])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(small: SmallRun, undisturbed: tuple[RunSpec, Recorder], stop_after: int) -> None:
    job = f"ftjob-stop{stop_after}"
    with pytest.raises(Stopped):
        small.execute(small.spec(job=job), Recorder({stop_after: pb.DIRECTIVE_STOP}))
    known = objects.checkpoint_prefixes(small.storage, job, 2)
    second = small.spec(job=job, epoch=2, resume_from=known)
    told = small.execute(second)
    assert told.of("started")[0].resumed_step == (stop_after - 1) // 4 * 4
    assert small.adapter_sha256(second) == small.adapter_sha256(undisturbed[0])
    assert told.of("step")[-1].tokens == 2 * small.training.tokens


@pytest.mark.parametrize("at", [1, 4, 7, 10], ids=["first", "evaluation", "between", "last"])
def test_a_run_that_was_paused_loses_no_step_and_no_byte(small: SmallRun, undisturbed: tuple[RunSpec, Recorder], at: int) -> None:
    job = f"ftjob-pause{at}"
    first = PausedRecorder({at: pb.DIRECTIVE_CHECKPOINT_AND_STOP})
    with pytest.raises(Stopped):
        small.execute(small.spec(job=job), first)
    assert [saved.step for saved in first.of("checkpoint")][-1] == first.delivered_at == at
    second = small.spec(job=job, epoch=2, resume_from=objects.checkpoint_prefixes(small.storage, job, 2))
    told = small.execute(second)
    assert told.of("started")[0].resumed_step == at
    assert [s.step for s in first.of("step") + told.of("step")] == list(range(1, 11))
    assert [e.step for e in first.of("evaluated") + told.of("evaluated")] == [4, 8, 10]
    assert small.adapter_sha256(second) == small.adapter_sha256(undisturbed[0])
    metrics = [manifest.read(small.storage, spec.model_prefix).sha256_of("metrics.csv") for spec in (second, undisturbed[0])]
    assert metrics[0] == metrics[1]


class PausedRecorder(Recorder):
    """Notes what had been told when the run waited for the gateway to have it all."""

    delivered_at = 0

    def deliver(self) -> None:
        self.delivered_at = self.of("checkpoint")[-1].step


def test_a_checkpoint_of_other_settings_is_not_continued(small: SmallRun, undisturbed: tuple[RunSpec, Recorder]) -> None:
    known = objects.checkpoint_prefixes(small.storage, undisturbed[0].job_id, 2)
    other = small.spec(job="ftjob-undisturbed", epoch=2, seed=8, resume_from=known)
    told = small.execute(other, Recorder())
    assert told.of("started")[0].resumed_step == 0
    assert small.adapter_sha256(other) != small.adapter_sha256(undisturbed[0])


def test_a_run_that_was_through_is_only_published_again(small: SmallRun, undisturbed: tuple[RunSpec, Recorder]) -> None:
    known = objects.checkpoint_prefixes(small.storage, undisturbed[0].job_id, 2)
    second = small.spec(job="ftjob-undisturbed", epoch=3, resume_from=known)
    told = small.execute(second)
    assert told.of("step") == []
    assert told.of("finished")[0].last_step == 10
    assert small.adapter_sha256(second) == small.adapter_sha256(undisturbed[0])


def test_early_stopping_ends_the_run_and_its_last_checkpoint_is_the_model(small: SmallRun) -> None:
    rules = {"every_steps": 1, "early_stopping": {"patience": 2, "min_delta": 100.0}}
    spec = small.spec(job="ftjob-early", evaluation=rules)
    told = small.execute(spec)
    finished = told.of("finished")[0]
    assert finished.stopped_early
    assert finished.last_step == 3
    assert told.of("checkpoint")[-1].step == 3


def test_micro_batches_change_nothing_but_rounding(small: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = small.execute(small.spec(job="ftjob-whole", adapter={"dropout": 0.0}))
    monkeypatch.setattr("trainers.plan.CPU_TOKENS", 2 * small.training.longest)
    cut = small.execute(small.spec(job="ftjob-cut", adapter={"dropout": 0.0}))
    assert [s.train_loss for s in cut.of("step")] != [s.train_loss for s in whole.of("step")], "nothing was cut"
    assert [s.train_loss for s in cut.of("step")] == pytest.approx([s.train_loss for s in whole.of("step")], rel=1e-4)
    assert [s.tokens for s in cut.of("step")] == [s.tokens for s in whole.of("step")]
