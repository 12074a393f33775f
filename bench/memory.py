"""How much memory real runs take, rank by rank, beside what the plan said they would.

Each run is the trainer's own, from loading to the verified artifact, in plain processes that meet over gloo; rows are random
tokens that share nothing. Prints a Markdown table of peaks (resident bytes, the largest of the ranks) and estimates; writes
bench/results/memory.json. Says at the end which estimates lie outside -0 % … +15 %; the exit status is 1 when there are any.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bench.random_rows import random_rows
from service.embedded import free_port
from trainers import manifest
from trainers.model_files import measure
from trainers.plan import Load, Memory
from trainers.spec import BaseModelRef, DatasetRef, EngineName, Resolved, RunSpec, TunesmithSpec
from trainers.storage import Storage, open_storage

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
SMOLLM2 = "smollm2-135m-instruct"
STEPS = 2
LOWEST, HIGHEST = 1.0, 1.15
"""Between which an estimate over its measurement should lie."""
TIMEOUT_SECONDS = 900.0
ON_NVME = {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}


@dataclass(frozen=True, slots=True)
class Case:
    """One run."""

    model: str
    """SMOLLM2, or LAYERSxHIDDEN: a Llama of random weights."""
    rows: int
    """Of one forward pass of one rank."""
    tokens: int
    engine: EngineName = "torch"
    workers: int = 1
    form: str = "lora"
    checkpointing: bool = False
    dropout: float = 0.0
    pieces: int = 1
    """Forward passes of each rank in a step."""
    sharing: int = 1
    """Ranks that share each row."""
    nvme: bool = False
    """Whether optimizer state lies in files, on the disk that the scratch directory is on."""

    @property
    def tunesmith(self) -> TunesmithSpec:
        """What a job would ask for."""
        adapter = {"type": "lora", "dropout": self.dropout} if self.form == "lora" else {"type": "full"}
        asked = {
            "adapter": adapter,
            "training": {"activation_checkpointing": self.checkpointing},
            "resources": {"workers": self.workers, "engine": self.engine, "sequence_parallel": self.sharing}
            | ({"deepspeed": ON_NVME} if self.nvme else {}),
            "checkpoints": {"every_steps": 1, "keep": 1},
        }
        return TunesmithSpec.model_validate(asked)

    @property
    def what(self) -> str:
        """What is trained, and how."""
        more = [f"{self.pieces} micro-batches"] * (self.pieces > 1) + ["checkpointing"] * self.checkpointing + ["nvme"] * self.nvme
        more += [f"{self.sharing} share each row"] * (self.sharing > 1)
        return ", ".join([self.form, *more, *["dropout"] * bool(self.dropout)])

    def __str__(self) -> str:
        return f"{self.model} {self.rows}x{self.tokens} {self.engine} {self.workers} {self.what}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run took, and what it was thought to take."""

    case: Case
    peaks: tuple[int, ...]
    """Bytes, rank by rank."""
    stages: dict[str, int]
    """Peaks of rank 0."""
    estimate: Memory
    seconds: float

    @property
    def ratio(self) -> float:
        """Estimate over the largest of the ranks."""
        return self.estimate.total / max(self.peaks)


class Workshop:
    """A storage with models and datasets, made when they are first asked for; not by two at once."""

    def __init__(self, directory: Path, smollm2: Path | None = None) -> None:
        self.directory, self.smollm2 = directory, smollm2
        self.storage: Storage = open_storage((directory / "objects").as_uri())

    def prepare(self, case: Case) -> RunSpec:
        """The run, with all that it reads in storage."""
        batch_size = case.rows * case.tunesmith.resources.replicas * case.pieces
        resolved = {"n_epochs": STEPS, "batch_size": batch_size, "learning_rate_multiplier": 1.0, "learning_rate": 1e-4, "steps": STEPS}
        return RunSpec(
            job_id=f"ftjob-{os.urandom(6).hex()}",
            epoch=1,
            method="supervised",
            seed=1,
            base_model=self._base(case.model),
            dataset=self._dataset(case.model, batch_size, case.tokens),
            validation=None,
            resolved=Resolved.model_validate(resolved | {"engine": case.engine}),
            tunesmith=case.tunesmith,
            storage_url=(self.directory / "objects").as_uri(),
            report_address="127.0.0.1:1",
            tuned_model="bench",
        )

    def run(self, case: Case, spec: RunSpec) -> Outcome:
        """Start the ranks, wait for them, read what they took. Raises RuntimeError when one fails."""
        began, directory = time.perf_counter(), self.directory / spec.job_id
        directory.mkdir()
        (directory / "spec.json").write_text(spec.model_dump_json())
        port = free_port()
        ranks = [self._start(case, directory, rank, port) for rank in range(case.workers)]
        try:
            for rank in ranks:
                if rank.wait(TIMEOUT_SECONDS) != 0:
                    raise RuntimeError(f"{case}: a rank failed\n{(directory / 'log').read_text()[-3000:]}")
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
        told = [json.loads((directory / f"answer-{rank}.json").read_text()) for rank in range(case.workers)]
        load = Load.of(measure(self._model(case.model)), spec.tunesmith, case.engine, on_cpu=True)
        peaks = tuple(one["peak"] for one in told)
        return Outcome(case, peaks, told[0]["stages"], load.memory(case.rows, case.tokens), time.perf_counter() - began)

    def _start(self, case: Case, directory: Path, rank: int, port: int) -> subprocess.Popen[bytes]:
        env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(case.workers), "RANK": str(rank)}
        env |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        env |= {"TUNESMITH_NVME_DIR": str(self.directory / "nvme")}
        env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // case.workers)))
        tokens = str(case.rows * case.tokens)
        command = [sys.executable, "-m", "bench.memory_rank", directory / "spec.json", directory / f"answer-{rank}.json"]
        with (directory / "log").open("ab") as log:
            return subprocess.Popen([*command, self.directory / "cache", tokens], env=env, stdout=log, stderr=log, cwd=ROOT)

    def _model(self, name: str) -> Path:
        self._base(name)
        directory = self.storage.local_path(f"base/{name}/1")
        assert directory is not None
        return directory

    def _base(self, name: str) -> BaseModelRef:
        ref = BaseModelRef(id=name, revision="1", prefix=f"base/{name}/1", licence="none")
        if not (self.directory / "objects" / ref.prefix / manifest.MANIFEST).exists():
            source = self.smollm2 if name == SMOLLM2 else random_llama(self.directory / name, *(int(part) for part in name.split("x")))
            assert source is not None
            files = self.directory / f"{name}-files"
            files.mkdir()
            for path in source.iterdir():
                if path.name != manifest.MANIFEST:
                    (files / path.name).symlink_to(path.absolute())
            manifest.write(self.storage, ref.prefix, files, {})
        return ref

    def _dataset(self, model: str, rows: int, tokens: int) -> DatasetRef:
        """Rows of random tokens, of which every one but the first has a label."""
        vocabulary = json.loads((self._model(model) / "config.json").read_text())["vocab_size"]
        weights = np.ones(tokens, np.float32)
        weights[0] = 0
        return random_rows(self.storage, self.directory / f"{model}-{rows}-{tokens}", rows, weights, vocabulary=vocabulary)


def random_llama(directory: Path, layers: int, hidden: int) -> Path:
    """A Llama of random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


ENGINES: tuple[EngineName, ...] = ("torch", "zero1", "zero2", "zero3")
CASES = [
    Case(SMOLLM2, 8, 64),
    Case(SMOLLM2, 2, 512),
    Case(SMOLLM2, 4, 64, "zero3", 2),
    Case(SMOLLM2, 4, 64, form="full"),
    *(Case("4x768", 4, 64, engine, workers, "full") for engine in ENGINES for workers in (1, 2)),
    Case("4x768", 4, 64, "zero2", 1, "full", pieces=3),
    *(Case("4x768", 4, 64, engine, 2, "full", nvme=True) for engine in ("zero2", "zero3")),
    Case("8x512", 16, 128),
    Case("8x512", 4, 256, checkpointing=True),
    Case("8x512", 4, 256, dropout=0.1),
    Case("8x512", 4, 256, "zero2"),
    Case("8x512", 4, 256, "zero3"),
    Case("8x512", 4, 256, form="full"),
    Case("8x512", 4, 256, "zero1", form="full", checkpointing=True),
    Case("8x512", 1, 1024),
    *(Case("8x512", rows, tokens, workers=2, sharing=2) for rows, tokens in ((1, 2048), (4, 512))),
    Case("8x512", 1, 2048, "zero3", 2, "full", checkpointing=True, sharing=2),
]


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="directory of SmolLM2-135M; without it only models of random weights are measured")
    parser.add_argument("--only", default="", help="run the cases whose name contains this, e.g. zero2 or 8x512")
    parser.add_argument("--at-once", type=int, default=1, help="runs at a time: what a run takes does not depend on those beside it")
    given = parser.parse_args()
    cases = [case for case in CASES if given.only in str(case) and (given.model or case.model != SMOLLM2)]
    with tempfile.TemporaryDirectory(prefix="tunesmith-bench-") as scratch, ThreadPoolExecutor(given.at_once) as turns:
        workshop = Workshop(Path(scratch), given.model)
        prepared = [(case, workshop.prepare(case)) for case in cases]
        outcomes = []
        sys.stdout.write(HEADING)
        for outcome in turns.map(lambda run: workshop.run(*run), prepared):
            sys.stdout.write(line(outcome))
            sys.stdout.flush()
            outcomes.append(outcome)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "memory.json").write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2) + "\n")
    outside = [outcome for outcome in outcomes if not LOWEST <= outcome.ratio <= HIGHEST]
    for outcome in outside:
        sys.stderr.write(f"outside {LOWEST} … {HIGHEST}: {outcome.case}: {outcome.ratio:.3f}; {outcome.stages}\n")
    return 1 if outside else 0


COLUMNS = ("model", "rows x tokens", "engine", "workers", "what is trained", "measured MiB", "estimate MiB", "ratio")
HEADING = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n"


def line(outcome: Outcome) -> str:
    """A row of the table."""
    case, peak, estimate = outcome.case, max(outcome.peaks) / 2**20, outcome.estimate.total / 2**20
    cells = [case.model, f"{case.rows} x {case.tokens}", case.engine, case.workers, case.what]
    return f"| {' | '.join(map(str, cells))} | {peak:,.0f} | {estimate:,.0f} | {outcome.ratio:.2f} |\n"


if __name__ == "__main__":
    sys.exit(main())
