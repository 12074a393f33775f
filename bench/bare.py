"""The bare trainer script: one process, no service, no Ray. What `overhead.py` holds the service against.

Reads a JSON Lines file, encodes it, trains with the very loop the service uses, and leaves the proven adapter in a
storage directory. The last line on standard output is JSON: seconds by phase and the adapter's hash.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

STARTED = time.perf_counter()


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=Path, required=True, help="object directory that holds the base model")
    parser.add_argument("--job", type=Path, required=True, help="JSON with model_ref, rows (path), seed, resolved and tunesmith")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    order = json.loads(given.job.read_text())
    with tempfile.TemporaryDirectory(prefix="tunesmith-bare-") as scratch:
        adapter = _train(order, given.objects, Path(scratch), given.threads)
    sys.stdout.write(json.dumps({"seconds": time.perf_counter() - STARTED, "adapter_sha256": adapter}) + "\n")
    return 0


def _train(order: dict, objects: Path, scratch: Path, threads: int) -> str:
    import torch

    from service.data_report import CheckRequest
    from service.datasets import check
    from trainers import manifest
    from trainers.report import Silent
    from trainers.run import Place, execute
    from trainers.spec import BaseModelRef, Resolved, RunSpec, TunesmithSpec
    from trainers.storage import open_storage

    torch.set_num_threads(threads)
    storage = open_storage(scratch.as_uri())
    base = BaseModelRef.model_validate(order["model_ref"])
    (scratch / base.prefix).parent.mkdir(parents=True)
    (scratch / base.prefix).symlink_to(objects / base.prefix)
    request = CheckRequest(
        path=order["rows"],
        model_dir=str(objects / base.prefix),
        method="supervised",
        max_length=1024,
        overlong="truncate",
        out_dir=str(scratch / "encoded"),
    )
    report = check(request)
    manifest.write(storage, "datasets/bare", scratch / "encoded", {})
    spec = RunSpec(
        job_id="ftjob-bare",
        epoch=1,
        method="supervised",
        seed=order["seed"],
        base_model=base,
        dataset=report.dataset_ref("datasets/bare", "bare"),
        validation=None,
        resolved=Resolved.model_validate(order["resolved"]),
        tunesmith=TunesmithSpec.model_validate(order["tunesmith"]),
        storage_url=scratch.as_uri(),
        report_address="127.0.0.1:1",
        tuned_model="bare",
    )
    execute(spec, storage, Silent(), Place(0, 1, torch.device("cpu"), scratch / "cache"))
    return manifest.read(storage, spec.model_prefix).sha256_of("adapter/adapter_model.safetensors")


if __name__ == "__main__":
    sys.exit(main())
