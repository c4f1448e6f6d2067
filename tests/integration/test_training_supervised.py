"""A training in a supervised child: the same weights as in this process, whatever becomes of the child on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread

import numpy as np
import psutil
import pytest

from forecastd.clock import SystemClock
from forecastd.settings import numeric_environment
from forecastd.supervise.detector import Limits
from forecastd.supervise.policy import Policy, Setup
from forecastd.supervise.pool import Pool
from forecastd.supervise.process import ChildFailed, ModelFailed
from forecastd.supervise.trainer import Trainer
from forecastd.supervise.trainjob import failure, train_job
from models import workdir
from models.bundle import read_manifest
from models.config import TrainingConfig
from models.errors import BundleError, TrainingInterrupted
from models.manifest import Manifest
from models.progress import Progress
from models.training import begin, train
from models.windows import TrainingData

# Five steps before the fit, three epochs of 2 + 2 batches, seven steps of scoring, one of writing: 4 % each.
CONFIG = TrainingConfig(
    name="tiny", encoder_length=12, horizon=6, hidden_size=4, hidden_continuous_size=4, attention_heads=2,
    epochs=3, patience=3, batch_size=16, batches_per_epoch=2, scored_windows=20, accelerator="cpu",
)  # fmt: skip
CREATED = 1_700_000_000.0
AT_THE_FIRST_STEP, AT_THE_SECOND_STEP, IN_THE_SECOND_EPOCH, AT_THE_END = "4", "8", "48", "100"
GENEROUS = Limits(starting=120, training=240, silence=120, stopping=20)


@pytest.fixture(scope="module")
def data() -> TrainingData:
    rng = np.random.default_rng(0)
    count = 400
    return TrainingData(
        time=1_600_000_000 // 3600 * 3600 + 3600 * np.arange(count, dtype=np.int64),
        target=10 + rng.normal(0, 0.01, count).cumsum(),
        past=rng.normal(5, 2, size=(count, 1)),
        known=rng.normal(size=(count, 1)),
        past_names=("p0",),
        known_names=("k0",),
        step=3600,
        data_sha256="a" * 64,
        source="test",
        synthetic=True,
    )


class Told:
    """What a training told, and whom it had at work."""

    def __init__(self) -> None:
        self.progress: list[Progress] = []
        self.remarks: list[str] = []
        self.at: Callable[[Progress], None] = lambda _: None

    def hear(self, reached: Progress) -> None:
        self.progress.append(reached)
        self.at(reached)

    def batches(self) -> list[tuple[int, int]]:
        return [(p.epoch, p.batch) for p in self.progress if p.loss is not None]


Supervised = Callable[..., str]


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def supervised(data: TrainingData, told: Told) -> Iterator[Supervised]:
    """Trains in a child, as the command does; afterwards none is left."""

    def run(out: Path, faults: str = "", *, limits: Limits = GENEROUS, faulty: int = 1, attempts: int = 3,
            at_once: bool = False, config: TrainingConfig = CONFIG) -> str:  # fmt: skip
        setup = Setup(name="tiny", faults=faults, faulty=faulty, threads=0, environment=numeric_environment())
        policy = Policy(limits, attempts, standbys=0, memory=0, strikes=attempts + 1)
        trainer = Trainer(
            setup, policy, SystemClock(), progress=told.hear, remark=told.remarks.append, at_once=lambda: at_once
        )
        with workdir.hold(out):
            begin(data, config, out, force=False, finish=False)
            return trainer.run(train_job(out, created=CREATED, force=False, finish=False, attempts=attempts))

    yield run
    assert psutil.Process().children() == []


@pytest.fixture(scope="module")
def here(data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that a training in this process gives."""
    out = tmp_path_factory.mktemp("here") / "bundle"
    train(data, CONFIG, out, lambda _: None, created=CREATED)
    return out


def same(out: Path, here: Path, sha256: str) -> Manifest:
    """The bundle is the other one to the byte, and nothing lies beside it."""
    for name in ("weights.safetensors", "canary.safetensors"):
        assert (out / name).read_bytes() == (here / name).read_bytes()
    manifest = read_manifest(out)
    assert manifest.sha256 == sha256 == read_manifest(here).sha256
    assert [entry.name for entry in out.parent.iterdir()] == [out.name]
    return manifest


def test_a_child_gives_the_very_bundle_that_this_process_gives_and_once_when_it_dies_right_after(
    supervised: Supervised, told: Told, here: Path, tmp_path: Path
) -> None:
    sha256 = supervised(tmp_path / "bundle", f"crash@{AT_THE_END}")
    same(tmp_path / "bundle", here, sha256)
    (remark,) = told.remarks
    assert "died in phase training" in remark
    assert "goes on from the last checkpoint" in remark
    assert told.batches() == [(epoch, batch) for epoch in (1, 2, 3) for batch in (1, 2)]
    assert [p.epoch for p in told.progress if p.validation_loss is not None] == [1, 2, 3]
    done = [p.done for p in told.progress]
    assert done == sorted(done)
    assert {p.total for p in told.progress} == {25}


def test_a_child_that_hangs_is_replaced_and_the_next_one_goes_on(
    supervised: Supervised, told: Told, here: Path, tmp_path: Path
) -> None:
    limits = Limits(starting=120, training=20, silence=120, stopping=20)
    sha256 = supervised(tmp_path / "bundle", f"hang@{IN_THE_SECOND_EPOCH}", limits=limits, attempts=10)
    same(tmp_path / "bundle", here, sha256)
    assert any("hung (no progress for" in remark for remark in told.remarks)
    assert [told.batches().count((epoch, 1)) for epoch in (1, 2, 3)] == [1, 2, 1]


def test_when_every_child_dies_it_is_told_and_what_was_reached_is_kept(
    supervised: Supervised, told: Told, tmp_path: Path
) -> None:
    with pytest.raises(ChildFailed, match=r"training of bundle: .* died in phase training, exit status 7"):
        supervised(tmp_path / "bundle", f"exit:7@{AT_THE_FIRST_STEP}", attempts=2, faulty=2)
    assert len(told.remarks) == 1
    assert workdir.find(tmp_path / "bundle") is not None


def interrupt(_: Progress) -> None:
    raise KeyboardInterrupt


def interrupt_the_second_epoch(reached: Progress) -> None:
    if reached.epoch == 2:
        raise KeyboardInterrupt


def test_an_interrupt_ends_the_child_and_keeps_its_work(supervised: Supervised, told: Told, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    told.at = interrupt_the_second_epoch
    with pytest.raises(ModelFailed) as failed:
        supervised(out, f"hang@{IN_THE_SECOND_EPOCH}")
    interrupted = failure(failed.value, out)
    assert isinstance(interrupted, TrainingInterrupted)
    assert interrupted.kept
    assert "Best checkpoint kept" in str(interrupted)
    assert told.remarks == []


def test_a_child_that_takes_no_interrupt_is_ended_at_once_when_asked(
    supervised: Supervised, told: Told, tmp_path: Path
) -> None:
    told.at = interrupt
    limits = Limits(starting=120, training=240, silence=240, stopping=240)
    with pytest.raises(KeyboardInterrupt):
        supervised(tmp_path / "bundle", f"silent@{AT_THE_SECOND_STEP}", limits=limits, at_once=True)
    assert workdir.find(tmp_path / "bundle") is not None


def test_an_interrupt_before_a_child_is_there_begins_nothing(
    supervised: Supervised, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Impatient(SimpleQueue[object]):
        def get(self, *_: object, **__: object) -> object:
            raise KeyboardInterrupt

    monkeypatch.setattr("forecastd.supervise.trainer.SimpleQueue", Impatient)
    with pytest.raises(KeyboardInterrupt):
        supervised(tmp_path / "bundle")
    assert told.progress == []


def test_who_takes_over_waits_until_the_other_is_gone(data: TrainingData, tmp_path: Path) -> None:
    out, entered = tmp_path / "bundle", Event()

    def take_over() -> None:
        with workdir.alone(out) as begun:
            assert begun
            entered.set()

    with workdir.hold(out):
        begin(data, CONFIG, out, force=False, finish=False)
        second = Thread(target=take_over)
        with workdir.alone(out):
            second.start()
            assert not entered.wait(0.3)
        assert entered.wait(60)
        second.join()
        workdir.begin(out, data, CONFIG, anew=True).remove()
        with workdir.alone(out) as begun:
            assert not begun


def test_one_that_does_not_go_is_told(data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workdir, "_LOOKS", 2)
    out = tmp_path / "bundle"
    with workdir.hold(out):
        begin(data, CONFIG, out, force=False, finish=False)
        with workdir.alone(out), pytest.raises(BundleError, match="does not end"), workdir.alone(out):
            pass


def test_the_users_choice_of_devices_and_threads_reaches_the_child(
    supervised: Supervised, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TIINGO_API_KEY", "a-secret-key")
    seen: dict[str, str] = {}

    def look(_: Progress) -> None:
        (child,) = psutil.Process().children()
        seen.update(child.environ())
        raise KeyboardInterrupt

    told.at = look
    with pytest.raises(ModelFailed):
        supervised(tmp_path / "bundle", f"hang@{AT_THE_SECOND_STEP}")
    assert seen["CUDA_VISIBLE_DEVICES"] == "7"
    assert seen["OMP_NUM_THREADS"] == "1"
    assert "OPENBLAS_NUM_THREADS" not in seen
    assert "a-secret-key" not in seen.values()


def test_an_interrupt_that_comes_when_the_work_is_done_takes_nothing_away(
    supervised: Supervised, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pressed(Pool):
        def close(self) -> None:
            super().close()
            raise KeyboardInterrupt

    monkeypatch.setattr("forecastd.supervise.trainer.Pool", Pressed)
    out = tmp_path / "bundle"
    train(data, replace(CONFIG, epochs=1), out, lambda _: None, created=CREATED)
    with workdir.hold(out):
        begin(data, replace(CONFIG, epochs=1), out, force=False, finish=False)  # as if its child had died right after
    assert supervised(out, config=replace(CONFIG, epochs=1)) == read_manifest(out).sha256
