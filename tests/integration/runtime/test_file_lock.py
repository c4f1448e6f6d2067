"""The file lock between two processes."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from forecastd.clock import SystemClock
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.runtime.locks import FileLock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fleet" / "serve.lock"


def test_file_lock_admits_one_process(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from forecastd.clock import SystemClock\n"
        "from forecastd.runtime.locks import FileLock\n"
        "with FileLock(Path(sys.argv[1]), SystemClock(), timeout=0): print('held', flush=True); sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdin is not None
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(RetryLater, match="Stop it first"), FileLock(path, SystemClock(), timeout=0.2):
        pass
    waiter: list[float] = []

    def wait_for_it() -> None:
        with FileLock(path, SystemClock(), timeout=60):
            waiter.append(1)

    thread = threading.Thread(target=wait_for_it)
    thread.start()
    other.kill()
    thread.join(60)
    other.wait(60)
    other.stdin.close()
    other.stdout.close()
    assert waiter == [1], "the lock is released with its process"


def test_file_lock_that_cannot_be_created_needs_human(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NeedsHuman, match="Cannot create"):
        FileLock(tmp_path / "file" / "serve.lock", SystemClock())
