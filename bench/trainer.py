"""Our trainer against tuned TRL: the same model, rows, tokens and settings, in turns, each in a process of its own.

Prints non-padding tokens a second of the training steps, the whole time from the first import to the saved adapter, peak
memory, and each side's share of what this machine's matrix product allows; writes bench/results/trainer.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
ARMS = ROOT / "bench" / "arms.py"
ROWS = ROOT / "examples" / "tweets" / "tweets-train.jsonl"
RESULTS = ROOT / "bench" / "results"
PYTHONS = {"trl": ROOT / ".venv-bench" / "bin" / "python", "ours": Path(sys.executable)}
MODEL = "smollm2-135m-instruct"
SETTINGS = {"batch_size": 8, "r": 16, "alpha": 32, "learning_rate": 2e-4, "seed": 1}
RATIOS = ("speed_ratio", "total_ratio", "cpu_ratio", "memory_ratio")
console = Console()


def main() -> int:
    """Entry point."""
    given = _arguments()
    if not PYTHONS["trl"].exists():
        console.print(f"{PYTHONS['trl']} is missing: `make bench` installs TRL there")
        return 2
    model = given.model or _from_catalogue()
    rows = _encoded(model, given.rows)
    order = SETTINGS | {"model": str(model), "rows": rows, "epochs": 1, "threads": given.threads}
    if given.steps:
        order["rows"] = rows[: given.steps * SETTINGS["batch_size"]]
    rounds = [_round(order, number) for number in range(1, given.rounds + 1)]
    report = _report(order, rounds)
    _show(report)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "trainer.json").write_text(json.dumps(report, indent=2) + "\n")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of both sides")
    parser.add_argument("--rows", type=int, default=200, help="rows of examples/tweets/tweets-train.jsonl")
    parser.add_argument("--steps", type=int, default=0, help="stop after so many steps of 8 rows; 0 is one epoch")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--model", type=Path, help="directory of a base model; from the catalogue when not given")
    return parser.parse_args()


def _from_catalogue() -> Path:
    """The catalogue's small model, pulled once into a data directory of the benchmark's own."""
    data = RESULTS / "data"
    subprocess.run([Path(sys.executable).parent / "tunesmith", "models", "pull", MODEL, "--data-dir", data], check=True, stdout=sys.stderr)
    return next(data.rglob(f"base/{MODEL}/*/model.safetensors")).parent


def _encoded(model: Path, count: int) -> list[dict[str, Any]]:
    """The rows as tokens and weights, as the service's data check encodes them."""
    from trainers import registry

    rows = [json.loads(line) for line in ROWS.read_text().splitlines()[:count]]
    encoded = registry.get("supervised").encode(rows, registry.open_tokenizer(model))
    return [{"ids": row.input_ids.tolist(), "weights": row.weights.tolist()} for row in encoded if isinstance(row, registry.Encoded)]


def _round(order: dict[str, Any], number: int) -> dict[str, Any]:
    """Both sides once, the other one first in every second round, and the machine's product rate before and after."""
    sides = ("trl", "ours") if number % 2 else ("ours", "trl")
    before = sgemm(order["threads"])
    results = {side: _run(side, order) for side in sides}
    rates = [before, sgemm(order["threads"])]
    console.print(f"round {number}: " + ", ".join(f"{side} {_speed(results[side]):.0f} tok/s" for side in ("ours", "trl")))
    return {**results, "sgemm_gflops": max(rates)}


def _run(side: str, order: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="tunesmith-bench-") as scratch:
        told, result, log = (Path(scratch) / name for name in ("order.json", "result.json", "log"))
        told.write_text(json.dumps(order | {"scratch": scratch}))
        environment = os.environ | {"OMP_NUM_THREADS": str(order["threads"]), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment["PYTHONPATH"] = str(ROOT)
        with log.open("w") as file:
            done = subprocess.run([PYTHONS[side], ARMS, side, told, result], env=environment, stdout=file, stderr=file, check=False)
        if done.returncode != 0:
            raise SystemExit(f"the {side} side failed:\n{log.read_text()[-3000:]}")
        return json.loads(result.read_text())


def sgemm(threads: int) -> float:
    """GFLOP/s of a square float32 product, the best of a few, in a process of its own."""
    code = (
        f"import time, torch; torch.set_num_threads({threads}); a = torch.randn(2048, 2048); a @ a; best = 1e9\n"
        "for _ in range(8): t = time.perf_counter(); a @ a; best = min(best, time.perf_counter() - t)\n"
        "print(2 * 2048**3 / best / 1e9)"
    )
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def _flop_a_token(order: dict[str, Any]) -> float:
    """4 N + 6 P for N frozen and P adapter parameters in products; the output head counts where a label is, attention's scores do not."""
    from safetensors import safe_open

    frozen = adapter = head = 0
    with safe_open(next(Path(order["model"]).glob("*.safetensors")), "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118  (not a dict)
            shape = tensors.get_slice(name).get_shape()
            if "embed_tokens" in name:
                head = shape[0] * shape[1]
            elif len(shape) == 2 and "lm_head" not in name:
                frozen, adapter = frozen + shape[0] * shape[1], adapter + order["r"] * sum(shape)
    tokens = sum(len(row["ids"]) for row in order["rows"])
    labels = sum(weight > 0 for row in order["rows"] for weight in row["weights"])
    return 4 * frozen + 6 * adapter + 4 * head * labels / tokens


def _speed(result: dict[str, Any]) -> float:
    return result["tokens"] / result["seconds"]


def _report(order: dict[str, Any], rounds: list[dict[str, Any]]) -> dict[str, Any]:
    flop = _flop_a_token(order)
    for turn in rounds:
        for side in ("ours", "trl"):
            result = turn[side]
            result |= {"tokens_per_second": _speed(result), "share_of_sgemm": _speed(result) * flop / turn["sgemm_gflops"] / 1e9}
            result["tokens_per_cpu_second"] = result["tokens"] / result["cpu_seconds"]
        turn["speed_ratio"] = _speed(turn["ours"]) / _speed(turn["trl"])
        turn["total_ratio"] = turn["trl"]["total_seconds"] / turn["ours"]["total_seconds"]
        turn["cpu_ratio"] = turn["ours"]["tokens_per_cpu_second"] / turn["trl"]["tokens_per_cpu_second"]
        turn["memory_ratio"] = turn["ours"]["peak_rss_bytes"] / turn["trl"]["peak_rss_bytes"]
    return {
        "machine": machine(order["threads"]),
        "settings": {key: value for key, value in order.items() if key not in ("rows", "model")} | {"rows": len(order["rows"])},
        "flop_a_token": flop,
        "medians": {name: statistics.median(turn[name] for turn in rounds) for name in RATIOS},
        "rounds": rounds,
    }


def machine(threads: int) -> dict[str, Any]:
    """What a benchmark ran on."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cpus": os.cpu_count(),
        "threads": threads,
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def _show(report: dict[str, Any]) -> None:
    table = Table(title="training steps, non-padding tokens; ratios are ours to TRL's")
    for heading in ("", "side", "tok/s", "tok/cpu-s", "sgemm", "total s", "GB", "loss"):
        table.add_column(heading, justify="right", no_wrap=True)
    for number, turn in enumerate(report["rounds"], 1):
        for side in ("trl", "ours"):
            table.add_row(str(number), side, *_cells(turn[side]))
        table.add_row("", "ratio", *_ratio_cells(turn), style="dim", end_section=True)
    table.add_row("", "median", *_ratio_cells(report["medians"]), style="bold")
    console.print(table)
    sgemm = max(turn["sgemm_gflops"] for turn in report["rounds"])
    console.print(f"{report['machine']}; sgemm {sgemm:.0f} GFLOP/s; {report['flop_a_token'] / 1e6:.0f} MFLOP a token")


def _ratio_cells(ratios: dict[str, float]) -> list[str]:
    speed, total, cpu, memory = (f"{ratios[name]:.2f}" for name in RATIOS)
    return [speed, cpu, "", total, memory, ""]


def _cells(result: dict[str, Any]) -> list[str]:
    return [
        f"{result['tokens_per_second']:.0f}",
        f"{result['tokens_per_cpu_second']:.0f}",
        f"{result['share_of_sgemm']:.0%}",
        f"{result['total_seconds']:.0f}",
        f"{result['peak_rss_bytes'] / 1e9:.2f}",
        f"{result['loss']:.3f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
