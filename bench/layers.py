"""What each part of a training step costs on this processor, beside what its matrix product allows.

Prints GFLOP/s of the products of SmolLM2-135M's layers by MKL and by oneDNN, milliseconds of the two blocks of a layer
against the library's modules with PEFT, and of the head; writes bench/results/layers.json. Times are of one process's
processor clock on one thread unless --threads says otherwise, so that other work on the machine disturbs little.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from transformers import LlamaConfig, LlamaForCausalLM

from trainers.adapters import lora_config
from trainers.data import Batch
from trainers.head import token_logprobs
from trainers.kernels import prefers_onednn
from trainers.model import TrainingModel
from trainers.spec import AdapterSpec

RESULTS = Path(__file__).resolve().parent / "results"
SHAPES = [(576, 192), (576, 576), (576, 1536), (1536, 576)]
HIDDEN, VOCABULARY, LAYERS = 576, 49152, 4
console = Console()


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=256, help="tokens that the products see")
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    square = torch.randn(2048, 2048)
    ceiling = 2 * 2048**3 / _seconds(lambda: square @ square, given.repeats) / 1e9
    report = {
        "threads": given.threads,
        "sgemm_gflops": ceiling,
        "prefers_onednn": prefers_onednn(),
        "products_gflops": {f"{i}x{o}": _product_rates(given.tokens, i, o, given.repeats) for i, o in SHAPES},
        "milliseconds": _layers(given.repeats) | _head(given.repeats),
    }
    _show(report)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "layers.json").write_text(json.dumps(report, indent=2) + "\n")
    return 0


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    """Median of the seconds that a call takes: of the processor on one thread, of the clock on the wall on more."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    call()
    taken = []
    for _ in range(repeats):
        began = clock()
        call()
        taken.append(clock() - began)
    return statistics.median(taken)


def _product_rates(tokens: int, inputs: int, outputs: int, repeats: int) -> dict[str, float]:
    """GFLOP/s over weights that together do not fit into a cache, as in a model."""
    count = max(1, int(60e6 / (inputs * outputs * 4)))
    weights, x = [torch.randn(outputs, inputs) for _ in range(count)], torch.randn(tokens, inputs)
    grad, onednn = torch.randn(tokens, outputs), torch.ops.mkldnn._linear_pointwise
    calls = {
        "forward mkl": lambda: [linear(x, w) for w in weights],
        "forward onednn": lambda: [onednn(x, w, None, "none", [], "") for w in weights],
        "backward mkl": lambda: [grad @ w for w in weights],
        "backward onednn": lambda: [onednn(grad, w.t(), None, "none", [], "") for w in weights],
    }
    work = 2 * tokens * inputs * outputs * count / 1e9
    return {name: work / _seconds(call, repeats) for name, call in calls.items()}


def _layers(repeats: int) -> dict[str, float]:
    """Forward and backward of four layers with LoRA on 8 rows of 56 tokens, by library and by packed tokens."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=HIDDEN,
        intermediate_size=1536,
        num_hidden_layers=LAYERS,
        num_attention_heads=9,
        num_key_value_heads=3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        use_cache=False,
    )
    plain = get_peft_model(LlamaForCausalLM(config), lora_config(AdapterSpec()), autocast_adapter_dtype=False)
    ours = TrainingModel(copy.deepcopy(plain), torch.device("cpu"), torch.float32)
    named = {"library": lambda: _library_loss(plain, _batch(0))}
    named |= {f"packed, {prefix} tokens shared": lambda prefix=prefix: -ours.score(_batch(prefix)).logp.sum() for prefix in (0, 28)}
    return {f"{LAYERS} layers, {name}": 1e3 * _seconds(lambda loss=loss: loss().backward(), repeats) for name, loss in named.items()}


def _batch(prefix: int) -> Batch:
    ids = torch.randint(64, (8, 56), generator=torch.Generator().manual_seed(1))
    ids[:, :prefix] = ids[0, :prefix]
    weights = torch.zeros(8, 56)
    weights[:, -2:] = 1
    return Batch(ids, torch.full((8,), 56), weights, ids.numel(), float(weights.sum()))


def _library_loss(model: Any, batch: Batch) -> Tensor:
    logits = model(input_ids=batch.input_ids, attention_mask=torch.ones_like(batch.input_ids), use_cache=False).logits
    return cross_entropy(logits[:, -3:-1].flatten(0, 1), batch.input_ids[:, -2:].flatten(), reduction="sum")


def _head(repeats: int) -> dict[str, float]:
    """Forward and backward of 128 labels."""
    hidden, weight = torch.randn(128, HIDDEN, requires_grad=True), torch.randn(VOCABULARY, HIDDEN) * 0.02
    labels = torch.randint(VOCABULARY, (128,))
    named = {
        "128 labels, cross_entropy on logits": lambda: cross_entropy(hidden @ weight.t(), labels, reduction="sum"),
        "128 labels, token_logprobs": lambda: -token_logprobs(hidden, weight, labels)[0].sum(),
    }
    return {name: 1e3 * _seconds(lambda loss=loss: loss().backward(), repeats) for name, loss in named.items()}


def _show(report: dict[str, Any]) -> None:
    console.print(f"sgemm {report['sgemm_gflops']:.0f} GFLOP/s on {report['threads']} threads; oneDNN chosen: {report['prefers_onednn']}")
    rates = Table(title="GFLOP/s of the layers' products")
    names = list(next(iter(report["products_gflops"].values())))
    for heading in ("in x out", *names):
        rates.add_column(heading, justify="right")
    for shape, row in report["products_gflops"].items():
        rates.add_row(shape, *(f"{row[name]:.0f}" for name in names))
    times = Table(title="forward and backward")
    times.add_column("part")
    times.add_column("ms", justify="right")
    for name, milliseconds in report["milliseconds"].items():
        times.add_row(name, f"{milliseconds:.1f}")
    console.print(rates, times)


if __name__ == "__main__":
    sys.exit(main())
