"""Logging as a process sets it up: what is on the console, what in the file, what nobody caught, and what is hidden."""

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


class Ran(NamedTuple):
    code: int
    console: list[str]
    file: str


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "logs"


def run(directory: Path, program: str) -> Ran:
    arguments = [sys.executable, "-c", SETUP + program, str(directory)]
    done = subprocess.run(arguments, check=False, capture_output=True, text=True, timeout=120)
    assert done.stdout == ""
    log = directory / "submission.log"
    return Ran(done.returncode, done.stderr.splitlines(), log.read_text() if log.is_file() else "")


SAID = """
logging.getLogger("urllib3").debug("chatter")
log.debug("a"); log.info("b"); log.warning("c")
try:
    int("x")
except ValueError:
    log.exception("No number.")
"""


def test_the_console_is_brief_and_the_file_tells_everything(directory: Path) -> None:
    ran = run(directory, "configure(directory, verbose=False)" + SAID)
    assert ran.console == ["WARNING: c", "ERROR: No number. (ValueError: invalid literal for int() with base 10: 'x')"]
    heads = [line.split()[1] for line in ran.file.splitlines() if not line.startswith(" ")]
    assert heads == ["DEBUG", "DEBUG", "INFO", "WARNING", "ERROR"]
    assert "  Traceback (most recent call last):\n" in ran.file
    assert "forecastd.test:<module>:" in ran.file
    assert "chatter" not in ran.file


def test_a_daemon_s_console_tells_info_with_the_time(directory: Path) -> None:
    ran = run(directory, "configure(directory, verbose=False, console=logging.INFO, times=True)" + SAID)
    assert [line.split()[1:] for line in ran.console[:2]] == [["INFO", "b"], ["WARNING", "c"]]
    assert all(line[:2] == "20" and line[23] == "Z" for line in ran.console)


def test_verbose_tells_everything_on_the_console_too(directory: Path) -> None:
    ran = run(directory, "configure(directory, verbose=True)" + SAID)
    assert ran.console[1:5] == ["DEBUG: a", "INFO: b", "WARNING: c", "ERROR: No number."]
    assert ran.console[5] == "  Traceback (most recent call last):"


def test_in_json_every_line_of_file_and_console_parses(directory: Path) -> None:
    ran = run(directory, "configure(directory, verbose=False, json=True)" + SAID)
    assert [json.loads(line)["message"].split(".")[0] for line in ran.console] == ["c", "No number"]
    told = [json.loads(line) for line in ran.file.splitlines()]
    assert [one["level"] for one in told] == ["DEBUG", "DEBUG", "INFO", "WARNING", "ERROR"]
    assert "Traceback" in told[-1]["traceback"]


def test_a_directory_that_cannot_be_written_is_told_once_and_the_program_goes_on(directory: Path) -> None:
    directory.write_text("a file where the directory should be")
    ran = run(directory, "configure(directory, verbose=False)" + SAID)
    assert ran.code == 0
    assert ran.console[0].startswith(f"WARNING: Cannot write the log {directory / 'submission.log'} (")
    assert [line.split()[0] for line in ran.console[1:]] == ["WARNING:", "ERROR:"]


def test_what_is_told_of_the_file_is_in_the_file_when_it_is_back(directory: Path) -> None:
    program = """
configure(directory, verbose=False)
directory.rename(directory.with_name("away")); directory.write_text("in the way")
log.info("lost"); directory.unlink()
reopen(); log.info("back")
"""
    ran = run(directory, program)
    first, second, *more = ran.file.splitlines()
    assert first.endswith(" back")
    assert "Writing the log" in second
    assert "the 2 lines before this one" in second  # the one, and that it was lost
    assert more == []
    assert len(ran.console) == 2


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
def test_what_nobody_caught_is_logged_with_its_traceback_and_without_the_secret(
    directory: Path, *, verbose: bool
) -> None:
    ran = run(directory, f"configure(directory, verbose={verbose}, secrets=[KEY])" + UNCAUGHT)
    assert ran.code == 1
    everything = "\n".join(ran.console) + ran.file
    assert KEY[:16] not in everything
    critical = [line for line in ran.console if line.startswith("CRITICAL: ")]
    assert len(critical) == 3
    assert "poller" in critical[0]
    assert "Bad.__del__" in ran.file
    assert (len(ran.console) > 3) == verbose
    for words in (
        "KeyError: '*****'",
        "OSError: in a thread, *****",
        "ValueError: in a finalizer, *****",
        "RuntimeError: half *****",
    ):
        assert words in ran.file


def test_an_interrupt_is_no_unforeseen_error(directory: Path) -> None:
    ran = run(directory, "configure(directory, verbose=False); install_hooks(); raise KeyboardInterrupt")
    assert ran.console == ["WARNING: Interrupted."]


def test_a_line_that_cannot_be_formatted_is_told_without_its_arguments_and_raises_nothing(directory: Path) -> None:
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
    ran = run(directory, program)
    assert ran.code == 0
    assert ran.console[:4] == [
        "WARNING: This line cannot be formatted (TypeError): '%d of them'",
        "WARNING: This line cannot be formatted (ZeroDivisionError): 'it is %s'",
        "WARNING: This line cannot be formatted (ZeroDivisionError): ''",
        "WARNING: This line cannot be formatted (RecursionError): 'deep: %s'",
    ]
    assert KEY not in ran.file
    assert "Strange." in ran.file


def test_what_is_hidden_later_is_hidden_and_stays_so_when_logging_is_set_up_again(directory: Path) -> None:
    program = """
configure_console(verbose=False, secrets=[None or ""])
hide(KEY)
configure(directory, verbose=False, secrets=["another-secret-of-19"])
configure(directory, verbose=False)
log.warning("it was %s, %s", KEY, "another-secret-of-19")
assert redacted("x" + KEY) == "x*****"
"""
    ran = run(directory, program)
    assert ran.console == ["WARNING: it was *****, *****"]
    assert ran.file.count("it was *****, *****") == 1


def test_many_set_ups_leave_nothing_open(directory: Path) -> None:
    program = """
for _ in range(3):
    configure(directory, verbose=False)
before = len(os.listdir("/proc/self/fd"))
for _ in range(20):
    configure(directory, verbose=False)
assert len(os.listdir("/proc/self/fd")) == before
"""
    assert run(directory, program).code == 0


def test_logging_imports_nothing_heavy(directory: Path) -> None:
    program = """
heavy = {"pydantic", "requests", "numpy", "click", "rich", "asyncio", "urllib.request", "ssl"} & set(sys.modules)
assert not heavy, heavy
"""
    ran = run(directory, program)
    assert ran.code == 0, ran.console
