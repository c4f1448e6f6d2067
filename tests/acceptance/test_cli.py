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
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_help_names_the_variable_of_every_setting_and_every_exit_code(command: Any) -> None:
    done = command("--help")
    assert done.code == 0
    for variable in ("TOPIC_ID", "ALLORA_NETWORK", "DATA_SOURCE", "MODEL", "FEATURES", "STATE_DIR", "LOG_DIR"):
        assert f"[{variable}" in done.out, variable
    for code in range(7):
        assert f"  {code}  " in done.out
    assert max(map(len, done.out.splitlines())) <= 80


@pytest.mark.parametrize("name", ["completion", "data", "doctor", "ledger", "localnet", "model", "train"])
def test_every_command_explains_itself(command: Any, name: str) -> None:
    done = command(name, "--help")
    assert done.code == 0, done.err
    assert "Usage: forecastd" in done.out


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
def test_wrong_usage_ends_with_two_and_says_what_is_wrong(command: Any, arguments: tuple[str, ...]) -> None:
    done = command(*arguments)
    assert done.code == 2
    assert "Error: " in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(command: Any, shell: str) -> None:
    done = command("completion", shell)
    assert done.code == 0
    assert "_FORECASTD_COMPLETE" in done.out


def test_the_version_is_told(command: Any) -> None:
    assert command("--version").out.startswith("forecastd 0.")


UNFORESEEN = """
import sys
from cli import main
def explode(*_: object, **__: object) -> None:
    raise RuntimeError("boom")
main.command.callback = explode
sys.argv = ["forecastd", *sys.argv[1:]]
"""


def test_an_unforeseen_error_is_one_line_and_ends_with_one(root: Path) -> None:
    code = UNFORESEEN + "main.run()"
    done = subprocess.run([sys.executable, "-c", code, "--once"], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "Unforeseen error: RuntimeError: boom. Run again with -v for the traceback.\n"
