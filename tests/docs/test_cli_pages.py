"""The command's help pages: docs/cli.md is what they say, every one has an example, and none depends on the terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.cli import NOUNS
from service.cli.output import MEANING, ExitCode
from service.cli.pages import commands, pages

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


@pytest.fixture(scope="module")
def page() -> str:
    return pages()


def test_the_page_is_fresh(page: str) -> None:
    assert PAGE.read_text(encoding="utf-8") == page, "run: python -m service.cli.pages > docs/cli.md"


def test_every_command_has_an_example(page: str) -> None:
    sections = page.split("\n## ")[2:]
    assert len(sections) == len(commands())
    for section in sections:
        name = section.partition("\n")[0]
        if name.removeprefix("tunesmith ") in NOUNS:
            continue
        assert f"\n    {name} " in section or f"\n    {name}\n" in section or name == "tunesmith", section


def test_every_option_is_described(page: str) -> None:
    for section in page.split("\n## ")[2:]:
        _, _, options = section.partition("\nOptions:\n")
        lines = options.partition("\n\n")[0].splitlines()
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            if line.startswith("  -") and "  " not in line.strip():
                assert following.startswith(" " * 20), f"{section.splitlines()[0]}: {line}"


def test_every_exit_code_is_told(page: str) -> None:
    assert set(MEANING) == set(ExitCode)
    for code, meaning in MEANING.items():
        assert f"| {code.value} | {meaning} |" in page


@pytest.mark.parametrize("columns", ["40", "200"])
def test_the_terminal_does_not_matter(columns: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service.cli.pages"],
        env=os.environ | {"COLUMNS": columns, "TERMINAL_WIDTH": columns},
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode() == PAGE.read_text(encoding="utf-8")


def test_help_loads_nothing_heavy() -> None:
    """What makes `--help` slow is imports."""
    code = "import sys, service.cli; print([name for name in sys.argv[1:] if name in sys.modules])"
    heavy = ["openai", "httpx", "httpx2", "fastapi", "sqlalchemy", "pydantic_settings", "boto3", "yaml", "rich.progress", "torch", "ray"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


def test_the_console_script() -> None:
    done = subprocess.run([Path(sys.executable).parent / "tunesmith", "--version"], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.startswith("tunesmith ")
