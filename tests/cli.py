"""Runs the `tunesmith` command in this process, against a served REST application or against nothing."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from typer.testing import CliRunner, Result

from service.cli import app
from tests.fakes import API_KEY
from tests.gateway import Gateway
from tests.rest_server import Served, served

ENVIRONMENT = ("BASE_URL", "API_KEY", "API_KEY_FILE", "DATA_DIR", "CATALOGUE", "STORAGE_URL")


@dataclass(frozen=True)
class Cli:
    """The command with an environment of its own."""

    env: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str | Path, exit_code: int = 0, text: str | None = None) -> Result:
        """Run the command; it must end with `exit_code`."""
        clean = {f"TUNESMITH_{name}": None for name in ENVIRONMENT}
        result = CliRunner(env=clean | self.env).invoke(app, [str(part) for part in arguments], input=text)
        assert result.exit_code == exit_code, f"{result.exit_code}\n{result.stdout}\n{result.stderr}\n{result.exception!r}"
        assert "Traceback" not in result.output
        return result

    def data(self, *arguments: str | Path) -> Any:
        """What the command prints with `-o json`."""
        return json.loads(self.run(*arguments, "-o", "json").stdout)


@contextmanager
def served_quietly(directory: Path) -> Iterator[Served]:
    """A server whose log does not get into what the command prints: both are in one process."""
    with structlog.testing.capture_logs(), served(directory) as running:
        yield running


def cli_of(server: Served, key_file: Path) -> Cli:
    """The command as someone who has the test project's key in a file."""
    key_file.write_text(API_KEY + "\n")
    return Cli({"TUNESMITH_BASE_URL": server.url, "TUNESMITH_API_KEY_FILE": str(key_file)})


class Terminal:
    """The command in a process of its own on a pseudo-terminal; `wide` columns."""

    def __init__(self, cli: Cli, *arguments: str | Path, wide: int = 120) -> None:
        self._ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (40, wide))
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TUNESMITH_")}
        command = [sys.executable, "-c", "from service.cli import main; main()", *map(str, arguments)]
        self.process = subprocess.Popen(
            command,
            env=clean | cli.env | {"TERM": "xterm"},
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
            start_new_session=True,
        )
        os.close(theirs)
        self.screen = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # how Linux says that the other end is closed
            while data := os.read(self._ours, 65536):
                self.screen += data.decode(errors="replace")

    def until(self, text: str, seconds: float = 60) -> None:
        """Wait until this text has been on the screen."""
        deadline = time.monotonic() + seconds
        while text not in self.screen:
            assert time.monotonic() < deadline, f"{text!r} did not come:\n{self.screen}"
            assert self.process.poll() is None or self._reader.is_alive() or text in self.screen, f"it ended:\n{self.screen}"
            time.sleep(0.02)

    def type(self, text: str) -> None:
        """Type into it."""
        os.write(self._ours, text.encode())

    def interrupt(self) -> None:
        """What a terminal does on Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def ended(self, seconds: float = 60) -> tuple[int, str]:
        """Its exit code and what it wrote to standard output, once it has ended."""
        stdout, _ = self.process.communicate(timeout=seconds)
        self._reader.join(seconds)
        os.close(self._ours)
        return self.process.returncode, stdout


def cli_with(gateway: Gateway, key: str, directory: Path) -> Cli:
    """The command as a user with this key runs it on the gateway."""
    path = directory / f"key-{key[3:15]}"
    path.write_text(key)
    return Cli(
        {"TUNESMITH_BASE_URL": gateway.url, "TUNESMITH_API_KEY_FILE": str(path), "TUNESMITH_DATA_DIR": str(gateway.settings.data_dir)}
    )
