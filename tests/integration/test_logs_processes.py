"""Several processes with one log file, by mistake: every line is there, whole, in order, and old files were full files."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

WRITER = """
import logging, sys
from pathlib import Path
from forecastd.logs import configure

name, directory, count, size, json = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "json"
configure(directory, verbose=False, max_bytes=size, backups=400, json=json)
log = logging.getLogger("writer")
print("ready", flush=True)
sys.stdin.readline()
for number in range(count):
    log.info("line %s %d %s", name, number, "x" * (number % 7 * 40))
print("done", flush=True)
sys.stdin.readline()
"""
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def make(name: str, count: int, size: int, form: str = "text") -> subprocess.Popen[str]:
        arguments = [sys.executable, "-c", WRITER, name, str(tmp_path), str(count), str(size), form]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(arguments, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        expect(started[-1], "ready")
        return started[-1]

    yield make
    for process in started:
        process.kill()
        process.communicate()


def expect(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() == word


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def ended(process: subprocess.Popen[str]) -> None:
    """It wrote nothing to the console and ended well."""
    expect(process, "done")
    assert process.communicate("\n", timeout=120) == ("", "")
    assert process.returncode == 0


def files(directory: Path) -> list[Path]:
    """Oldest first."""
    found = [one for one in directory.iterdir() if one.name.startswith("submission.log")]
    return sorted(found, key=lambda one: -int(one.suffix[1:] if one.suffix != ".log" else 0))


def numbers(directory: Path) -> dict[str, list[int]]:
    """What each writer wrote, in the order of the files. A line that is not whole fails here."""
    told = defaultdict(list)
    for one in files(directory):
        for line in one.read_text().splitlines():
            if " writer:" in line:
                _, name, number, *more = line[line.index("line ") :].split()
                assert more == (["x" * (int(number) % 7 * 40)] if int(number) % 7 else [])
                told[name].append(int(number))
            else:
                assert "Logging to" in line, line
    return told


def test_two_processes_share_a_file_through_many_roll_overs(start: Start, tmp_path: Path) -> None:
    size, count = 20_000, 2500
    both = [start(name, count, size) for name in ("a", "b")]
    for process in both:
        go(process)
    for process in both:
        ended(process)
    assert numbers(tmp_path) == {"a": list(range(count)), "b": list(range(count))}
    *old, _ = files(tmp_path)
    assert len(old) > 10
    # A file that was renamed twice would be followed by one that was renamed before it was full.
    longest = max(len(line) for one in old for line in one.read_bytes().splitlines(keepends=True))
    assert all(one.stat().st_size > size - longest for one in old)
    assert [one.suffix for one in old] == [f".{number}" for number in range(len(old), 0, -1)]


def test_in_json_every_line_of_two_processes_parses(start: Start, tmp_path: Path) -> None:
    both = [start(name, 1000, 20_000, "json") for name in ("a", "b")]
    for process in both:
        go(process)
    for process in both:
        ended(process)
    told = [json.loads(line) for one in files(tmp_path) for line in one.read_text().splitlines()]
    assert sum(one["logger"] == "writer" for one in told) == 2000
    assert len({one["process"] for one in told}) == 2


def test_renaming_the_file_again_and_again_under_two_processes_costs_no_line(start: Start, tmp_path: Path) -> None:
    count, log = 2500, tmp_path / "submission.log"
    both = [start(name, count, 10**9) for name in ("a", "b")]
    for process in both:
        go(process)
    renamed = 0
    outputs = [process.stdout for process in both if process.stdout is not None]
    while len(select.select(outputs, [], [], 0.002)[0]) < 2 or not renamed:
        if log.exists():
            renamed += 1
            log.rename(tmp_path / f"submission.log.{100_000 - renamed}")
        if renamed % 5 == 0:
            log.touch()
    for process in both:
        ended(process)
    assert numbers(tmp_path) == {"a": [*range(count)], "b": [*range(count)]}


@pytest.mark.parametrize("kind", [fcntl.LOCK_SH, fcntl.LOCK_EX])
def test_a_process_that_stopped_with_the_lock_in_its_hands_stops_no_other(
    start: Start, tmp_path: Path, kind: int
) -> None:
    process = start("a", 300, 5000)
    with (tmp_path / "submission.log").open() as stopped:
        fcntl.flock(stopped, kind)
        go(process)
        ended(process)
    assert numbers(tmp_path) == {"a": [*range(300)]}
    assert len(files(tmp_path)) == 1  # it could not be rolled over, and grew


def test_a_process_that_is_killed_while_it_writes_costs_the_other_nothing(start: Start, tmp_path: Path) -> None:
    killed, other = start("a", 20_000, 20_000), start("b", 2000, 20_000)
    go(killed)
    go(other)
    expect(other, "done")
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    late = start("late", 500, 20_000)
    go(late)
    ended(late)
    told = numbers(tmp_path)
    assert told["b"] == [*range(2000)]
    assert told["late"] == [*range(500)]
    assert told["a"] == [*range(len(told["a"]))]
