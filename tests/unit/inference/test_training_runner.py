"""Training jobs: the messages of both sides, and errors of the child that are raised in the parent."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.inference import training_runner
from forecastd.inference.child import describe_error
from forecastd.inference.training_runner import TrainingRunner, error_from_child, parse_progress, training_request
from forecastd.runtime.jobs import InvalidResult, ModelFailed
from forecastd.settings import numeric_environment
from forecastd.supervise.process import child_environment
from forecastd.supervise.protocol import ChildMessage
from models.errors import BundleError, DataError, ModelError, TrainingDiverged, TrainingInterrupted
from models.training import state
from models.training.progress import ProgressMeter, TrainingProgress

SHA256 = "ab" * 32


@pytest.fixture
def signals() -> Iterator[None]:
    """Restores the SIGINT handler, which a training run changes in its process."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def make_message(out: Path) -> ChildMessage:
    request = training_request(out, created=1.5, force=True, finish=False)
    return ChildMessage("run", "launch", {"job": "a", **request.fields})


def run_and_fail(out: Path) -> ModelFailed:
    """Run the training in this process; return its error."""
    try:
        TrainingRunner().run(make_message(out), lambda *_, **__: None)
    except (ModelFailed, ModelError) as error:
        return describe_error(error)
    raise AssertionError("the training did not fail")


@pytest.mark.parametrize(
    "error",
    [
        DataError("too few rows"),
        TrainingDiverged(),
        BundleError("it exists", check="exists"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_child_error_is_restored_in_parent(
    error: Exception, signals: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(training_runner, "run_training", fail)
    reported = run_and_fail(tmp_path / "b")
    assert reported.kind not in {"memory", "bundle"}  # else another child would try it
    rebuilt = error_from_child(reported, tmp_path / "b")
    assert type(rebuilt) is type(error)
    assert str(rebuilt) == str(error)
    assert vars(rebuilt) == vars(error)


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_interrupt_reports_whether_checkpoint_exists(
    has_checkpoint: bool, signals: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training_runner, "run_training", interrupt)
    directory = state.state_directory(tmp_path / "b")
    directory.mkdir()
    if has_checkpoint:
        (directory / state.BEST_CHECKPOINT).touch()
    error = error_from_child(run_and_fail(tmp_path / "b"), tmp_path / "b")
    assert isinstance(error, TrainingInterrupted)
    assert error.has_checkpoint == has_checkpoint


def test_invalid_errno_is_tolerated(tmp_path: Path) -> None:
    error = error_from_child(ModelFailed("broken", "disk", "what?"), tmp_path)
    assert isinstance(error, OSError)
    assert error.strerror == "broken"


def test_train_message_has_path_and_options_but_no_rows(
    signals: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    received: dict[str, object] = {}

    def record(out: Path, _: object, **options: object) -> None:
        received.update(options, out=out)
        raise DataError("enough")

    monkeypatch.setattr(training_runner, "run_training", record)
    monkeypatch.chdir(tmp_path)
    assert make_message(Path("below/b")).arrays == {}
    run_and_fail(Path("below/b"))
    assert received == {"out": tmp_path / "below" / "b", "created": 1.5, "force": True, "finish": False}


@pytest.mark.parametrize("fields", [{}, {"bundle_sha256": ""}, {"bundle_sha256": 7}])
def test_result_without_bundle_hash_is_invalid(fields: dict[str, object], tmp_path: Path) -> None:
    request = training_request(tmp_path / "b", created=0, force=False, finish=False)
    with pytest.raises(InvalidResult):
        request.read(fields)
    assert request.read({"bundle_sha256": SHA256}) == SHA256


def test_progress_round_trips() -> None:
    progress = TrainingProgress("fit", 2, 3, 4, 5, 0.5, None, 12.0, 25.0)
    assert parse_progress(asdict(progress)) == progress


@pytest.mark.parametrize(
    "changes",
    [{"stage": None}, {"epoch": "2"}, {"batch": True}, {"loss": "0.5"}, {"validation_loss": []}, {"done": 1}],
)
def test_progress_with_wrong_types_is_ignored(changes: dict[str, object]) -> None:
    assert parse_progress({}) is None
    assert parse_progress({**asdict(TrainingProgress("fit")), **changes}) is None


@given(
    epochs=st.integers(1, 5), batches=st.integers(1, 5), checks=st.integers(1, 3), scored=st.integers(0, 9),
    begins=st.integers(0, 5), ends=st.integers(1, 5),
)  # fmt: skip
def test_progress_meter_is_monotonic_and_ends_at_total(
    *, epochs: int, batches: int, checks: int, scored: int, begins: int, ends: int
) -> None:
    reported: list[TrainingProgress] = []
    meter = ProgressMeter(
        reported.append, epochs=epochs, batches=batches, validation_batches=checks, scoring_batches=scored
    )
    for step in range(1, 6):
        meter.report_stage("start", step)
    for epoch in range(min(begins, epochs) + 1, min(ends, epochs) + 1):  # one that goes on, one that stops early
        for batch in range(1, batches + 1):
            meter.report_fit(epoch, batch, loss=0.0)
        for check in range(1, checks + 1):
            meter.report_fit(epoch, batches, validation_batch=check)
        meter.report_fit(epoch, batches, validation_batch=checks, validation_loss=0.0)
    for step in range(3):
        meter.report_stage("score", step)
    for part in range(scored + 1):
        meter.report_scoring(part)
    meter.report_stage("write", 0)
    assert reported[-1].done == reported[-1].total - 1
    meter.report_stage("write", 1)
    done = [progress.done for progress in reported]
    assert done == sorted(done)
    assert done[-1] == reported[-1].total
    assert {replace(progress, done=0.0).total for progress in reported} == {reported[-1].total}
    fitted = [progress.done for progress in reported if progress.stage == "fit" and progress.validation_loss is None]
    assert len(set(fitted)) == len(fitted)  # every batch is progress


def test_numeric_environment_contains_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(numeric_environment()):
        monkeypatch.delenv(name)
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "LD_LIBRARY_PATH", "TIINGO_API_KEY", "MNEMONIC", "HOME"):
        monkeypatch.setenv(name, "x")
    assert set(numeric_environment()) == {"CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "LD_LIBRARY_PATH"}


@pytest.mark.parametrize(("threads", "expected"), [(0, None), (1, "1"), (3, "3")])
def test_child_environment_sets_thread_count(threads: int, expected: str | None) -> None:
    environment = child_environment(threads)
    assert environment.get("OMP_NUM_THREADS") == environment.get("OPENBLAS_NUM_THREADS") == expected
