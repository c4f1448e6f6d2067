"""Logging in a process: the console, the file, uncaught exceptions, and hidden secrets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

KEY = "8f3c51d0a9e24b7796c0ffee12ab34cd56ef7890"
SETUP = f"""
import gc, logging, os, sys, threading
from pathlib import Path
from forecastd.logs import configure, configure_console, hide, install_hooks, redacted, reopen

directory, KEY = Path(sys.argv[1]), "{KEY}"
log = logging.getLogger("forecastd.test")
"""


class RunResult(NamedTuple):
    code: int
    console: list[str]
    file: str


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "logs"


def run_program(directory: Path, program: str) -> RunResult:
    arguments = [sys.executable, "-c", SETUP + program, str(directory)]
    completed = subprocess.run(arguments, check=False, capture_output=True, text=True, timeout=120)
    assert completed.stdout == ""
    log = directory / "submission.log"
    return RunResult(completed.returncode, completed.stderr.splitlines(), log.read_text() if log.is_file() else "")


MESSAGES = """
logging.getLogger("urllib3").debug("chatter")
log.debug("a"); log.info("b"); log.warning("c")
try:
    int("x")
except ValueError:
    log.exception("No number.")
"""


def test_console_is_brief_and_file_is_complete(directory: Path) -> None:
    result = run_program(directory, "configure(directory, verbose=False)" + MESSAGES)
    assert result.console == [
        "WARNING: c",
        "ERROR: No number. (ValueError: invalid literal for int() with base 10: 'x')",
    ]
    heads = [line.split()[1] for line in result.file.splitlines() if not line.startswith(" ")]
    assert heads == ["DEBUG", "DEBUG", "INFO", "WARNING", "ERROR"]
    assert "  Traceback (most recent call last):\n" in result.file
    assert "forecastd.test:<module>:" in result.file
    assert "chatter" not in result.file


def test_daemon_console_shows_info_with_timestamps(directory: Path) -> None:
    result = run_program(
        directory, "configure(directory, verbose=False, console_level=logging.INFO, timestamps=True)" + MESSAGES
    )
    assert [line.split()[1:] for line in result.console[:2]] == [["INFO", "b"], ["WARNING", "c"]]
    assert all(line[:2] == "20" and line[23] == "Z" for line in result.console)


def test_verbose_console_shows_everything(directory: Path) -> None:
    result = run_program(directory, "configure(directory, verbose=True)" + MESSAGES)
    assert result.console[1:5] == ["DEBUG: a", "INFO: b", "WARNING: c", "ERROR: No number."]
    assert result.console[5] == "  Traceback (most recent call last):"


def test_json_lines_of_file_and_console_parse(directory: Path) -> None:
    result = run_program(directory, "configure(directory, verbose=False, json=True)" + MESSAGES)
    assert [json.loads(line)["message"].split(".")[0] for line in result.console] == ["c", "No number"]
    records = [json.loads(line) for line in result.file.splitlines()]
    assert [record["level"] for record in records] == ["DEBUG", "DEBUG", "INFO", "WARNING", "ERROR"]
    assert "Traceback" in records[-1]["traceback"]


def test_unwritable_directory_is_reported_once_and_the_program_continues(directory: Path) -> None:
    directory.write_text("a file where the directory should be")
    result = run_program(directory, "configure(directory, verbose=False)" + MESSAGES)
    assert result.code == 0
    assert result.console[0].startswith(f"WARNING: Cannot write the log {directory / 'submission.log'} (")
    assert [line.split()[0] for line in result.console[1:]] == ["WARNING:", "ERROR:"]


def test_file_notices_are_written_when_the_file_returns(directory: Path) -> None:
    program = """
configure(directory, verbose=False)
directory.rename(directory.with_name("away")); directory.write_text("in the way")
log.info("lost"); directory.unlink()
reopen(); log.info("back")
"""
    result = run_program(directory, program)
    first, second, *more = result.file.splitlines()
    assert first.endswith(" back")
    assert "Writing the log" in second
    assert "lacks 2 lines before this one" in second  # the dropped line and its notice
    assert more == []
    assert len(result.console) == 2


UNCAUGHT = """
install_hooks()
class Bad:
    def __del__(self):
        raise ValueError("in a finalizer, " + KEY)
def fail():
    try:
        raise KeyError(KEY)
    except KeyError as error:
        raise OSError("in a thread, " + KEY) from error
thread = threading.Thread(target=fail, name="poller")
thread.start(); thread.join()
threading.Thread(target=sys.exit).start()
Bad()
raise ExceptionGroup("at the end", [RuntimeError("half " + KEY[:20]), ValueError(KEY)])
"""


@pytest.mark.parametrize("verbose", [False, True])
def test_uncaught_exception_is_logged_with_traceback_and_redacted(directory: Path, *, verbose: bool) -> None:
    result = run_program(directory, f"configure(directory, verbose={verbose}, secrets=[KEY])" + UNCAUGHT)
    assert result.code == 1
    everything = "\n".join(result.console) + result.file
    assert KEY[:16] not in everything
    critical = [line for line in result.console if line.startswith("CRITICAL: ")]
    assert len(critical) == 3
    assert "poller" in critical[0]
    assert "Bad.__del__" in result.file
    assert (len(result.console) > 3) == verbose
    for words in (
        "KeyError: '*****'",
        "OSError: in a thread, *****",
        "ValueError: in a finalizer, *****",
        "RuntimeError: half *****",
    ):
        assert words in result.file


def test_interrupt_is_not_an_unexpected_error(directory: Path) -> None:
    result = run_program(directory, "configure(directory, verbose=False); install_hooks(); raise KeyboardInterrupt")
    assert result.console == ["WARNING: Interrupted."]


def test_unformattable_record_is_logged_without_arguments(directory: Path) -> None:
    program = """
class Bad:
    def __str__(self):
        raise ZeroDivisionError(KEY)
deep = []
for _ in range(100_000):
    deep = [deep]
configure(directory, verbose=False)
log.warning("%d of them", KEY)
log.warning("it is %s", Bad())
log.warning(Bad())
log.warning("deep: %s", deep)
try:
    raise ValueError(Bad())
except ValueError as error:
    error.__cause__ = error
    log.exception("Strange.")
"""
    result = run_program(directory, program)
    assert result.code == 0
    assert result.console[:4] == [
        "WARNING: This line cannot be formatted (TypeError): '%d of them'",
        "WARNING: This line cannot be formatted (ZeroDivisionError): 'it is %s'",
        "WARNING: This line cannot be formatted (ZeroDivisionError): ''",
        "WARNING: This line cannot be formatted (RecursionError): 'deep: %s'",
    ]
    assert KEY not in result.file
    assert "Strange." in result.file


def test_secrets_stay_hidden_after_reconfiguration(directory: Path) -> None:
    program = """
configure_console(verbose=False, secrets=[None or ""])
hide(KEY)
configure(directory, verbose=False, secrets=["another-secret-of-19"])
configure(directory, verbose=False)
log.warning("it was %s, %s", KEY, "another-secret-of-19")
assert redacted("x" + KEY) == "x*****"
"""
    result = run_program(directory, program)
    assert result.console == ["WARNING: it was *****, *****"]
    assert result.file.count("it was *****, *****") == 1


def test_repeated_configuration_leaks_no_descriptor(directory: Path) -> None:
    program = """
for _ in range(3):
    configure(directory, verbose=False)
before = len(os.listdir("/proc/self/fd"))
for _ in range(20):
    configure(directory, verbose=False)
assert len(os.listdir("/proc/self/fd")) == before
"""
    assert run_program(directory, program).code == 0


def test_logging_imports_no_heavy_library(directory: Path) -> None:
    program = """
heavy = {"pydantic", "requests", "numpy", "click", "rich", "asyncio", "urllib.request", "ssl"} & set(sys.modules)
assert not heavy, heavy
"""
    result = run_program(directory, program)
    assert result.code == 0, result.console
