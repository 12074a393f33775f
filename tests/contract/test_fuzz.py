"""A short run of the fuzzer; `make fuzz` is the long one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import fuzz
from tests.gateway import running_gateway


@pytest.mark.timeout(600)
def test_no_request_breaks_the_service(tmp_path: Path) -> None:
    with running_gateway(tmp_path) as gateway:
        done = fuzz.run(gateway, examples=3, seed=1, phases="fuzzing,stateful")
    assert done.returncode == 0, done.stdout[-8000:]
    cases = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert cases is not None, done.stdout[-2000:]
    assert int(cases[1]) > 50
