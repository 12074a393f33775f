"""One side of bench/trainer.py in a process of its own: `arms.py ours|trl ORDER RESULT`.

The order (JSON) holds the model's directory, rows already tokenised, and the settings; both sides train the same tokens.
`trl` runs in an environment that has TRL, `ours` in Tunesmith's. Time from the first import to the saved adapter is kept.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

STARTED, CPU_STARTED = time.perf_counter(), time.process_time()


def main() -> int:
    """Entry point."""
    side, order, result = sys.argv[1:]
    arm = {"ours": ours, "trl": trl}[side]
    Path(result).write_text(json.dumps(arm(json.loads(Path(order).read_text())) | totals()))
    return 0


def totals() -> dict[str, float]:
    """What the whole process took: seconds, and bytes resident at the most."""
    return {
        "total_seconds": time.perf_counter() - STARTED,
        "total_cpu_seconds": time.process_time() - CPU_STARTED,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def trained(tokens: int, seconds: float, cpu_seconds: float, losses: list[float]) -> dict[str, Any]:
    """What the training steps alone took; the loss is the mean of the last five steps."""
    tail = losses[-5:]
    return {"tokens": tokens, "seconds": seconds, "cpu_seconds": cpu_seconds, "steps": len(losses), "loss": sum(tail) / len(tail)}


def ours(order: dict[str, Any]) -> dict[str, Any]:
    """The service's own loop, engine and model, without the service."""
    import numpy as np
    import torch

    from trainers import registry
    from trainers.data import Layout
    from trainers.engine import TorchEngine, adamw
    from trainers.leaving import Leaving
    from trainers.loop import LoopParts, train
    from trainers.model import TrainingModel
    from trainers.report import Silent
    from trainers.spec import AdapterSpec, TrainingSpec
    from trainers.state import PlainHolder, TrainingState
    from trainers.tokenised import DatasetWriter, TokenisedDataset
    from trainers.watch import Watch

    torch.set_num_threads(order["threads"])
    encoded = Path(order["scratch"]) / "encoded"
    with DatasetWriter(encoded) as writer:
        for row in order["rows"]:
            writer.append(registry.Encoded(np.array(row["ids"], dtype=np.uint32), np.array(row["weights"], dtype=np.float32)))
    adapter = AdapterSpec(r=order["r"], alpha=order["alpha"])
    model = TrainingModel.load(Path(order["model"]), adapter, seed=order["seed"], device=torch.device("cpu"))
    training = TrainingSpec(learning_rate=order["learning_rate"], schedule="linear", warmup_ratio=0.0)
    optimizer = adamw(model.trainable_parameters(), training.weight_decay)
    state = TrainingState(PlainHolder(model, optimizer))
    state.cursor.micro_batch = order["batch_size"]
    grad_norm = training.max_grad_norm
    engine = TorchEngine(model, model.trainable_parameters(), optimizer, max_grad_norm=grad_norm, rank=0, world_size=1)
    spec = _run_spec(order, adapter, training)
    method, rows, watch = registry.get("supervised"), TokenisedDataset.open(encoded), Watch(0, 1, None, _stuck)
    parts = LoopParts(spec, method, model, state, engine, Layout(0, 1), rows, None, Silent(), None, Leaving(), watch)
    began, cpu = time.perf_counter(), time.process_time()
    train(parts)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    watch.close()
    model.save_adapter(Path(order["scratch"]) / "adapter")
    return trained(state.cursor.tokens, seconds, cpu, [row.train_loss for row in state.history])


def _stuck(failed: Exception) -> None:
    sys.stderr.write(f"{failed}\n")


def _run_spec(order: dict[str, Any], adapter: Any, training: Any) -> Any:
    from trainers.spec import BaseModelRef, DatasetRef, Resolved, RunSpec, TunesmithSpec

    rate, batch_size = order["learning_rate"], order["batch_size"]
    steps = order["epochs"] * -(-len(order["rows"]) // batch_size)
    resolved = {"learning_rate_multiplier": 1.0, "learning_rate": rate, "engine": "torch", "steps": steps}
    return RunSpec(
        job_id="ftjob-bench",
        epoch=1,
        method="supervised",
        seed=order["seed"],
        base_model=BaseModelRef(id="bench", revision="1", prefix="base/bench/1", licence="none"),
        dataset=DatasetRef(prefix="datasets/bench", sha256="bench", rows=len(order["rows"]), tokens=1, trained_tokens=1, longest=1),
        validation=None,
        resolved=Resolved(n_epochs=order["epochs"], batch_size=batch_size, **resolved),
        tunesmith=TunesmithSpec(adapter=adapter, training=training),
        storage_url="file:///nowhere",
        report_address="127.0.0.1:1",
        tuned_model="bench",
    )


def trl(order: dict[str, Any]) -> dict[str, Any]:
    """TRL as one would tune it for short rows on a CPU: no activation checkpointing, rows grouped by length, float32."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(order["threads"])

    class Clock(TrainerCallback):
        """Times from the first step's beginning to the last step's end."""

        began = ended = cpu = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            """A step begins."""
            if not self.began:
                self.began, self.cpu = time.perf_counter(), time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            """A step is done."""
            self.ended, self.cpu_ended = time.perf_counter(), time.process_time()

    labels = [[token if weight else -100 for token, weight in zip(row["ids"], row["weights"], strict=True)] for row in order["rows"]]
    rows = Dataset.from_dict({"input_ids": [row["ids"] for row in order["rows"]], "labels": labels})
    settings = SFTConfig(
        output_dir=str(Path(order["scratch"]) / "trl"),
        per_device_train_batch_size=order["batch_size"],
        num_train_epochs=order["epochs"],
        learning_rate=order["learning_rate"],
        lr_scheduler_type="linear",
        seed=order["seed"],
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        train_sampling_strategy="group_by_length",
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    clock = Clock()
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(order["model"], dtype=torch.float32),
        args=settings,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(order["model"]),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=order["r"], lora_alpha=order["alpha"], target_modules="all-linear"),
        callbacks=[clock],
    )
    trainer.train()
    trainer.save_model(str(Path(order["scratch"]) / "adapter"))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tokens = order["epochs"] * sum(len(row["ids"]) for row in order["rows"])
    return trained(tokens, clock.ended - clock.began, clock.cpu_ended - clock.cpu, losses)


if __name__ == "__main__":
    sys.exit(main())
