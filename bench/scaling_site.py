"""Where the runs of `scaling` take place: random models and rows in a storage of their own, and processes that train on them.

A run's ranks are forked from a process that has imported everything and computed nothing, so that each begins alike and
its memory can be told; beside GPUs, which a fork cannot share, they begin bare.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bench.random_rows import random_rows
from bench.scaling_rank import Order, work
from service.embedded import free_port
from tests.tiny_model import write_tiny_model
from trainers import manifest
from trainers.model_files import Sizes, measure
from trainers.spec import BaseModelRef, DatasetRef, EngineName, Resolved, RunSpec, TunesmithSpec
from trainers.storage import open_storage

VOCABULARY = 256
WARM_UP = 2
"""Steps that do not count: ZeRO 3 learns the order of a model's parts in the first."""
AS_IF_LARGE = {"stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 10_000, "stage3_max_reuse_distance": 10_000}
"""Settings under which ZeRO 3 does with a small model what it does with one that fits nowhere: keep no part of it whole."""
LEARNING_RATES = {"lora": 2e-4, "full": 1e-5}
PRELOADED = ["bench.scaling_rank", "deepspeed", "transformers.models.llama.modeling_llama"]
PATIENCE_SECONDS = 600


@dataclass(frozen=True)
class Case:
    """One kind of run."""

    sweep: str
    adapter: str
    engine: EngineName = "torch"
    workers: int = 1
    rows: int = 8
    """Of the global batch."""
    length: int = 128
    hidden: int = 256
    layers: int = 4
    pieces: int = 1
    """Micro-batches of each worker's share."""
    sharing: int = 1
    """Workers that share each row."""

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.rows * self.length


@dataclass(frozen=True)
class Turn:
    """What a step of one run came to: medians over its steps."""

    seconds: float
    cpu_seconds: float
    """Processor time of the rank that took most, step by step."""
    waiting: float
    """Share of the time in collectives, mean of the ranks: the wait for slower ranks is in it."""
    moving: float
    """The same of the rank that waits least, step by step: what moving the bytes costs."""
    calls: int
    """Collectives of a rank."""
    sent_bytes: float
    """Mean over ranks and steps."""
    peak_bytes: int
    """Above what the process had with everything imported."""


class Site:
    """Makes what a case needs when it is first asked for."""

    def __init__(self, directory: Path, steps: int, most_workers: int) -> None:
        """`steps` are measured, after WARM_UP. `most_workers`: what the machine's cores are divided by."""
        self._directory, self._steps = directory, WARM_UP + steps
        self._storage = open_storage((directory / "objects").as_uri())
        self._runs = 0
        cores = sorted(os.sched_getaffinity(0))
        self.cores_each = max(1, len(cores) // most_workers)
        self._shares = [tuple(cores[rank * self.cores_each :][: self.cores_each]) for rank in range(most_workers)]

    @cached_property
    def gpus(self) -> int:
        """That can be computed on."""
        import torch

        return torch.cuda.device_count()

    def measure(self, case: Case) -> Turn:
        """Run it once."""
        self._runs += 1
        directory = self._directory / f"run-{self._runs}"
        directory.mkdir()
        tokens = -(-case.tokens // (case.workers * case.pieces))
        spec = self.spec(case, f"ftjob-{self._runs}")
        order = Order(spec, tokens, tuple(self._shares), free_port(), self.gpus > 0, directory)
        ranks = [self._context.Process(target=work, args=(order, rank)) for rank in range(case.workers)]
        for rank in ranks:
            rank.start()
        try:
            for rank in ranks:
                rank.join(PATIENCE_SECONDS)
        finally:
            for rank in ranks:
                rank.kill()
        if any(rank.exitcode != 0 for rank in ranks):
            raise SystemExit(f"{case}: the ranks ended with {[rank.exitcode for rank in ranks]}")
        return turn([json.loads((directory / f"rank-{rank}.json").read_text()) for rank in range(case.workers)])

    def sizes(self, case: Case) -> Sizes:
        """Of the case's base model."""
        self._model(case)
        return measure(self._directory / f"{case.hidden}x{case.layers}")

    def spec(self, case: Case, job: str) -> RunSpec:
        """What the workers are told. A run is one epoch over rows of one length, the last half of each labelled."""
        rate = LEARNING_RATES[case.adapter]
        return RunSpec(
            job_id=job,
            epoch=1,
            method="supervised",
            seed=1,
            base_model=self._model(case),
            dataset=self._dataset(case),
            validation=None,
            resolved=Resolved(
                n_epochs=1,
                batch_size=case.rows,
                learning_rate_multiplier=1.0,
                learning_rate=rate,
                engine=case.engine,
                steps=self._steps,
            ),
            tunesmith=TunesmithSpec.model_validate(
                {
                    "adapter": {"type": case.adapter},
                    "training": {"learning_rate": rate},
                    "checkpoints": {"every_steps": self._steps},
                    "resources": {
                        "workers": case.workers,
                        "sequence_parallel": case.sharing,
                        "gpus_per_worker": min(1, self.gpus),
                        "cpus_per_worker": self.cores_each,
                        "engine": case.engine,
                        "deepspeed": {"zero_optimization": AS_IF_LARGE} if case.engine == "zero3" else None,
                    },
                }
            ),
            storage_url=(self._directory / "objects").as_uri(),
            report_address="127.0.0.1:1",
            tuned_model="bench",
        )

    @cached_property
    def _context(self) -> Any:
        os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cuda" if self.gpus else "cpu", "OMP_WAIT_POLICY": "PASSIVE"}
        if self.gpus:
            return multiprocessing.get_context("spawn")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        return context

    def _model(self, case: Case) -> BaseModelRef:
        name = f"{case.hidden}x{case.layers}"
        if not (self._directory / name).is_dir():
            written = write_tiny_model(self._directory / name, hidden=case.hidden, layers=case.layers)
            manifest.write(self._storage, f"base/{name}/1", written, {})
        return BaseModelRef(id=name, revision="1", prefix=f"base/{name}/1", licence="mit")

    def _dataset(self, case: Case) -> DatasetRef:
        rows, length = case.rows * self._steps, case.length
        weights = (np.arange(length) >= length // 2).astype(np.float32)
        return random_rows(self._storage, self._directory / f"rows-{rows}x{length}", rows, weights, vocabulary=VOCABULARY)


def turn(answers: Sequence[dict[str, Any]]) -> Turn:
    """Of what the ranks of a run left."""
    steps = [_differences(answer["ticks"][WARM_UP - 1 :]) for answer in answers]
    first, each = steps[0], list(zip(*steps, strict=True))
    return Turn(
        seconds=statistics.median(step["seconds"] for step in first),
        cpu_seconds=statistics.median(max(step["cpu_seconds"] for step in ranks) for ranks in each),
        waiting=statistics.median(statistics.mean(_share(step) for step in ranks) for ranks in each),
        moving=statistics.median(min(_share(step) for step in ranks) for ranks in each),
        calls=round(statistics.median(step["calls"] for step in first)),
        sent_bytes=statistics.mean(step["sent"] for rank in steps for step in rank),
        peak_bytes=max(answer["peak_bytes"] for answer in answers),
    )


def _differences(ticks: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: after[name] - before[name] for name in after} for before, after in pairwise(ticks)]


def _share(step: dict[str, float]) -> float:
    return step["waiting"] / step["seconds"]
