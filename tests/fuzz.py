"""Schemathesis against a real gateway: valid and hostile requests from the OpenAPI description, and chains of them along its links.

`make fuzz` runs it at full length, tests/contract/test_fuzz.py shortened. No answer may be a 5xx, undocumented or of another shape
than described. Everything is real but Ray.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from service.logs import log_to
from tests.gateway import Gateway, running_gateway

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,response_headers_conformance"
SCHEMATHESIS = Path(sys.executable).parent / "schemathesis"


def run(
    gateway: Gateway, *, examples: int, seed: int, phases: str = "examples,coverage,fuzzing,stateful"
) -> subprocess.CompletedProcess[str]:
    """One run; its output says how many cases there were and what failed."""
    command = [
        *(str(SCHEMATHESIS), "run", f"{gateway.url}/openapi.json"),
        *("--header", f"Authorization: Bearer {gateway.key}", "--mode", "all", "--phases", phases),
        *("--checks", CHECKS, "--max-examples", str(examples), "--seed", str(seed), "--generation-database", "none"),
        *("--request-timeout", "30", "--continue-on-failure", "--suppress-health-check", "all", "--no-color", "--warnings", "off"),
    ]
    with tempfile.TemporaryDirectory(prefix="tunesmith-fuzz-") as scratch:
        return subprocess.run(command, cwd=scratch, env=os.environ | {"COLUMNS": "160"}, capture_output=True, text=True)


def main() -> int:
    """Entry point; the exit status is that of schemathesis."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=120, help="cases of each route and phase")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    log_to(None, "error")
    with tempfile.TemporaryDirectory(prefix="tunesmith-fuzz-") as scratch, running_gateway(Path(scratch)) as gateway:
        done = run(gateway, examples=given.examples, seed=given.seed)
    sys.stdout.write(done.stdout + done.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
