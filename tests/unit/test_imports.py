"""The gateway needs none of the heavy libraries: proved by taking them away."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import service

BLOCK = """
import importlib, sys

class Blocked:
    names = {"torch", "ray", "deepspeed", "transformers", "peft", "safetensors", "accelerate"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ImportError(f"{name} must not be imported by the service")

sys.meta_path.insert(0, Blocked())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_every_module_of_the_service_imports_without_torch_and_ray() -> None:
    names = [module.name for module in pkgutil.walk_packages(service.__path__, "service.") if "migrations" not in module.name]
    assert len(names) > 40
    done = subprocess.run([sys.executable, "-c", BLOCK, *names], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_block_blocks() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCK, "trainers.engine"], capture_output=True, text=True, timeout=60)
    assert "torch must not be imported" in done.stderr
