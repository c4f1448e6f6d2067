"""A training as a job: what goes to the child and comes back is checked, and an error there is the same error here."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.settings import numeric_environment
from forecastd.supervise import trainjob
from forecastd.supervise.jobs import BadAnswer
from forecastd.supervise.messages import Message
from forecastd.supervise.process import ModelFailed, child_environment
from forecastd.supervise.trainjob import failure, reached, train, train_job
from models import workdir
from models.errors import BundleError, DataError, Diverged, TrainingInterrupted
from models.progress import Meter, Progress

SHA256 = "ab" * 32


@pytest.fixture
def signals() -> Iterator[None]:
    """A training decides what an interrupt does to its process; here that is this one."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def ask(out: Path) -> Message:
    job = train_job(out, created=1.5, force=True, finish=False, attempts=3)
    return Message(job.kind, "launch", {"job": "a", **job.fields})


@pytest.mark.parametrize(
    "error",
    [
        DataError("too few rows"),
        Diverged(),
        BundleError("it is there", check="exists"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_an_error_of_the_child_is_the_same_error_here(
    error: Exception, signals: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(trainjob, "go_on", broken)
    kind, told = train(ask(tmp_path / "b"), lambda *_: None)
    assert kind == "error"
    assert told["error"] not in {"memory", "bundle"}  # which would have another child try it
    again = failure(ModelFailed(str(told["message"]), str(told["error"]), str(told["check"])), tmp_path / "b")
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


@pytest.mark.parametrize("kept", [True, False])
def test_an_interrupt_is_told_with_what_was_kept(
    kept: bool, signals: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainjob, "go_on", interrupted)
    place = workdir.place(tmp_path / "b")
    place.mkdir()
    if kept:
        (place / workdir.BEST).touch()
    kind, told = train(ask(tmp_path / "b"), lambda *_: None)
    assert kind == "error"
    error = failure(ModelFailed(str(told["message"]), str(told["error"]), ""), tmp_path / "b")
    assert isinstance(error, TrainingInterrupted)
    assert error.kept == kept


def test_an_error_number_that_is_none_does_no_harm(tmp_path: Path) -> None:
    error = failure(ModelFailed("broken", "disk", "what?"), tmp_path)
    assert isinstance(error, OSError)
    assert error.strerror == "broken"


def test_the_child_is_told_a_place_and_options_and_nothing_of_the_rows(
    signals: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: dict[str, object] = {}

    def note(out: Path, _: object, **options: object) -> None:
        seen.update(options, out=out)
        raise DataError("enough")

    monkeypatch.setattr(trainjob, "go_on", note)
    monkeypatch.chdir(tmp_path)
    message = ask(Path("below/b"))
    assert message.arrays == {}
    train(message, lambda *_: None)
    assert seen == {"out": tmp_path / "below" / "b", "created": 1.5, "force": True, "finish": False}


@pytest.mark.parametrize("fields", [{}, {"bundle_sha256": ""}, {"bundle_sha256": 7}])
def test_an_answer_without_a_bundle_counts_against_the_child(fields: dict[str, object], tmp_path: Path) -> None:
    job = train_job(tmp_path / "b", created=0, force=False, finish=False, attempts=1)
    with pytest.raises(BadAnswer):
        job.read(Message("result", "launch", fields))
    assert job.read(Message("result", "launch", {"bundle_sha256": SHA256})) == SHA256


def test_progress_comes_back_as_it_was_told() -> None:
    told = Progress("fit", 2, 3, 4, 5, 0.5, None, 12.0, 25.0)
    assert reached(asdict(told)) == told


@pytest.mark.parametrize(
    "wrong",
    [{"stage": None}, {"epoch": "2"}, {"batch": True}, {"loss": "0.5"}, {"validation_loss": []}, {"done": 1}],
)
def test_progress_of_other_types_is_none(wrong: dict[str, object]) -> None:
    assert reached({}) is None
    assert reached({**asdict(Progress("fit")), **wrong}) is None


@given(
    epochs=st.integers(1, 5), batches=st.integers(1, 5), checks=st.integers(1, 3), scored=st.integers(0, 9),
    begins=st.integers(0, 5), ends=st.integers(1, 5),
)  # fmt: skip
def test_the_count_never_goes_back_and_ends_at_all_of_it(
    *, epochs: int, batches: int, checks: int, scored: int, begins: int, ends: int
) -> None:
    seen: list[Progress] = []
    meter = Meter(seen.append, epochs=epochs, batches=batches, checks=checks, scored=scored)
    for step in range(1, 6):
        meter.step("start", step)
    for epoch in range(min(begins, epochs) + 1, min(ends, epochs) + 1):  # one that goes on, one that stops early
        for batch in range(1, batches + 1):
            meter.fitted(epoch, batch, loss=0.0)
        for check in range(1, checks + 1):
            meter.fitted(epoch, batches, checked=check)
        meter.fitted(epoch, batches, checked=checks, validation=0.0)
    for step in range(3):
        meter.step("score", step)
    for part in range(scored + 1):
        meter.scored(part)
    meter.step("write", 0)
    assert seen[-1].done == seen[-1].total - 1
    meter.step("write", 1)
    done = [one.done for one in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1].total
    assert {replace(one, done=0.0).total for one in seen} == {seen[-1].total}
    news = [one.done for one in seen if one.stage == "fit" and one.validation_loss is None]
    assert len(set(news)) == len(news)  # every batch is progress


def test_a_training_finds_the_users_choices_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(numeric_environment()):
        monkeypatch.delenv(name)
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "LD_LIBRARY_PATH", "TIINGO_API_KEY", "MNEMONIC", "HOME"):
        monkeypatch.setenv(name, "x")
    assert set(numeric_environment()) == {"CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "LD_LIBRARY_PATH"}


@pytest.mark.parametrize(("threads", "given"), [(0, None), (1, "1"), (3, "3")])
def test_a_child_takes_as_many_threads_as_it_is_told_or_as_it_likes(threads: int, given: str | None) -> None:
    environment = child_environment(threads)
    assert environment.get("OMP_NUM_THREADS") == environment.get("OPENBLAS_NUM_THREADS") == given
