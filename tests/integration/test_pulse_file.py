"""The daemon's own file, beside a process that lives, one that died, and one that only has its number."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from forecastd.errors import NeedsHuman
from forecastd.pulse import Pulse, TopicPulse
from forecastd.pulsefile import NAME, PulseFile, Seen, birth_of, read_pulse
from forecastd.wholefile import write_whole

NOW = 1_790_000_000.0
PULSE = Pulse(os.getpid(), NOW, NOW, 0.0, "daemon", "running", "local", topics=(TopicPulse(67, "allo1abc"),))


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits until it is let go."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def put(directory: Path, pulse: Pulse) -> None:
    (directory / NAME).write_bytes(pulse.as_text())


def test_what_this_process_wrote_is_read_as_alive_and_private(tmp_path: Path) -> None:
    PulseFile(tmp_path / "state").write(PULSE)
    assert read_pulse(tmp_path / "state") == Seen(replace(PULSE, birth=birth_of(os.getpid())), alive=True)
    assert stat.S_IMODE((tmp_path / "state" / NAME).stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "state").iterdir()] == [NAME]


def test_where_no_daemon_ever_ran_there_is_nothing(tmp_path: Path) -> None:
    assert read_pulse(tmp_path) is None
    assert read_pulse(tmp_path / "none") is None


def test_a_process_that_was_killed_is_gone_before_and_after_it_is_waited_for(
    tmp_path: Path, other: subprocess.Popen[bytes]
) -> None:
    put(tmp_path, replace(PULSE, pid=other.pid, birth=birth_of(other.pid)))
    seen = [read_pulse(tmp_path)]
    other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is a zombie
    seen.append(read_pulse(tmp_path))
    other.wait()
    seen.append(read_pulse(tmp_path))
    assert [one and one.alive for one in seen] == [True, False, False]


@pytest.mark.parametrize(
    ("change", "alive"),
    [
        (lambda birth: birth + "0", False),  # the same number, born at another moment
        (lambda birth: birth.replace(birth.partition("/")[0], "0" * 8), False),  # before a reboot
        (lambda birth: birth.replace(birth.split("/")[1], "1"), None),  # in another container
        (lambda _: None, False),
    ],
)
def test_a_number_that_was_given_again_does_not_lie(
    tmp_path: Path, change: Callable[[str], str | None], alive: bool | None
) -> None:
    put(tmp_path, replace(PULSE, birth=change(birth_of(os.getpid()) or "")))
    seen = read_pulse(tmp_path)
    assert seen is not None
    assert seen.alive is alive


def test_a_daemon_that_ended_is_not_alive_even_while_its_process_is(tmp_path: Path) -> None:
    PulseFile(tmp_path).write(replace(PULSE, state="ended"))
    seen = read_pulse(tmp_path)
    assert seen is not None
    assert seen.alive is False


def test_the_processes_of_this_machine_have_births_and_others_have_none() -> None:
    assert birth_of(1) != birth_of(os.getpid())
    assert birth_of(2**22 + 1) is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "makes no sense"),
        ('{"pid": 1', "makes no sense"),
        ("[" * 100_000, "makes no sense"),
        ('{"hello": "there"}', "makes no sense"),
        (json.dumps({"version": 99, "pid": 1}), "another release: its file has version 99"),
        (json.dumps(PULSE.as_json() | {"version": 2}), "another release: its file has version 2"),
        ("\udc80", "is not text in UTF-8"),
    ],
)
def test_a_file_that_is_none_of_ours_is_told_with_its_fix(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / NAME).write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(NeedsHuman, match=told) as caught:
        read_pulse(tmp_path)
    assert str(tmp_path / NAME) in str(caught.value)


def test_a_named_pipe_in_its_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / NAME)
    with pytest.raises(NeedsHuman, match="no regular file"):
        read_pulse(tmp_path)


def test_a_full_disk_is_told_once_and_again_only_when_it_was_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    full = True

    def failing(path: Path, content: bytes) -> None:
        if full:
            raise NeedsHuman(f"{path} cannot be written: No space left on device.")
        write_whole(path, content)

    monkeypatch.setattr("forecastd.pulsefile.write_whole", failing)
    file = PulseFile(tmp_path)
    for full in (True, True, True, False, False, True, True):  # noqa: B007 - `failing` reads it
        file.write(PULSE)
    told = [record.message for record in caplog.records]
    assert [("No space" in one, "up to date" in one) for one in told] == [(True, False), (False, True), (True, False)]


def test_a_directory_that_cannot_be_made_does_not_fail_the_daemon(caplog: pytest.LogCaptureFixture) -> None:
    PulseFile(Path(os.devnull) / "state").write(PULSE)
    assert "cannot be written" in caplog.text
