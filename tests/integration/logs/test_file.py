"""The log file when disk, directory or another program interfere: no line is torn, and dropped lines are reported."""

from __future__ import annotations

import itertools
import logging
import os
import pty
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forecastd.logs.file import RETRY_SECONDS, RotatingFile
from forecastd.logs.handler import SinkHandler
from forecastd.testing import ManualClock


class LogClock(ManualClock):
    """A manual clock whose wall time must not be read."""

    def now(self) -> float:
        raise AssertionError("the log file must not read the wall clock")


@pytest.fixture
def clock() -> LogClock:
    return LogClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "submission.log"


@pytest.fixture
def open_file(path: Path, clock: LogClock) -> Iterator[Callable[..., RotatingFile]]:
    opened = []

    def make(log_path: Path = path, max_bytes: int = 1_000_000, backup_count: int = 5) -> RotatingFile:
        opened.append(RotatingFile(log_path, max_bytes=max_bytes, backup_count=backup_count, clock=clock))
        return opened[-1]

    yield make
    for file in opened:
        file.close()


@pytest.fixture
def file(open_file: Callable[..., RotatingFile]) -> RotatingFile:
    return open_file()


def notices(file: RotatingFile) -> list[str]:
    messages = [message % arguments for message, arguments in file.notices]
    file.notices.clear()
    return messages


def advance_past_retry(clock: LogClock) -> None:
    clock.advance(RETRY_SECONDS + 1)


def test_directory_is_created_and_lines_are_appended(file: RotatingFile, path: Path) -> None:
    file.write("one\n")
    file.write("two, žluťoučký \ud800\n")
    assert path.read_text() == "one\ntwo, žluťoučký \\ud800\n"
    assert path.stat().st_mode & 0o007 == 0


def test_full_file_is_rotated_and_the_oldest_deleted(open_file: Callable[..., RotatingFile], path: Path) -> None:
    file = open_file(max_bytes=10, backup_count=2)
    for number in range(8):
        file.write(f"{number:04}\n")
    assert {log_file.name: log_file.read_text() for log_file in path.parent.iterdir()} == {
        "submission.log": "0006\n0007\n",
        "submission.log.1": "0004\n0005\n",
        "submission.log.2": "0002\n0003\n",
    }


def test_line_larger_than_the_limit_is_written_whole(open_file: Callable[..., RotatingFile], path: Path) -> None:
    file = open_file(max_bytes=10)
    for letter in "abc":
        file.write(letter * 50 + "\n")
    assert path.read_text() == "c" * 50 + "\n"
    assert path.with_name("submission.log.2").read_text() == "a" * 50 + "\n"


def test_gap_between_backups_loses_no_file(open_file: Callable[..., RotatingFile], path: Path) -> None:
    path.parent.mkdir()
    for name, text in (("", "newest\n"), (".1", "new\n"), (".3", "old\n"), (".4", "older\n")):
        path.with_name(f"submission.log{name}").write_text(text)
    open_file(max_bytes=5, backup_count=4).write("now\n")
    assert [path.with_name(f"submission.log{name}").read_text() for name in ("", ".1", ".2", ".3", ".4")] == [
        "now\n", "newest\n", "new\n", "old\n", "older\n",
    ]  # fmt: skip


def test_symbolic_link_stays_and_its_target_is_rotated(
    open_file: Callable[..., RotatingFile], path: Path, tmp_path: Path
) -> None:
    path.parent.mkdir()
    path.symlink_to(tmp_path / "elsewhere.log")
    file = open_file(max_bytes=5)
    file.write("one\n")
    file.write("two\n")
    assert path.is_symlink()
    assert (tmp_path / "elsewhere.log").read_text() == "two\n"
    assert (tmp_path / "elsewhere.log.1").read_text() == "one\n"


def test_failed_rollover_is_reported_once_and_the_file_grows(
    open_file: Callable[..., RotatingFile], path: Path, clock: LogClock
) -> None:
    file = open_file(max_bytes=10, backup_count=1)
    (path.parent / "submission.log.1").mkdir(parents=True)
    lines = [f"{number:06}\n" for number in range(20)]
    for line in lines[:10]:
        file.write(line)
    advance_past_retry(clock)
    for line in lines[10:]:
        file.write(line)
    assert path.read_text() == "".join(lines)
    (message,) = notices(file)
    assert "Cannot rotate" in message
    (path.parent / "submission.log.1").rmdir()
    advance_past_retry(clock)
    file.write("new\n")
    assert path.read_text() == "new\n"


@pytest.mark.parametrize("created", [True, False])
def test_logrotate_rename_continues_in_the_new_file(file: RotatingFile, path: Path, *, created: bool) -> None:
    file.write("one\n")
    path.rename(path.with_name("rotated"))
    if created:
        path.touch()
    file.write("two\n")
    assert path.with_name("rotated").read_text() == "one\n"
    assert path.read_text() == "two\n"


def test_logrotate_copytruncate_continues_at_the_beginning(file: RotatingFile, path: Path) -> None:
    file.write("one\n")
    shutil.copy(path, path.with_name("rotated"))
    os.truncate(path, 0)
    file.write("two\n")
    assert path.read_bytes() == b"two\n"


@pytest.mark.parametrize("mode", ["create", "nocreate", "copytruncate"])
def test_real_logrotate_loses_no_line(file: RotatingFile, path: Path, tmp_path: Path, mode: str) -> None:
    program = shutil.which("logrotate", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if program is None:
        pytest.skip("logrotate is not installed")
    configuration = tmp_path / "logrotate.conf"
    configuration.write_text(f"{path} {{\n  rotate 20\n  {mode}\n  su {os.getuid()} {os.getgid()}\n}}\n")
    configuration.chmod(0o600)
    for number in range(10):
        file.write(f"{number}\n")
        subprocess.run([program, "--force", "--state", str(tmp_path / "state"), str(configuration)], check=True)
    file.write("last\n")
    texts = [log_file.read_text() for log_file in path.parent.iterdir()]
    assert sorted("".join(texts).split()) == sorted([*map(str, range(10)), "last"])


def test_removed_directory_is_created_again(file: RotatingFile, path: Path) -> None:
    file.write("one\n")
    shutil.rmtree(path.parent)
    file.write("two\n")
    assert path.read_text() == "two\n"
    assert notices(file) == []


def test_write_failure_is_reported_once_counted_and_retried(file: RotatingFile, path: Path, clock: LogClock) -> None:
    file.write("one\n")
    shutil.rmtree(path.parent)
    path.parent.write_text("a file where the directory was")
    for _ in range(5):
        file.write("lost\n")
    advance_past_retry(clock)
    file.write("lost\n")
    (message,) = notices(file)
    assert message.startswith(f"Cannot write the log {path} (")
    path.parent.unlink()
    file.write("also lost: the next attempt is later\n")
    advance_past_retry(clock)
    file.write("two\n")
    assert path.read_text() == "two\n"
    (message,) = notices(file)
    assert "7 lines" in message
    file.write("three\n")
    assert notices(file) == []


def test_reopen_retries_immediately(file: RotatingFile, path: Path) -> None:
    path.parent.write_text("a file where the directory should be")
    file.write("lost\n")
    path.parent.unlink()
    file.reopen()
    file.write("one\n")
    assert path.read_text() == "one\n"


@pytest.mark.parametrize("kind", ["directory", "pipe", "socket", "full-device", "loop"])
def test_non_file_at_the_path_is_reported_without_blocking(
    file: RotatingFile, path: Path, clock: LogClock, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path.parent.mkdir()
    monkeypatch.chdir(path.parent)
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    else:
        path.symlink_to({"full-device": "/dev/full", "loop": path.name}[kind])
    file.write("lost\n")
    file.write("lost\n")
    assert len(notices(file)) == 1
    shutil.rmtree(path.parent)
    advance_past_retry(clock)
    file.write("one\n")
    assert path.read_text() == "one\n"


def test_full_terminal_at_the_path_does_not_block(file: RotatingFile, path: Path) -> None:
    master, slave = pty.openpty()
    path.parent.mkdir()
    path.symlink_to(os.ttyname(slave))
    for _ in range(3000):
        file.write("x" * 99 + "\n")
    assert len(notices(file)) == 1
    shown = b""
    while b"x\r\nx" not in shown:  # the terminal passes the output on in pieces
        shown += os.read(master, 4096)
    os.close(master)
    os.close(slave)


def test_log_to_dev_null_is_accepted(file: RotatingFile, path: Path) -> None:
    path.parent.mkdir()
    path.symlink_to(os.devnull)
    for _ in range(3):
        file.write("x" * 1_000_001 + "\n")
    assert notices(file) == []
    assert list(path.parent.iterdir()) == [path]


def test_partial_last_line_is_terminated(file: RotatingFile, path: Path) -> None:
    path.parent.mkdir()
    path.write_text("whole\nhal")
    file.write("one\n")
    assert path.read_text() == "whole\nhal\none\n"


def test_reused_descriptor_is_not_written_to(file: RotatingFile, path: Path, tmp_path: Path) -> None:
    file.write("one\n")
    descriptor = next(int(link.name) for link in Path("/proc/self/fd").iterdir() if is_link_to(link, path))
    other = os.open(tmp_path / "ledger", os.O_RDWR | os.O_CREAT)
    os.dup2(other, descriptor)  # closes it and takes its number, whatever other threads open and close
    os.close(other)
    file.write("two\n")
    assert path.read_text() == "one\ntwo\n"
    assert (tmp_path / "ledger").read_text() == ""
    os.close(descriptor)  # raises if the log has closed a descriptor that is not its own


def is_link_to(link: Path, path: Path) -> bool:
    try:
        return link.readlink() == path
    except FileNotFoundError:
        return False  # the descriptor with which the directory was read


LIMITED = """
import resource, sys
from pathlib import Path
from forecastd.clock import SystemClock
from forecastd.logs.file import RotatingFile

hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
file = RotatingFile(Path(sys.argv[1]), max_bytes=10**9, backup_count=5, clock=SystemClock(), retry_seconds=0.0)
for limit in (1000, 1333, 1334, 5000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    for number in range(100):
        file.write(f"{limit} {number:03} {'x' * 40}\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
file.write("end\\n")
"""


def test_partial_write_is_removed(path: Path) -> None:
    subprocess.run([sys.executable, "-c", LIMITED, str(path)], check=True)
    *lines, last = path.read_text().splitlines()
    assert last == "end"
    assert len(lines) > 50
    assert {len(line) for line in lines} <= {48, 49}
    assert {line.split()[0] for line in lines} == {"1000", "1333", "5000"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount, unmount = shutil.which("mount"), shutil.which("umount")
    if mount is None or unmount is None:
        pytest.skip("cannot mount a tmpfs here")
    command = [mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("cannot mount a tmpfs here")
    yield disk
    subprocess.run([unmount, "-l", str(disk)], check=True)


def test_full_disk_drops_lines_until_space_is_free(
    open_file: Callable[..., RotatingFile], small_disk: Path, clock: LogClock
) -> None:
    path = small_disk / "submission.log"
    file = open_file(path)
    (small_disk / "filler").write_bytes(b"\0" * 40_000)
    lines = [f"{number:06} {'x' * 90}\n" for number in range(1000)]
    for line in lines:
        file.write(line)
        clock.advance(RETRY_SECONDS / 10)
    written = path.read_text().splitlines(keepends=True)
    assert written == lines[: len(written)]
    assert 0 < len(written) < 500
    assert len(notices(file)) == 1
    (small_disk / "filler").unlink()
    advance_past_retry(clock)
    file.write("room\n")
    assert path.read_text() == "".join([*written, "room\n"])
    (message,) = notices(file)
    assert f"lacks {1000 - len(written)} lines" in message


def test_threads_share_one_file(path: Path, clock: LogClock) -> None:
    file = RotatingFile(path, max_bytes=3000, backup_count=500, clock=clock)
    handler = SinkHandler(file, logging.Formatter("%(message)s"), logging.DEBUG)

    def work(name: int) -> None:
        for number in range(300):
            handler.handle(logging.makeLogRecord({"msg": f"{name} {number}"}))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handler.close()
    lines = [line for log_file in path.parent.iterdir() for line in log_file.read_text().splitlines()]
    assert sorted(lines) == sorted(f"{name} {number}" for name in range(6) for number in range(300))


STEPS = st.lists(
    st.sampled_from(
        ["write", "write long", "other writes", "rename", "remove", "truncate", "reopen", "block", "free", "wait"]
    ),
    max_size=40,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_any_file_events_keep_lines_whole_and_ordered(
    steps: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("any")
    path, clock, counter = directory / "logs" / "submission.log", LogClock(), itertools.count(1)
    files = [RotatingFile(path, max_bytes=120, backup_count=50, clock=clock) for _ in range(2)]
    names = itertools.count()
    for step in steps:
        if "write" in step:
            file = files[step == "other writes"]
            file.write(f"{next(counter):06}{'y' * 200 if step == 'write long' else ''}\n")
        elif step == "rename" and path.is_file():
            path.rename(directory / f"rotated.{next(names)}")
        elif step == "remove" and path.is_file():
            path.unlink()
        elif step == "truncate" and path.is_file():
            os.truncate(path, 0)
        elif step == "reopen":
            files[0].reopen()
        elif step == "block" and path.parent.is_dir():
            path.parent.rename(directory / f"moved.{next(names)}")
            path.parent.touch()
        elif step == "free" and path.parent.is_file():
            path.parent.unlink()
        elif step == "wait":
            advance_past_retry(clock)
    for file in files:
        file.close()
    for log_file in directory.rglob("*.*"):
        if log_file.is_file():
            numbers = [int(line.rstrip("y")) for line in log_file.read_text().splitlines()]
            assert numbers == sorted(set(numbers))
