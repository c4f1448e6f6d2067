"""The program under a real supervisord, with a fake worker that exits like the daemon."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

FAKE_WORKER = f"""#!{sys.executable} -I
import os, signal, sys, threading
ended = threading.Event()
codes = [0]

def end(code):
    codes.append(code)
    ended.set()

signal.signal(signal.SIGTERM, lambda *_: end(0))
signal.signal(signal.SIGUSR1, lambda *_: end(6))
signal.signal(signal.SIGUSR2, lambda *_: end(0))
print("up", os.getpid(), os.getcwd(), sys.argv[1:], format(os.umask(0), "03o"), flush=True)
ended.wait()
print("summary of", os.getpid(), file=sys.stderr, flush=True)
sys.exit(codes[-1])
"""


@pytest.fixture
def fake_worker(tmp_path: Path) -> Path:
    """Runs until a signal: SIGTERM and SIGUSR2 exit with code 0, SIGUSR1 with code 6."""
    return executable(tmp_path / "fake-worker", FAKE_WORKER)


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o700)
    return path


def test_supervisord_starts_stops_restarts_and_tails(
    supervisord: Any, fake_worker: Path, root: Path, tmp_path: Path
) -> None:
    supervisord.add(tmp_path, "--state-dir", "/a-b+c", python=fake_worker)
    supervisord.wait_until(lambda: supervisord.state == "RUNNING" and "up" in supervisord.output)
    first = supervisord.pid
    words = [str(root / "submit_prediction.py"), "--daemon", "--state-dir", "/a-b+c"]
    assert f"up {first} {tmp_path} {words} 077\n" in supervisord.output

    assert "stopped" in supervisord.ctl("stop", supervisord.NAME).out
    assert supervisord.ctl("status", supervisord.NAME).out.split()[:2] == [supervisord.NAME, "STOPPED"]
    assert supervisord.ctl("tail", supervisord.NAME).out.rstrip() == supervisord.output.rstrip()
    assert f"summary of {first}\n" in supervisord.output

    assert "started" in supervisord.ctl("start", supervisord.NAME).out
    second = supervisord.pid
    supervisord.wait_until(lambda: f"up {second} " in supervisord.output)
    assert "started" in supervisord.ctl("restart", supervisord.NAME).out
    third = supervisord.pid
    supervisord.wait_until(lambda: f"up {third} " in supervisord.output)
    assert len({first, second, third, 0}) == 4
    assert f"summary of {second}\n" in supervisord.output


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGHUP, signal.SIGUSR1])
def test_supervisord_restarts_after_unclean_exit(
    supervisord: Any, fake_worker: Path, tmp_path: Path, how: signal.Signals
) -> None:
    supervisord.add(tmp_path, python=fake_worker)
    supervisord.wait_until(lambda: supervisord.state == "RUNNING" and "up" in supervisord.output)
    first = supervisord.pid
    os.kill(first, how)
    supervisord.wait_until(lambda: supervisord.output.count("up ") == 2)
    assert supervisord.pid not in {first, 0}


def test_supervisord_does_not_restart_after_clean_exit(supervisord: Any, fake_worker: Path, tmp_path: Path) -> None:
    supervisord.add(tmp_path, python=fake_worker)
    supervisord.wait_until(lambda: supervisord.state == "RUNNING" and "up" in supervisord.output)
    os.kill(supervisord.pid, signal.SIGUSR2)
    supervisord.wait_until(lambda: supervisord.state == "EXITED")
    assert "exit status 0; expected" in supervisord.log
    assert supervisord.output.count("up ") == 1


def test_supervisord_restarts_fleet_after_any_exit(
    supervisord: Any, fake_worker: Path, root: Path, tmp_path: Path
) -> None:
    supervisord.add(tmp_path, "--state-dir", "/a-b+c", python=fake_worker, fleet=True)
    supervisord.wait_until(lambda: supervisord.state == "RUNNING" and "up" in supervisord.output)
    first = supervisord.pid
    words = [str(root / "submit_prediction.py"), "fleet", "serve", "--state-dir", "/a-b+c"]
    assert f"up {first} {tmp_path} {words} 077\n" in supervisord.output
    os.kill(first, signal.SIGUSR2)  # code 0
    supervisord.wait_until(lambda: supervisord.output.count("up ") == 2)
    assert supervisord.pid not in {first, 0}
    assert "stopped" in supervisord.ctl("stop", "forecastd-fleet").out
    assert supervisord.state == "STOPPED"


def test_supervisord_failing_start_is_retried_with_backoff(supervisord: Any, tmp_path: Path) -> None:
    failing_program = executable(
        tmp_path / "broken", f"#!{sys.executable} -I\nprint('no wallet', flush=True)\nraise SystemExit(5)\n"
    )
    supervisord.add(tmp_path, python=failing_program, startsecs=60)  # it never counts as started, however late it exits
    supervisord.wait_until(lambda: supervisord.output.count("no wallet") >= 3)
    assert supervisord.log.count("entered FATAL") == 0
    assert "stopped" in supervisord.ctl("stop", supervisord.NAME).out


def test_supervisord_kills_unresponsive_process_group(supervisord: Any, tmp_path: Path) -> None:
    unresponsive = executable(
        tmp_path / "deaf",
        f"#!{sys.executable} -I\nimport signal, subprocess\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '1000'])\nprint('child', child.pid, flush=True)\nchild.wait()\n",
    )
    supervisord.add(tmp_path, python=unresponsive, stopwaitsecs=1)
    supervisord.wait_until(lambda: supervisord.state == "RUNNING" and "child" in supervisord.output)
    child = int(supervisord.output.split()[-1])
    assert is_running(child)
    assert "stopped" in supervisord.ctl("stop", supervisord.NAME).out
    supervisord.wait_until(lambda: not is_running(child))


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
