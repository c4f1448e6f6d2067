"""The report of a supervised run: slowest steps, finished jobs, outcome, JSON and text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from cli.supervise_screen import MAX_LISTED_JOBS, result_rows
from forecastd.inference.supervision_run import (
    MAX_EVENTS,
    MAX_TEXT_LENGTH,
    JobOutcome,
    SupervisionPlan,
    SupervisionRecorder,
    SupervisionReport,
    TimedEvent,
)
from forecastd.supervise import detector
from forecastd.supervise.detector import Phase, ProcessState
from forecastd.supervise.events import ProcessEvent, SupervisionCounts
from forecastd.supervise.policy import SupervisionPolicy
from forecastd.testing import ManualClock
from models.market.manifest import MarketManifest


@pytest.fixture
def recorder() -> SupervisionRecorder:
    return SupervisionRecorder(ManualClock(elapsed=0.0), lambda _: None)


@pytest.fixture
def report(root: Path) -> SupervisionReport:
    """A report on the demo bundle with one successful job."""
    bundle = root / "models" / "demo"
    jobs = (JobOutcome("forecast 1", "result", 0.02, -0.0003, 11),)
    return SupervisionReport(
        bundle,
        MarketManifest.read(bundle),
        "the bundle's canary",
        SupervisionPolicy(standbys=1),
        SupervisionPlan(),
        jobs,
        SupervisionCounts(),
        (),
        (11,),
        {},
    )


def progress(state: ProcessState, now: float, phase: Phase, done: float) -> ProcessState:
    return detector.record_progress(
        state, now, launch_id=state.launch_id, job=state.job, phase=phase, done=done, total=4
    )


def test_recorder_keeps_slowest_step_of_each_phase(recorder: SupervisionRecorder) -> None:
    state = detector.start(0.0, "a")
    recorder(ProcessEvent("launched", 1, state))
    for now, phase, done in (
        (2.0, Phase.LOADING, 0),
        (2.5, Phase.LOADING, 1),
        (5.5, Phase.LOADING, 2),
        (6.0, Phase.WARMING_UP, 0),
    ):
        state = progress(state, now, phase, done)
        recorder(ProcessEvent("progress", 1, state))
    recorder(ProcessEvent("ready", 1, detector.record_heartbeat(state, 7.5, "a")))
    state = detector.assign_job(detector.finish_job(state, 7.5), 100.0, "forecast 1 #1", Phase.PREDICTING)
    recorder(ProcessEvent("dispatched", 1, state))
    state = progress(state, 100.25, Phase.PREDICTING, 1)
    recorder(ProcessEvent("progress", 1, state))
    for now in (100.5, 101.0):  # going up and down is no progress
        state = progress(state, now, Phase.PREDICTING, 0.5)
        recorder(ProcessEvent("progress", 1, state))
    recorder(ProcessEvent("finished", 1, detector.record_heartbeat(state, 101.75, "a"), "forecast 1"))
    assert recorder.slowest == {Phase.STARTING: 2.0, Phase.LOADING: 3.0, Phase.WARMING_UP: 1.5, Phase.PREDICTING: 1.5}
    assert recorder.finished == {"forecast 1": 1}


def test_recorder_ignores_step_that_ended_in_hang(recorder: SupervisionRecorder) -> None:
    state = detector.assign_job(detector.start(0.0, "a"), 10.0, "forecast 1 #1", Phase.PREDICTING)
    recorder(ProcessEvent("dispatched", 1, state))
    recorder(ProcessEvent("slow", 1, detector.record_heartbeat(state, 25.0, "a")))
    recorder(ProcessEvent("hung", 1, detector.record_heartbeat(state, 41.0, "a")))
    assert recorder.slowest == {}


def test_recorder_separates_launches_with_same_pid(recorder: SupervisionRecorder) -> None:
    recorder(ProcessEvent("launched", 1, detector.start(0.0, "a")))
    recorder(ProcessEvent("progress", 1, progress(detector.start(50.0, "b"), 51.0, Phase.LOADING, 0)))
    assert recorder.slowest == {}


def test_recorded_events_are_bounded(recorder: SupervisionRecorder) -> None:
    state = detector.start(0.0, "a")
    for _ in range(MAX_EVENTS + 10):
        recorder(ProcessEvent("slow", 1, state, text="x" * 2 * MAX_TEXT_LENGTH))
        recorder(ProcessEvent("progress", 1, state))
    assert len(recorder.events) == MAX_EVENTS
    assert {event.event.kind for event in recorder.events} == {"slow"}
    assert len(str(recorder.events[0].as_json()["text"])) == MAX_TEXT_LENGTH


@pytest.mark.parametrize(
    ("endings", "code", "outcome", "reason"),
    [
        (["result", "result"], 0, "served", None),
        (["result", "failed"], 4, "skipped", "why 1"),
        (["refused", "failed"], 4, "skipped", "why 0"),
    ],
)
def test_exit_code_reflects_job_outcomes(
    report: SupervisionReport, endings: list[str], code: int, outcome: str, reason: str | None
) -> None:
    jobs = tuple(
        JobOutcome(f"forecast {number}", "result", 0.1, 0.5, 7) if ending == "result"
        else JobOutcome(f"forecast {number}", "failed" if ending == "failed" else "refused", 0.1, reason=f"why {number}")
        for number, ending in enumerate(endings)
    )  # fmt: skip
    document = json.loads(json.dumps(replace(report, jobs=jobs).as_json()))
    assert (document["exit_code"], document["outcome"], document["reason"]) == (code, outcome, reason)


def test_report_serializes_to_json(report: SupervisionReport) -> None:
    counts = SupervisionCounts(failovers=1)
    counts.hangs["predicting", "9d25b61c3ca0"] += 1
    event = TimedEvent(1.23456, ProcessEvent("hung", 11, detector.start(0.0, "a"), "forecast 1", "hung"))
    document = json.loads(
        json.dumps(replace(report, counts=counts, events=(event,), slowest={Phase.PREDICTING: 0.0123456}).as_json())
    )
    assert document["counts"]["hangs"] == [{"phase": "predicting", "bundle": "9d25b61c3ca0", "count": 1}]
    assert document["slowest"] == {"predicting": 0.0123}
    assert document["events"][0]["seconds"] == 1.235
    assert document["settings"]["limits"]["predicting"] == 30.0


def render(report: SupervisionReport) -> str:
    out = Console(width=80, file=None, highlight=False)
    with out.capture() as captured:
        for line in result_rows(report):
            out.print(line)
    return captured.get()


def test_report_lists_failed_jobs_first_and_truncates(report: SupervisionReport) -> None:
    good = tuple(JobOutcome(f"forecast {number}", "result", 0.1, 0.5, 7) for number in range(3 * MAX_LISTED_JOBS))
    text = render(replace(report, jobs=(*good, JobOutcome("forecast x", "failed", 0.1, reason="it crashed"))))
    assert "forecast x: failed, it crashed" in text
    assert f"and {2 * MAX_LISTED_JOBS + 1} more" in text
    assert f"skipped: {3 * MAX_LISTED_JOBS} of {3 * MAX_LISTED_JOBS + 1} jobs" in text
    assert max(map(len, text.splitlines())) <= 80


def test_report_says_quarantine_is_not_saved(report: SupervisionReport) -> None:
    assert "quarantine" not in render(report)
    assert "in this run only" in render(replace(report, counts=SupervisionCounts(quarantines=1)))
