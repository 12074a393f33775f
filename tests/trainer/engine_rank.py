"""One rank of a process group that executes a list of runs, one after the other: `python -m tests.trainer.engine_rank PLAN ANSWER`.

PLAN is a JSON list of [spec, stop_at, resumes]; rank 0 writes what each run told to ANSWER. Starting processes is what takes
time, so all runs of a world size share them. Warnings are errors here as in pytest.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

warnings.simplefilter("error")
warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)  # as in pyproject.toml

from service import objects  # noqa: E402  (after the warnings are errors)
from tests.small_run import Recorder  # noqa: E402
from trainers import deepspeed_engine, mapped, plan  # noqa: E402
from trainers.deepspeed_engine import DeepSpeedEngine, owned_parts  # noqa: E402
from trainers.failure import Stopped, TrainingFailed  # noqa: E402
from trainers.model import TrainingModel  # noqa: E402
from trainers.run import Place, execute  # noqa: E402
from trainers.spec import AdapterSpec, RunSpec  # noqa: E402
from trainers.storage import open_storage  # noqa: E402
from trainers.worker import node_nvme  # noqa: E402

CPU = torch.device("cpu")


def without_gpu() -> list[str]:
    """What needs a GPU's kernels goes its way here too, on a model as small as this. Gives what is said where there are none."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    deepspeed_engine._import_quietly()
    from tests import cpu_quantizer

    said: list[str] = []
    try:
        deepspeed_engine._require_kernels()
    except TrainingFailed as failed:
        said = [failed.code, failed.cause, failed.message]
    cpu_quantizer.install()
    deepspeed_engine.QUANTIZED_FROM = 1000
    return said


def run(spec: RunSpec, place: Place, stop_at: dict[int, int], resumes: bool) -> dict[str, Any]:
    """Execute the spec; with `resumes` it takes up what an earlier run of the job left."""
    storage = open_storage(spec.storage_url)
    if resumes:
        spec = spec.model_copy(update={"resume_from": objects.checkpoint_prefixes(storage, spec.job_id, spec.epoch)})
    plan.CPU_TOKENS = (2 + place.rank) * spec.dataset.longest  # several micro-batches a step, and nodes that are not alike
    told, ended = Recorder(stop_at if place.rank == 0 else None), "finished"
    try:
        execute(spec, storage, told, place)
    except Stopped:
        ended = "stopped"
    except TrainingFailed as failure:
        ended = failure.code
    if place.world_size > 1:
        dist.barrier()
    mapped_files = Path("/proc/self/maps").read_text().count(f"{place.nvme}/")
    started = told.of("started")[0]
    return {
        "ended": ended,
        "engine": started.engine,
        "trainable": started.trainable_parameters,
        "resumed": started.resumed_step,
        "mapped files": mapped_files,
        "losses": [step.train_loss for step in told.of("step")],
        "tokens": [step.tokens for step in told.of("step")],
        "norms": [step.grad_norm for step in told.of("step")],
        "valid": [evaluated.valid_loss for evaluated in told.of("evaluated")],
    }


def divided(model_dir: Path, place: Place) -> dict[str, list[int]]:
    """For each stage: numbers of the whole model, and those of them whose optimizer state and whose weights this rank has."""
    found = {}
    for stage in (1, 2, 3):
        model = TrainingModel.load(model_dir, AdapterSpec(type="full"), seed=1, device=CPU, engine=f"zero{stage}")  # type: ignore[arg-type]
        whole = sum(p.numel() for p in model.trainable_parameters())
        settings: dict[str, Any] = {"settings": None, "weight_decay": 0.0, "max_grad_norm": 1.0, "device": CPU}
        engine = DeepSpeedEngine(model, stage=stage, rank=place.rank, world_size=place.world_size, **settings)
        weights = sum(p.ds_tensor.numel() if stage == 3 else p.numel() for p in model.trainable_parameters())
        found[f"zero{stage}"] = [whole, sum(part.numel() for part in owned_parts(engine.zero.optimizer)), weights]
        engine.close()
    return found


def main(plan_file: Path, answer: Path, cache: Path, model_dir: Path, world_size: int) -> None:
    """All runs of the plan."""
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo")
    place = Place(dist.get_rank() if world_size > 1 else 0, world_size, CPU, cache, nvme=node_nvme())
    mapped.PIECE = 1 << 12  # several to a part
    told: dict[str, Any] = {"without kernels": without_gpu()}
    runs = json.loads(plan_file.read_text())
    for spec, stop_at, resumes in runs:
        parsed = RunSpec.model_validate_json(json.dumps(spec))
        told[f"{parsed.job_id}-{parsed.epoch}"] = run(parsed, place, {int(at): what for at, what in stop_at.items()}, resumes)
    told["divided"] = divided(model_dir, place)
    dist.destroy_process_group()
    if place.rank == 0:
        answer.write_text(json.dumps(told))


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:5]), int(sys.argv[5]))  # type: ignore[misc]
    sys.stdout.flush()
    # As Ray ends a worker: threads of gloo's that are still at it when the interpreter goes end the process with an abort.
    os._exit(0)
