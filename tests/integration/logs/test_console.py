"""The console when its reader is slow or gone: lines are dropped and reported, and the worker continues."""

from __future__ import annotations

import io
import os
import pty
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest

from forecastd.logs.console import ConsoleStream

LINE = "x" * 99 + "\n"
OpenConsole = Callable[[TextIO | None], ConsoleStream]


@pytest.fixture
def console() -> Iterator[OpenConsole]:
    opened: list[tuple[ConsoleStream, TextIO | None]] = []

    def make(stream: TextIO | None) -> ConsoleStream:
        opened.append((ConsoleStream(stream), stream))
        return opened[-1][0]

    yield make
    for console_stream, stream in opened:
        console_stream.close()
        if stream is not None:
            stream.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", closefd=True) as stream:
        yield reader, stream
    os.close(reader)


@pytest.fixture
def terminal() -> Iterator[tuple[int, TextIO]]:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream:
        yield master, stream
    os.close(master)


@pytest.fixture
def connection() -> Iterator[tuple[int, TextIO]]:
    """A socket, as systemd's journal provides for a service."""
    reader, writer = socket.socketpair()
    with os.fdopen(writer.detach(), "w") as stream, reader:
        yield reader.fileno(), stream


def notices(console: ConsoleStream) -> list[str]:
    messages = [message % arguments for message, arguments in console.notices]
    console.notices.clear()
    return messages


@pytest.mark.parametrize("kind", ["pipe", "terminal", "connection"])
def test_unread_console_never_blocks_and_keeps_lines_whole(
    console: OpenConsole, request: pytest.FixtureRequest, kind: str
) -> None:
    reader, stream = request.getfixturevalue(kind)
    console_stream = console(stream)
    for number in range(50_000):
        console_stream.write(f"{number:06} {LINE}")
    assert notices(console_stream) == []
    output = bytearray()
    arrived = threading.Event()

    def read() -> None:
        while not (b"the end" in output[-12:] and output.endswith(b"\n")):
            output.extend(os.read(reader, 1 << 16))
            arrived.set()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    dropped: list[str] = []
    while not dropped:
        arrived.clear()
        console_stream.write("")
        dropped += notices(console_stream)
        arrived.wait(0.01)
    console_stream.write("the end\n")
    console_stream.close()
    thread.join()
    *lines, last = output.decode().replace("\r\n", "\n").splitlines(keepends=True)
    assert last == "the end\n"
    assert lines == [f"{number:06} {LINE}" for number in range(len(lines))]
    assert dropped == [f"The console lacks {50_000 - len(lines)} lines: its reader was too slow."]


def test_shared_pipe_stays_blocking(console: OpenConsole, pipe: tuple[int, TextIO]) -> None:
    _, stream = pipe
    console(stream).write(LINE)
    assert os.get_blocking(stream.fileno())


@pytest.mark.parametrize("kind", ["pipe", "terminal", "connection"])
def test_closed_console_reader_is_reported_once(
    console: OpenConsole, request: pytest.FixtureRequest, kind: str
) -> None:
    reader, stream = request.getfixturevalue(kind)
    console_stream = console(stream)
    console_stream.write(LINE)
    spare = os.open(os.devnull, os.O_RDONLY)
    os.dup2(spare, reader)  # closes the reader and keeps the number for the fixture
    os.close(spare)
    for _ in range(1000):
        console_stream.write(LINE)
    (message,) = notices(console_stream)
    assert message.startswith("Cannot write to the console (")


def test_console_file_keeps_other_output_and_survives_a_full_disk(console: OpenConsole, tmp_path: Path) -> None:
    with (tmp_path / "nohup.out").open("w") as stream:
        console_stream = console(stream)
        os.write(stream.fileno(), b"other\n")
        console_stream.write("log\n")
        os.write(stream.fileno(), b"other\n")
        assert (tmp_path / "nohup.out").read_text() == "other\nlog\nother\n"
    full = console(Path("/dev/full").open("w"))  # noqa: SIM115 - closed by the fixture
    for _ in range(100):
        full.write(LINE)
    (message,) = notices(full)
    assert "No space left" in message


def test_console_without_descriptor_is_written_directly(console: OpenConsole) -> None:
    stream = io.StringIO()
    console_stream = console(stream)
    console_stream.write("a\n")
    assert stream.getvalue() == "a\n"
    stream.close()
    console_stream.write("b\n")
    console_stream.write("c\n")
    assert len(notices(console_stream)) == 1


def test_missing_console_is_accepted(console: OpenConsole) -> None:
    console_stream = console(None)
    console_stream.write("a\n")
    assert notices(console_stream) == []


def test_unencodable_character_is_escaped(console: OpenConsole, tmp_path: Path) -> None:
    stream = (tmp_path / "out").open("w", encoding="ascii")
    console(stream).write("7 °C 📈\n")
    assert (tmp_path / "out").read_text() == "7 \\xb0C \\U0001f4c8\n"


LIMITED = """
import resource, sys
from forecastd.logs.console import ConsoleStream

hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
console = ConsoleStream(sys.stderr)
for limit in (1010, 2000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    for _ in range(50):
        console.write("x" * 99 + "\\n")
"""


def test_line_cut_by_a_full_disk_is_terminated(tmp_path: Path) -> None:
    with (tmp_path / "nohup.out").open("a") as stream:
        subprocess.run([sys.executable, "-c", LIMITED], stderr=stream, check=True, timeout=120)
    whole = [LINE.rstrip()] * 10
    assert (tmp_path / "nohup.out").read_text().splitlines()[:20] == [*whole, "x" * 10, *whole[:9]]


CHILD = """
import logging, os, sys
from pathlib import Path
from forecastd.logs import configure

configure(Path(sys.argv[1]), verbose=False)
logging.getLogger("x").warning("first")
ledger = os.open(Path(sys.argv[1]) / "ledger", os.O_RDWR | os.O_CREAT)
sys.stdin.readline()
for number in range(3000):
    logging.getLogger("x").warning("line %d %s", number, "x" * 90)
os.write(1, b"from a library")
assert os.fstat(ledger).st_size == 0 and ledger > 2
"""


@pytest.mark.parametrize("read", [True, False])
def test_process_with_closed_reader_logs_to_file_and_exits_cleanly(tmp_path: Path, *, read: bool) -> None:
    arguments = [sys.executable, "-c", CHILD, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, stdin=pipe, stdout=subprocess.DEVNULL, stderr=pipe) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        if read:
            assert process.stderr.readline() == b"WARNING: first\n"
        process.stderr.close()
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.wait(120) == 0
    log = (tmp_path / "submission.log").read_text()
    assert log.count(" line ") == 3000
    assert log.count("Cannot write to the console (Broken pipe)") == 1


@pytest.mark.parametrize("streams", ["2>&-", ">&- 2>&-", "2>/dev/full"])
def test_process_without_console_logs_to_file_and_exits_cleanly(tmp_path: Path, streams: str) -> None:
    script = f'echo | "$0" -c "$1" "$2" {streams}'
    arguments = ["/bin/sh", "-c", script, sys.executable, CHILD, str(tmp_path)]
    assert subprocess.run(arguments, check=False, timeout=120, stdout=subprocess.DEVNULL).returncode == 0
    log = (tmp_path / "submission.log").read_text()
    assert log.count(" line ") == 3000
    assert log.count("Cannot write to the console") == (1 if "full" in streams else 0)


def test_process_with_closed_standard_streams_keeps_descriptors_reserved(tmp_path: Path) -> None:
    script = '"$0" -c "$1" "$2" <&- >&- 2>&-'
    child = CHILD.replace("sys.stdin.readline()", "")
    subprocess.run(["/bin/sh", "-c", script, sys.executable, child, str(tmp_path)], check=True, timeout=120)
    assert (tmp_path / "submission.log").read_text().count(" line ") == 3000
