"""A whole run with everything in a real S3 store: base model and dataset copied, checkpoints, resumption, proof."""

from __future__ import annotations

from pathlib import Path

import pytest

from protos.tunesmith.v1 import runs_pb2 as pb
from service import objects
from tests.small_run import Recorder, small_run
from trainers import manifest
from trainers.failure import Stopped

pytestmark = pytest.mark.slow


def test_a_run_on_s3_is_the_run_on_a_directory(tmp_path: Path, s3_url: str) -> None:
    local = small_run(tmp_path / "local")
    expected = local.spec()
    local.execute(expected)

    remote = small_run(tmp_path / "remote", storage_url=s3_url)
    first = remote.spec(job="ftjob-s3")
    with pytest.raises(Stopped):
        remote.execute(first, Recorder({7: pb.DIRECTIVE_STOP}))
    known = objects.checkpoint_prefixes(remote.storage, "ftjob-s3", 2)
    assert known == ["runs/ftjob-s3/1/checkpoints/step-4"]
    second = remote.spec(job="ftjob-s3", epoch=2, resume_from=known)
    told = remote.execute(second)
    assert told.of("started")[0].resumed_step == 4
    assert remote.adapter_sha256(second) == local.adapter_sha256(expected)
    assert manifest.read(remote.storage, second.model_prefix).facts["step"] == 10
