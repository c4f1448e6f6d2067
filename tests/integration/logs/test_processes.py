"""Several processes that share a log file by mistake: every line is complete and in order, and rotated files are full."""

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
configure(directory, verbose=False, max_bytes=size, backup_count=400, json=json)
log = logging.getLogger("writer")
print("ready", flush=True)
sys.stdin.readline()
for number in range(count):
    log.info("line %s %d %s", name, number, "x" * (number % 7 * 40))
print("done", flush=True)
sys.stdin.readline()
"""
StartWriter = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start_writer(tmp_path: Path) -> Iterator[StartWriter]:
    started: list[subprocess.Popen[str]] = []

    def make(name: str, count: int, size: int, form: str = "text") -> subprocess.Popen[str]:
        arguments = [sys.executable, "-c", WRITER, name, str(tmp_path), str(count), str(size), form]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(arguments, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        wait_for_word(started[-1], "ready")
        return started[-1]

    yield make
    for process in started:
        process.kill()
        process.communicate()


def wait_for_word(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() == word


def release(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def wait_for_exit(process: subprocess.Popen[str]) -> None:
    """Check that the process exits with 0 and wrote nothing to the console."""
    wait_for_word(process, "done")
    assert process.communicate("\n", timeout=120) == ("", "")
    assert process.returncode == 0


def files(directory: Path) -> list[Path]:
    """The log files, oldest first."""
    paths = [path for path in directory.iterdir() if path.name.startswith("submission.log")]
    return sorted(paths, key=lambda path: -int(path.suffix[1:] if path.suffix != ".log" else 0))


def line_numbers(directory: Path) -> dict[str, list[int]]:
    """The line numbers of each writer, in the order of the files. An incomplete line fails here."""
    numbers = defaultdict(list)
    for path in files(directory):
        for line in path.read_text().splitlines():
            if " writer:" in line:
                _, name, number, *padding = line[line.index("line ") :].split()
                assert padding == (["x" * (int(number) % 7 * 40)] if int(number) % 7 else [])
                numbers[name].append(int(number))
            else:
                assert "Logging to" in line, line
    return numbers


def test_two_processes_share_a_file_through_rollovers(start_writer: StartWriter, tmp_path: Path) -> None:
    size, count = 20_000, 2500
    writers = [start_writer(name, count, size) for name in ("a", "b")]
    for process in writers:
        release(process)
    for process in writers:
        wait_for_exit(process)
    assert line_numbers(tmp_path) == {"a": list(range(count)), "b": list(range(count))}
    *old, _ = files(tmp_path)
    assert len(old) > 10
    # If a file was renamed twice, the next file was renamed before it was full.
    longest = max(len(line) for path in old for line in path.read_bytes().splitlines(keepends=True))
    assert all(path.stat().st_size > size - longest for path in old)
    assert [path.suffix for path in old] == [f".{number}" for number in range(len(old), 0, -1)]


def test_json_lines_of_two_processes_parse(start_writer: StartWriter, tmp_path: Path) -> None:
    writers = [start_writer(name, 1000, 20_000, "json") for name in ("a", "b")]
    for process in writers:
        release(process)
    for process in writers:
        wait_for_exit(process)
    records = [json.loads(line) for path in files(tmp_path) for line in path.read_text().splitlines()]
    assert sum(record["logger"] == "writer" for record in records) == 2000
    assert len({record["process"] for record in records}) == 2


def test_repeated_renames_under_two_processes_lose_no_line(start_writer: StartWriter, tmp_path: Path) -> None:
    count, log = 2500, tmp_path / "submission.log"
    writers = [start_writer(name, count, 10**9) for name in ("a", "b")]
    for process in writers:
        release(process)
    renamed = 0
    outputs = [process.stdout for process in writers if process.stdout is not None]
    while len(select.select(outputs, [], [], 0.002)[0]) < 2 or not renamed:
        if log.exists():
            renamed += 1
            log.rename(tmp_path / f"submission.log.{100_000 - renamed}")
        if renamed % 5 == 0:
            log.touch()
    for process in writers:
        wait_for_exit(process)
    assert line_numbers(tmp_path) == {"a": [*range(count)], "b": [*range(count)]}


@pytest.mark.parametrize("kind", [fcntl.LOCK_SH, fcntl.LOCK_EX])
def test_stopped_lock_holder_does_not_block_another_process(
    start_writer: StartWriter, tmp_path: Path, kind: int
) -> None:
    process = start_writer("a", 300, 5000)
    with (tmp_path / "submission.log").open() as stopped:
        fcntl.flock(stopped, kind)
        release(process)
        wait_for_exit(process)
    assert line_numbers(tmp_path) == {"a": [*range(300)]}
    assert len(files(tmp_path)) == 1  # it could not be rotated, so it grew


def test_killed_writer_does_not_affect_another_process(start_writer: StartWriter, tmp_path: Path) -> None:
    killed, other = start_writer("a", 20_000, 20_000), start_writer("b", 2000, 20_000)
    release(killed)
    release(other)
    wait_for_word(other, "done")
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    late = start_writer("late", 500, 20_000)
    release(late)
    wait_for_exit(late)
    numbers = line_numbers(tmp_path)
    assert numbers["b"] == [*range(2000)]
    assert numbers["late"] == [*range(500)]
    assert numbers["a"] == [*range(len(numbers["a"]))]
