"""The runners of a child: a fixed table of kinds, their errors as the parent gets them, and how often they report."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from forecastd.inference.child import ChildServer, describe_error
from forecastd.inference.runner import RUNNERS, Runner, child_setup, open_runner
from forecastd.runtime.jobs import ModelFailed
from forecastd.supervise.detector import Phase
from forecastd.testing import ManualClock
from models.errors import BundleError, DataError, ModelError, TrainingDiverged


@pytest.mark.parametrize("kind", RUNNERS)
def test_every_kind_of_the_table_can_be_opened(kind: str) -> None:
    assert isinstance(open_runner(kind), Runner)


@pytest.mark.parametrize("kind", ["", "os", "forecastd.inference.market_runner:MarketRunner"])
def test_kind_that_is_not_in_the_table_is_refused(kind: str) -> None:
    with pytest.raises(KeyError):
        open_runner(kind)


def test_setup_has_faults_for_the_first_launches_only() -> None:
    setup = child_setup("market", options={"bundle": "/b"}, faults="hang", faulty_launches=2)
    assert [setup.load_fields(number)["faults"] for number in (1, 2, 3)] == ["hang", "hang", ""]
    assert setup.load_fields(3) == {"runner": "market", "faults": "", "bundle": "/b"}


@pytest.mark.parametrize(
    ("error", "kind", "check"),
    [
        (MemoryError(), "memory", ""),
        (ModelFailed("interrupted", "interrupted", "by a signal"), "interrupted", "by a signal"),
        (BundleError("truncated", check="hash"), "bundle", "hash"),
        (DataError("too short"), "data", "DataError"),
        (TrainingDiverged(), "data", "TrainingDiverged"),
        (ModelError("no"), "model", "ModelError"),
    ],
)
def test_error_of_runner_is_described_for_parent(error: Any, kind: str, check: str) -> None:
    failure = describe_error(error)
    assert (failure.kind, failure.check) == (kind, check)
    assert str(failure)


@pytest.mark.parametrize(("interval", "sent"), [(0.0, [0, 1, 2, 3, 4, 0, 1]), (0.05, [0, 3, 0])])
def test_progress_is_reported_at_intervals_and_at_each_new_phase(interval: float, sent: list[int]) -> None:
    reports: list[tuple[Phase, int]] = []
    channel: Any = SimpleNamespace(report_progress=lambda job, phase, done, *_: reports.append((phase, done)))
    server, clock = ChildServer(channel), ManualClock()
    server._clock = clock  # type: ignore[assignment]
    report = server._reporter("job", interval)
    for phase, steps in ((Phase.PREDICTING, 5), (Phase.POST_PROCESSING, 2)):
        for done in range(steps):
            report(phase, done, steps)
            clock.advance(0.02)
    assert [done for _, done in reports] == sent
