"""Score a base model, with or without an adapter, on held-out conversations: does its first word match?

Plain transformers and PEFT, nothing of Tunesmith's, as anyone would use the adapter:

    python examples/score.py --base BASE_DIR --adapter ADAPTER_DIR --rows examples/tweets/tweets-test.jsonl
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

# peft 0.21 still asks transformers 5.23 under the old name.
warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
BATCH = 20
NEW_TOKENS = 4
OnProgress = Callable[[int, int], None]


def load(base: Path, adapter: Path | None) -> tuple[Any, Any]:
    """Tokenizer and model, from local files."""
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return tokenizer, model.eval()


def accuracy(tokenizer: Any, model: Any, rows: Sequence[dict[str, Any]], on_progress: OnProgress | None = None) -> float:
    """Share of the rows (chat format, the answer last) whose first generated word, greedily chosen, is the answer's."""
    rows = sorted(rows, key=lambda row: len(row["messages"][-2]["content"]))  # near-equal lengths: little padding
    right = 0
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        answers = _generate(tokenizer, model, [row["messages"][:-1] for row in part])
        right += sum(first_word(answer) == first_word(row["messages"][-1]["content"]) for answer, row in zip(answers, part, strict=True))
        if on_progress is not None:
            on_progress(start + len(part), len(rows))
    return right / len(rows)


def first_word(text: str) -> str:
    """The first word in lower case, without punctuation."""
    words = re.findall(r"[a-z]+", text.lower())
    return words[0] if words else ""


def _generate(tokenizer: Any, model: Any, prompts: Sequence[list[dict[str, str]]]) -> list[str]:
    texts = [tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True) for prompt in prompts]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    with torch.no_grad():
        ids = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
        )
    return tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="directory of the base model")
    parser.add_argument("--adapter", type=Path, help="directory of the adapter; without it the base model is scored")
    parser.add_argument("--rows", type=Path, default=Path(__file__).parent / "tweets" / "tweets-test.jsonl")
    given = parser.parse_args()
    tokenizer, model = load(given.base, given.adapter)
    share = accuracy(tokenizer, model, read_rows(given.rows))
    sys.stdout.write(f"accuracy {share:.1%}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
