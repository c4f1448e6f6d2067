"""The command line itself: cheap help, usage errors, completion."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import main

Capture = pytest.CaptureFixture[str]

HEAVY = (
    "torch",
    "lightning",
    "pytorch_forecasting",
    "pandas",
    "numpy",
    "google.protobuf",
    "grpc",
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


def test_help_lists_every_variable_and_exit_code(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    output = capsys.readouterr().out
    for variable in ("TOPIC_ID", "ALLORA_NETWORK", "DATA_SOURCE", "MODEL", "FEATURES", "STATE_DIR", "LOG_DIR"):
        assert f"[{variable}" in output, variable
    for code in range(7):
        assert f"  {code}  " in output
    assert max(map(len, output.splitlines())) <= 80


@pytest.mark.parametrize("name", ["completion", "data", "doctor", "ledger", "localnet", "model", "train"])
def test_every_command_has_help(name: str, capsys: Capture) -> None:
    assert main([name, "--help"]) == 0
    assert "Usage: forecastd" in capsys.readouterr().out


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
def test_wrong_usage_exits_2_with_reason(arguments: tuple[str, ...], capsys: Capture) -> None:
    assert main([*arguments]) == 2
    output = capsys.readouterr()
    assert "Error: " in output.err
    assert "Traceback" not in output.err
    assert output.out == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(shell: str, capsys: Capture) -> None:
    assert main(["completion", shell]) == 0
    assert "_FORECASTD_COMPLETE" in capsys.readouterr().out


def test_version_is_printed(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("forecastd 0.")


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
    assert result.stderr == "Unexpected error: RuntimeError: boom. Run again with -v for the traceback.\n"
