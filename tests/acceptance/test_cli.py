"""The command line itself: help that costs nothing, usage errors, completion."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HEAVY = (
    "torch",
    "lightning",
    "pytorch_forecasting",
    "pandas",
    "numpy",
    "allora_sdk",
    "ccxt",
    "requests",
    "pydantic",
    "rich",
)


def test_help_imports_nothing_heavy(root: Path) -> None:
    code = (
        "import sys\n"
        "from cli.main import main\n"
        "main(['--help'])\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "[]"


def test_help_lists_every_variable_and_exit_code(command: Any) -> None:
    result = command("--help")
    assert result.code == 0
    for variable in ("TOPIC_ID", "ALLORA_NETWORK", "DATA_SOURCE", "MODEL", "FEATURES", "STATE_DIR", "LOG_DIR"):
        assert f"[{variable}" in result.out, variable
    for code in range(7):
        assert f"  {code}  " in result.out
    assert max(map(len, result.out.splitlines())) <= 80


@pytest.mark.parametrize("name", ["completion", "data", "doctor", "ledger", "localnet", "model", "train"])
def test_every_command_has_help(command: Any, name: str) -> None:
    result = command(name, "--help")
    assert result.code == 0, result.err
    assert "Usage: forecastd" in result.out


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--nonsense",),
        ("nonsense",),
        ("--once", "--topic-id", "zero"),
        ("--once", "--topic-id", "0"),
        ("--once", "--network", "moon"),
        ("--once", "--as-of", "yesterday"),
        ("--topic-id", "1", "train"),
        ("--once", "train"),
    ],
)
def test_wrong_usage_exits_2_with_reason(command: Any, arguments: tuple[str, ...]) -> None:
    result = command(*arguments)
    assert result.code == 2
    assert "Error: " in result.err
    assert "Traceback" not in result.err
    assert result.out == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(command: Any, shell: str) -> None:
    result = command("completion", shell)
    assert result.code == 0
    assert "_FORECASTD_COMPLETE" in result.out


def test_version_is_printed(command: Any) -> None:
    assert command("--version").out.startswith("forecastd 0.")


UNEXPECTED_ERROR = """
import sys
from cli import main
def explode(*_: object, **__: object) -> None:
    raise RuntimeError("boom")
main.command.callback = explode
sys.argv = ["forecastd", *sys.argv[1:]]
"""


def test_unexpected_error_is_one_line_and_exits_1(root: Path) -> None:
    code = UNEXPECTED_ERROR + "main.run()"
    result = subprocess.run(
        [sys.executable, "-c", code, "--once"], cwd=root, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr == "Unforeseen error: RuntimeError: boom. Run again with -v for the traceback.\n"
