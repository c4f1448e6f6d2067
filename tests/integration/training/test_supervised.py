"""Training in a supervised child: the same weights as in this process, even when children hang, die or are interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

import numpy as np
import psutil
import pytest

from forecastd.clock import SystemClock
from forecastd.inference.job_runner import LocalJobRunner
from forecastd.inference.training_runner import error_from_child, parse_progress, training_request
from forecastd.runtime.jobs import ChildFailed, JobListener, ModelFailed
from forecastd.supervise.detector import PhaseLimits
from forecastd.supervise.policy import SupervisionPolicy
from forecastd.supervise.pool import ProcessPool
from models.errors import BundleError, TrainingInterrupted
from models.market.dataset import MarketData
from models.market.manifest import MarketManifest
from models.train import prepare_training, train
from models.training import state
from models.training.config import TrainingConfig
from models.training.progress import TrainingProgress

# Five steps before the fit, three epochs of 2 + 2 batches, seven steps of scoring, one of writing: 4 % each.
CONFIG = TrainingConfig(
    name="tiny", encoder_length=12, horizon=6, hidden_size=4, hidden_continuous_size=4, attention_heads=2,
    epochs=3, patience=3, batch_size=16, batches_per_epoch=2, scored_windows=20, accelerator="cpu",
)  # fmt: skip
CREATED = 1_700_000_000.0
FIRST_STEP, SECOND_STEP, SECOND_EPOCH, LAST_STEP = "4", "8", "48", "100"
LONG_LIMITS = PhaseLimits(starting=120, training=240, heartbeat=120, stopping=20)


@pytest.fixture(scope="module")
def data() -> MarketData:
    rng = np.random.default_rng(0)
    count = 400
    return MarketData(
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


class TrainingLog:
    """The progress and replacements that a training run reported. `hook` is called with each progress."""

    def __init__(self) -> None:
        self.progress: list[TrainingProgress] = []
        self.replacements: list[str] = []
        self.hook: Callable[[TrainingProgress], None] = lambda _: None

    def on_progress(self, detail: Mapping[str, Any]) -> None:
        progress = parse_progress(detail)
        assert progress is not None
        self.progress.append(progress)
        self.hook(progress)

    def batches(self) -> list[tuple[int, int]]:
        return [(p.epoch, p.batch) for p in self.progress if p.loss is not None]


Supervised = Callable[..., str]


@pytest.fixture
def training_log() -> TrainingLog:
    return TrainingLog()


@pytest.fixture
def supervised(data: MarketData, training_log: TrainingLog) -> Iterator[Supervised]:
    """Trains in a child, as the command does; afterwards no child may be left."""

    def run(out: Path, faults: str = "", *, limits: PhaseLimits = LONG_LIMITS, faulty: int = 1, attempts: int = 3,
            stop_now: bool = False, config: TrainingConfig = CONFIG) -> str:  # fmt: skip
        jobs = LocalJobRunner(SupervisionPolicy(limits, attempts), SystemClock(), faults=faults, faulty_launches=faulty)
        listener = JobListener(training_log.on_progress, training_log.replacements.append, lambda: stop_now)
        with state.lock_output(out):
            prepare_training(data, config, out, force=False, finish=False)
            sha256: str = jobs.run(training_request(out, created=CREATED, force=False, finish=False), listener)
            return sha256

    yield run
    assert psutil.Process().children() == []


@pytest.fixture(scope="module")
def local_bundle(data: MarketData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the same training in this process."""
    out = tmp_path_factory.mktemp("local") / "bundle"
    train(data, CONFIG, out, lambda _: None, created=CREATED)
    return out


def assert_same_bundle(out: Path, local_bundle: Path, sha256: str) -> MarketManifest:
    """The bundle equals the local one byte for byte, and no other file is next to it."""
    for name in ("weights.safetensors", "canary.safetensors"):
        assert (out / name).read_bytes() == (local_bundle / name).read_bytes()
    manifest = MarketManifest.read(out)
    assert manifest.sha256 == sha256 == MarketManifest.read(local_bundle).sha256
    assert [entry.name for entry in out.parent.iterdir()] == [out.name]
    return manifest


def test_supervised_training_gives_identical_bundle_after_crash(
    supervised: Supervised, training_log: TrainingLog, local_bundle: Path, tmp_path: Path
) -> None:
    sha256 = supervised(tmp_path / "bundle", f"crash@{LAST_STEP}")
    assert_same_bundle(tmp_path / "bundle", local_bundle, sha256)
    (sentence,) = training_log.replacements
    assert "died in phase training" in sentence
    assert "resumes from the last checkpoint" in sentence
    assert training_log.batches() == [(epoch, batch) for epoch in (1, 2, 3) for batch in (1, 2)]
    assert [p.epoch for p in training_log.progress if p.validation_loss is not None] == [1, 2, 3]
    done = [p.done for p in training_log.progress]
    assert done == sorted(done)
    assert {p.total for p in training_log.progress} == {25}


def test_hung_training_child_is_replaced_and_resumes(
    supervised: Supervised, training_log: TrainingLog, local_bundle: Path, tmp_path: Path
) -> None:
    limits = PhaseLimits(starting=120, training=20, heartbeat=120, stopping=20)
    sha256 = supervised(tmp_path / "bundle", f"hang@{SECOND_EPOCH}", limits=limits, attempts=10)
    assert_same_bundle(tmp_path / "bundle", local_bundle, sha256)
    assert any("hung (no progress for" in sentence for sentence in training_log.replacements)
    assert [training_log.batches().count((epoch, 1)) for epoch in (1, 2, 3)] == [1, 2, 1]


def test_training_fails_when_every_child_dies_and_keeps_state(
    supervised: Supervised, training_log: TrainingLog, tmp_path: Path
) -> None:
    with pytest.raises(ChildFailed, match=r"training of bundle: .* died in phase training, exit status 7"):
        supervised(tmp_path / "bundle", f"exit:7@{FIRST_STEP}", attempts=2, faulty=2)
    assert len(training_log.replacements) == 1
    assert state.load(tmp_path / "bundle") is not None


def interrupt(_: TrainingProgress) -> None:
    raise KeyboardInterrupt


def interrupt_second_epoch(progress: TrainingProgress) -> None:
    if progress.epoch == 2:
        raise KeyboardInterrupt


def test_interrupt_stops_child_and_keeps_checkpoint(
    supervised: Supervised, training_log: TrainingLog, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    training_log.hook = interrupt_second_epoch
    with pytest.raises(ModelFailed) as failed:
        supervised(out, f"hang@{SECOND_EPOCH}")
    interrupted = error_from_child(failed.value, out)
    assert isinstance(interrupted, TrainingInterrupted)
    assert interrupted.has_checkpoint
    assert "Best checkpoint kept" in str(interrupted)
    assert training_log.replacements == []


def test_child_ignoring_interrupt_is_killed_on_stop_now(
    supervised: Supervised, training_log: TrainingLog, tmp_path: Path
) -> None:
    training_log.hook = interrupt
    limits = PhaseLimits(starting=120, training=240, heartbeat=240, stopping=240)
    with pytest.raises(KeyboardInterrupt):
        supervised(tmp_path / "bundle", f"silent@{SECOND_STEP}", limits=limits, stop_now=True)
    assert state.load(tmp_path / "bundle") is not None


def test_interrupt_before_launch_starts_nothing(
    supervised: Supervised, training_log: TrainingLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class InterruptedQueue(SimpleQueue[object]):
        def get(self, *_: object, **__: object) -> object:
            raise KeyboardInterrupt

    monkeypatch.setattr("forecastd.inference.job_runner.SimpleQueue", InterruptedQueue)
    with pytest.raises(KeyboardInterrupt):
        supervised(tmp_path / "bundle")
    assert training_log.progress == []


def test_second_trainer_waits_for_first_to_release_rows(data: MarketData, tmp_path: Path) -> None:
    out, entered = tmp_path / "bundle", Event()

    def take_over() -> None:
        with state.lock_rows(out) as exists:
            assert exists
            entered.set()

    with state.lock_output(out):
        prepare_training(data, CONFIG, out, force=False, finish=False)
        second = Thread(target=take_over)
        with state.lock_rows(out):
            second.start()
            assert not entered.wait(0.3)
        assert entered.wait(60)
        second.join()
        state.open_or_create(out, data, CONFIG, discard=True).remove()
        with state.lock_rows(out) as exists:
            assert not exists


def test_row_lock_timeout_is_reported(data: MarketData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "_LOCK_ATTEMPTS", 2)
    out = tmp_path / "bundle"
    with state.lock_output(out):
        prepare_training(data, CONFIG, out, force=False, finish=False)
        with state.lock_rows(out), pytest.raises(BundleError, match="does not end"), state.lock_rows(out):
            pass


def test_child_environment_has_device_and_thread_settings(
    supervised: Supervised, training_log: TrainingLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TIINGO_API_KEY", "a-secret-key")
    environment: dict[str, str] = {}

    def read_environment(_: TrainingProgress) -> None:
        (child,) = psutil.Process().children()
        environment.update(child.environ())
        raise KeyboardInterrupt

    training_log.hook = read_environment
    with pytest.raises(ModelFailed):
        supervised(tmp_path / "bundle", f"hang@{SECOND_STEP}")
    assert environment["CUDA_VISIBLE_DEVICES"] == "7"
    assert environment["OMP_NUM_THREADS"] == "1"
    assert "OPENBLAS_NUM_THREADS" not in environment
    assert "a-secret-key" not in environment.values()


def test_interrupt_after_completion_still_returns_bundle(
    supervised: Supervised, data: MarketData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class InterruptedPool(ProcessPool):
        def close(self) -> None:
            super().close()
            raise KeyboardInterrupt

    monkeypatch.setattr("forecastd.inference.job_runner.ProcessPool", InterruptedPool)
    out = tmp_path / "bundle"
    train(data, replace(CONFIG, epochs=1), out, lambda _: None, created=CREATED)
    with state.lock_output(out):
        # As if the child had died right after it wrote the bundle.
        prepare_training(data, replace(CONFIG, epochs=1), out, force=False, finish=False)
    assert supervised(out, config=replace(CONFIG, epochs=1)) == MarketManifest.read(out).sha256
