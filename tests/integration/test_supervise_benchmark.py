"""The instruments of `python -m benchmarks supervise`: "nothing left" is worth what it would have seen."""

import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.figures import Figure
from benchmarks.supervise.faults import OUTSIDE, plan
from benchmarks.supervise.leftovers import holdings
from benchmarks.supervise.scene import questions
from forecastd.supervise.faults import KINDS, parse_faults


@pytest.mark.parametrize(
    ("ours", "target", "met"),
    [
        (1.0, "ratio >= 10", True),
        (1.1, "ratio >= 10", False),
        (30.0, "at most 3x: ratio >= 0.33", True),
        (31.0, "at most 3x: ratio >= 0.33", False),
        (1.0, "told, nothing is claimed", None),
    ],
)
def test_a_figure_says_whether_its_aim_is_met(ours: float, target: str, met: bool | None) -> None:
    assert Figure("name", ours, 10.0, "s", "a peer", target).met is met


def test_what_is_left_behind_is_seen() -> None:
    before = holdings()
    # Others on this machine use shared memory as well, and of what was before, something may be on its way out.
    again = holdings().counts(before)
    assert (again["processes left"], again["file handles left"], again["threads left"]) == (0, 0, 0)
    before = holdings()
    wait = "import sys; sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", wait], stdin=subprocess.PIPE)
    reader, writer = os.pipe()
    never = threading.Event()
    thread = threading.Thread(target=never.wait)
    thread.start()
    try:
        with tempfile.NamedTemporaryFile(dir="/dev/shm"):
            counts = holdings().counts(before)
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


def test_an_orphan_of_a_child_of_ours_is_seen(tmp_path: Path) -> None:
    """Its parent is dead, so it is nobody's child; its command line still names the process that started it all."""
    before = holdings()
    reader, writer = os.pipe()
    told = tmp_path / "pid"
    orphan = "import os; os.read(int(os.environ['READER']), 1)"
    start = (
        "import os, subprocess, sys\n"
        f"command = [sys.executable, '-c', {orphan!r}, 'forecastd.supervise.child', '9', 'launch', '{os.getpid()}', '0']\n"
        "grandchild = subprocess.Popen(command, pass_fds=[int(os.environ['READER'])], start_new_session=True)\n"
        f"open({str(told)!r}, 'w').write(str(grandchild.pid))\n"
        "os._exit(0)\n"
    )
    try:
        environment = {**os.environ, "READER": str(reader)}
        subprocess.run([sys.executable, "-c", start], pass_fds=[reader], env=environment, check=True)
        left = holdings().beyond(before)["processes left"]
        assert [one.split()[0] for one in left] == [told.read_text()]
    finally:
        os.close(reader)
        os.close(writer)


def test_the_campaign_is_the_same_for_the_same_seed_and_has_every_kind() -> None:
    trials = plan(500, 7)
    assert trials == plan(500, 7)
    assert trials != plan(500, 8)
    assert sum(trial.injected for trial in trials) >= 500
    times = Counter(trial.kind for trial in trials)
    assert set(times) == {*KINDS, *OUTSIDE}
    assert max(times.values()) - min(times.values()) <= 1
    for trial in trials:
        assert trial.kind in OUTSIDE or parse_faults(trial.faults)[0].kind == trial.kind


def test_an_answer_to_another_question_is_no_answer() -> None:
    first, second = questions(2, 1)
    assert first.answered_by(first.expected)
    assert not first.answered_by(second.expected)
