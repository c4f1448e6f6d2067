"""What a trial makes of what it hears: the slowest steps, who finished what, how it ended, and how that reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
from rich.console import Console

from cli.supervise_screen import LISTED, result_rows
from forecastd.supervise import detector
from forecastd.supervise.detector import Phase, Watched
from forecastd.supervise.policy import Policy
from forecastd.supervise.report import Counts, Event, Kind
from forecastd.trial import KEPT_EVENTS, KEPT_TEXT, JobEnd, Plan, Recorder, Seen, Trial
from models.bundle import read_manifest


class Stopped:
    """A clock that stands where it is put."""

    at = 0.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at


@pytest.fixture
def recorder() -> Recorder:
    return Recorder(Stopped(), lambda _: None)


@pytest.fixture
def trial(root: Path) -> Trial:
    """A trial of the demo with one good job."""
    bundle = root / "models" / "demo"
    jobs = (JobEnd("forecast 1", "result", 0.02, -0.0003, 11),)
    return Trial(
        bundle, read_manifest(bundle), "the bundle's canary", Policy(standbys=1), Plan(), jobs, Counts(), (), (11,), {}
    )


def progress(child: Watched, now: float, phase: Phase, done: float) -> Watched:
    return detector.progressed(child, now, launch=child.launch, job=child.job, phase=phase, done=done, total=4)


def test_the_slowest_step_of_each_phase_is_the_longest_that_went_on(recorder: Recorder) -> None:
    child = detector.launched(0.0, "a")
    recorder(Event("launched", 1, child))
    for now, phase, done in (
        (2.0, Phase.LOADING, 0),
        (2.5, Phase.LOADING, 1),
        (5.5, Phase.LOADING, 2),
        (6.0, Phase.WARMING_UP, 0),
    ):
        child = progress(child, now, phase, done)
        recorder(Event("progress", 1, child))
    recorder(Event("ready", 1, detector.alive(child, 7.5, "a")))
    child = detector.dispatched(detector.finished(child, 7.5), 100.0, "forecast 1 #1", Phase.PREDICTING)
    recorder(Event("dispatched", 1, child))
    child = progress(child, 100.25, Phase.PREDICTING, 1)
    recorder(Event("progress", 1, child))
    for now in (100.5, 101.0):  # up and down is no step
        child = progress(child, now, Phase.PREDICTING, 0.5)
        recorder(Event("progress", 1, child))
    recorder(Event("finished", 1, detector.alive(child, 101.75, "a"), "forecast 1"))
    assert recorder.slowest == {Phase.STARTING: 2.0, Phase.LOADING: 3.0, Phase.WARMING_UP: 1.5, Phase.PREDICTING: 1.5}
    assert recorder.finished == {"forecast 1": 1}


def test_a_stall_that_ended_in_a_hang_is_no_healthy_step(recorder: Recorder) -> None:
    child = detector.dispatched(detector.launched(0.0, "a"), 10.0, "forecast 1 #1", Phase.PREDICTING)
    recorder(Event("dispatched", 1, child))
    recorder(Event("slow", 1, detector.alive(child, 25.0, "a")))
    recorder(Event("hung", 1, detector.alive(child, 41.0, "a")))
    assert recorder.slowest == {}


def test_another_launch_with_the_same_pid_is_another_child(recorder: Recorder) -> None:
    recorder(Event("launched", 1, detector.launched(0.0, "a")))
    recorder(Event("progress", 1, progress(detector.launched(50.0, "b"), 51.0, Phase.LOADING, 0)))
    assert recorder.slowest == {}


@pytest.mark.parametrize(
    ("kinds", "waits"),
    [
        (["ready"], True),
        (["ready", "ready"], False),
        (["ready", "ready", "died"], True),
        (["ready", "quarantined"], False),
        (["refused"], False),
        (["backing_off"], False),
    ],
)
def test_the_first_job_waits_until_all_are_ready_or_it_is_clear_that_they_will_not_be(
    recorder: Recorder, kinds: list[Kind], waits: bool
) -> None:
    for pid, kind in enumerate(kinds):
        recorder(Event(kind, 0 if kind == "died" else pid, detector.launched(0.0, str(pid))))
    waiting = Thread(target=recorder.wait_for_all, args=(2, 60.0), daemon=True)
    waiting.start()
    waiting.join(0.1 if waits else 60.0)
    assert waiting.is_alive() is waits
    recorder(Event("quarantined", 0, detector.launched(0.0, "")))
    waiting.join(60.0)
    assert not waiting.is_alive()


def test_what_is_kept_of_events_is_bounded(recorder: Recorder) -> None:
    child = detector.launched(0.0, "a")
    for _ in range(KEPT_EVENTS + 10):
        recorder(Event("slow", 1, child, text="x" * 2 * KEPT_TEXT))
        recorder(Event("progress", 1, child))
    assert len(recorder.events) == KEPT_EVENTS
    assert {seen.event.kind for seen in recorder.events} == {"slow"}
    assert len(str(recorder.events[0].as_json()["text"])) == KEPT_TEXT


@pytest.mark.parametrize(
    ("endings", "code", "outcome", "reason"),
    [
        (["result", "result"], 0, "served", None),
        (["result", "failed"], 4, "skipped", "why 1"),
        (["refused", "failed"], 4, "skipped", "why 0"),
    ],
)
def test_the_exit_code_tells_whether_every_job_got_its_result(
    trial: Trial, endings: list[str], code: int, outcome: str, reason: str | None
) -> None:
    jobs = tuple(
        JobEnd(f"forecast {n}", "result", 0.1, 0.5, 7) if how == "result"
        else JobEnd(f"forecast {n}", "failed" if how == "failed" else "refused", 0.1, reason=f"why {n}")
        for n, how in enumerate(endings)
    )  # fmt: skip
    told = json.loads(json.dumps(replace(trial, jobs=jobs).as_json()))
    assert (told["exit_code"], told["outcome"], told["reason"]) == (code, outcome, reason)


def test_everything_of_a_trial_is_json(trial: Trial) -> None:
    counts = Counts(hand_overs=1)
    counts.hangs["predicting", "9d25b61c3ca0"] += 1
    seen = Seen(1.23456, Event("hung", 11, detector.launched(0.0, "a"), "forecast 1", "hung"))
    told = json.loads(
        json.dumps(replace(trial, counts=counts, events=(seen,), slowest={Phase.PREDICTING: 0.0123456}).as_json())
    )
    assert told["counts"]["hangs"] == [{"phase": "predicting", "bundle": "9d25b61c3ca0", "count": 1}]
    assert told["slowest"] == {"predicting": 0.0123}
    assert told["events"][0]["at"] == 1.235
    assert told["settings"]["limits"]["predicting"] == 30.0


def shown(trial: Trial) -> str:
    out = Console(width=80, file=None, highlight=False)
    with out.capture() as captured:
        for line in result_rows(trial):
            out.print(line)
    return captured.get()


def test_jobs_without_a_result_are_listed_first_and_a_long_list_is_cut(trial: Trial) -> None:
    good = tuple(JobEnd(f"forecast {n}", "result", 0.1, 0.5, 7) for n in range(3 * LISTED))
    text = shown(replace(trial, jobs=(*good, JobEnd("forecast x", "failed", 0.1, reason="it crashed"))))
    assert "forecast x: failed, it crashed" in text
    assert f"and {2 * LISTED + 1} more" in text
    assert f"skipped: {3 * LISTED} of {3 * LISTED + 1} jobs" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_quarantine_of_a_trial_says_that_it_ends_with_it(trial: Trial) -> None:
    assert "quarantine" not in shown(trial)
    assert "in this trial only" in shown(replace(trial, counts=Counts(quarantines=1)))
