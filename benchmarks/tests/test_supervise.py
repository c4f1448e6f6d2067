"""The instruments of `python -m benchmarks supervise`: leftovers, wrong results and missed targets are detected."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.figures import Figure
from benchmarks.supervise.common import make_expected_forecasts
from benchmarks.supervise.faults import SIGNALS, plan_trials
from benchmarks.supervise.resources import current_resources
from forecastd.supervise.faults import FAULT_KINDS, parse_faults


@pytest.mark.parametrize(
    ("ours", "target", "is_met"),
    [
        (1.0, "ratio >= 10", True),
        (1.1, "ratio >= 10", False),
        (30.0, "at most 3x: ratio >= 0.33", True),
        (31.0, "at most 3x: ratio >= 0.33", False),
        (1.0, "no target", None),
    ],
)
def test_figure_reports_whether_target_is_met(ours: float, target: str, is_met: bool | None) -> None:
    assert Figure("name", ours, 10.0, "s", "a peer", target).is_met is is_met


def test_leftover_resources_are_detected() -> None:
    before = current_resources()
    # Other programs use shared memory too, and something of earlier tests may just be ending.
    again = current_resources().count_added(before)
    assert (again["processes left"], again["file handles left"], again["threads left"]) == (0, 0, 0)
    before = current_resources()
    wait = "import sys; sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", wait], stdin=subprocess.PIPE)
    reader, writer = os.pipe()
    never = threading.Event()
    thread = threading.Thread(target=never.wait)
    thread.start()
    try:
        with tempfile.NamedTemporaryFile(dir="/dev/shm"):
            counts = current_resources().count_added(before)
    finally:
        never.set()
        thread.join()
        os.close(reader)
        os.close(writer)
        child.communicate()
    assert counts["processes left"] == 1
    assert counts["file handles left"] == 4
    assert counts["entries of /dev/shm left"] >= 1
    assert counts["threads left"] == 1


def test_orphaned_grandchild_is_detected(tmp_path: Path) -> None:
    """Its parent is dead, but its command line names the process that started the children."""
    before = current_resources()
    reader, writer = os.pipe()
    pid_file = tmp_path / "pid"
    orphan = "import os; os.read(int(os.environ['READER']), 1)"
    start = (
        "import os, subprocess, sys\n"
        f"command = [sys.executable, '-c', {orphan!r}, 'forecastd.inference.child', '9', 'launch', '{os.getpid()}', '0']\n"
        "grandchild = subprocess.Popen(command, pass_fds=[int(os.environ['READER'])], start_new_session=True)\n"
        f"open({str(pid_file)!r}, 'w').write(str(grandchild.pid))\n"
        "os._exit(0)\n"
    )
    try:
        environment = {**os.environ, "READER": str(reader)}
        subprocess.run([sys.executable, "-c", start], pass_fds=[reader], env=environment, check=True)
        left = current_resources().added_since(before)["processes left"]
        assert [process.split()[0] for process in left] == [pid_file.read_text()]
    finally:
        os.close(reader)
        os.close(writer)


def test_fault_plan_is_reproducible_and_covers_every_kind() -> None:
    trials = plan_trials(500, 7)
    assert trials == plan_trials(500, 7)
    assert trials != plan_trials(500, 8)
    assert sum(trial.injected for trial in trials) >= 500
    times = Counter(trial.kind for trial in trials)
    assert set(times) == {*FAULT_KINDS, *SIGNALS}
    assert max(times.values()) - min(times.values()) <= 1
    for trial in trials:
        assert trial.kind in SIGNALS or parse_faults(trial.faults)[0].kind == trial.kind


def test_result_for_other_inputs_does_not_match() -> None:
    first, second = make_expected_forecasts(2, 1)
    assert first.matches(first.expected)
    assert not first.matches(second.expected)
