"""Training from rows to a bundle: honest, resumable to the bit, interruptible at any time, and clear when it cannot work."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import BundleError, DataError, TrainingInterrupted
from models.market import train as market_train
from models.market.bundle import load_market_bundle
from models.market.dataset import MarketData
from models.market.engine import MarketEngine, verify_market_canary
from models.market.manifest import MarketManifest
from models.train import train as train_any
from models.training import state
from models.training.config import TrainingConfig
from models.training.progress import TrainingProgress

CONFIG = TrainingConfig(
    name="tiny", encoder_length=12, horizon=6, hidden_size=4, hidden_continuous_size=4, attention_heads=2,
    epochs=3, patience=3, batch_size=16, batches_per_epoch=2, scored_windows=20, accelerator="cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def data() -> MarketData:
    rng = np.random.default_rng(0)
    count = 400
    past = rng.normal(5, 2, size=(count, 1))
    past[300:] += 1000  # only the validation and the test part look like this
    return MarketData(
        time=1_600_000_000 // 3600 * 3600 + 3600 * np.arange(count, dtype=np.int64),
        target=10 + rng.normal(0, 0.01, count).cumsum(),
        past=past,
        known=rng.normal(size=(count, 1)),
        past_names=("p0",),
        known_names=("k0",),
        step=3600,
        data_sha256="a" * 64,
        source="test",
        synthetic=True,
    )


def ignore_progress(_: TrainingProgress) -> None:
    pass


def train_market(
    data: MarketData, config: TrainingConfig, out: Path, progress: Callable[[TrainingProgress], None], **options: Any
) -> MarketManifest:
    """See `models.training.train`: of a market."""
    manifest = train_any(data, config, out, progress, **options)
    assert isinstance(manifest, MarketManifest)
    return manifest


@pytest.fixture(scope="module")
def trained(
    data: MarketData, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, MarketManifest, list[TrainingProgress]]:
    """A bundle trained in one go, its manifest, and what was reported on the way."""
    out, reported = tmp_path_factory.mktemp("trained") / "bundle", list[TrainingProgress]()
    return out, train_market(data, CONFIG, out, reported.append, created=1_700_000_000.0), reported


def test_trained_bundle_is_complete_and_leaves_no_other_file(
    trained: tuple[Path, MarketManifest, list[TrainingProgress]],
) -> None:
    out, manifest, _ = trained
    bundle = load_market_bundle(out)
    assert bundle.manifest == manifest
    assert bundle.ignored == ()
    assert verify_market_canary(bundle, MarketEngine(bundle)) < 1e-5
    assert [entry.name for entry in out.parent.iterdir()] == ["bundle"]  # no checkpoints, no lightning_logs
    assert not (Path.cwd() / "lightning_logs").exists()
    assert manifest.training.config["batches_per_epoch"] == 2
    assert manifest.training.created == 1_700_000_000
    assert manifest.versions["pytorch-forecasting"].startswith("1.8")


def test_scalers_use_training_part_only(
    trained: tuple[Path, MarketManifest, list[TrainingProgress]], data: MarketData
) -> None:
    run = trained[1].training
    assert run.start < run.trained_until < run.end
    train_rows = data.time < run.trained_until
    assert trained[1].scalers["p0"].center == pytest.approx(data.past[train_rows, 0].mean())
    assert trained[1].scalers["p0"].center < 10


def test_metrics_include_baselines(trained: tuple[Path, MarketManifest, list[TrainingProgress]]) -> None:
    for part in ("validation", "test"):
        scores = trained[1].scores[part]
        assert isinstance(scores, dict)
        assert scores["windows"] == 20
        assert scores["horizons"] == 7
        for name in ("model", "zero", "drift", "volatility"):
            assert 0 < scores[name]["pinball"] < 0.1
            assert set(scores[name]["coverage"]) == {"0.96", "0.8", "0.5"}


def test_progress_reports_batches_and_validations(trained: tuple[Path, MarketManifest, list[TrainingProgress]]) -> None:
    fitted = [(p.epoch, p.batch, p.batches) for p in trained[2] if p.loss is not None]
    assert fitted == [(epoch, batch, 2) for epoch in (1, 2, 3) for batch in (1, 2)]
    assert [p.epoch for p in trained[2] if p.validation_loss is not None] == [1, 2, 3]


def test_progress_is_monotonic_and_complete(trained: tuple[Path, MarketManifest, list[TrainingProgress]]) -> None:
    reported = trained[2]
    done = [p.done for p in reported]
    assert done == sorted(done)
    assert {p.total for p in reported} == {done[-1]}
    assert list(dict.fromkeys(p.stage for p in reported)) == ["start", "fit", "score", "write"]
    for stage, steps in (("start", 5), ("fit", 3 * (2 + 2)), ("score", 10), ("write", 1)):
        assert len({p.done for p in reported if p.stage == stage}) >= steps, stage


def interrupt_at(epoch: int, batch: int) -> Callable[[TrainingProgress], None]:
    def progress(reached: TrainingProgress) -> None:
        if (reached.epoch, reached.batch) == (epoch, batch) and reached.loss is not None:
            os.kill(os.getpid(), signal.SIGINT)

    return progress


def test_resumed_training_gives_identical_weights(
    trained: tuple[Path, MarketManifest, list[TrainingProgress]], data: MarketData, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(TrainingInterrupted, match="Best checkpoint kept; run the same command again"):
        train_market(data, CONFIG, out, interrupt_at(2, 1), created=0.0)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not out.exists()
    reported: list[TrainingProgress] = []
    manifest = train_market(data, CONFIG, out, reported.append, created=1_700_000_000.0)
    assert {p.epoch for p in reported if p.loss is not None} == {2, 3}
    assert manifest.files["weights.safetensors"] == trained[1].files["weights.safetensors"]
    assert not state.state_directory(out).exists()


def test_interrupt_before_first_validation_keeps_no_checkpoint(data: MarketData, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(TrainingInterrupted, match="No epoch was finished yet") as interrupted:
        train_market(data, CONFIG, out, interrupt_at(1, 1), created=0.0)
    assert not interrupted.value.has_checkpoint
    with pytest.raises(DataError, match="no checkpoint"):
        train_market(data, CONFIG, out, ignore_progress, created=0.0, finish=True)


def test_finish_writes_bundle_from_best_checkpoint(data: MarketData, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(TrainingInterrupted):
        train_market(data, CONFIG, out, interrupt_at(3, 1), created=0.0)
    reported: list[TrainingProgress] = []
    train_market(data, CONFIG, out, reported.append, created=0.0, finish=True)
    assert not [p for p in reported if p.stage == "fit"]
    assert load_market_bundle(out).manifest.name == "tiny"


def test_checkpoints_load_weights_only_and_rows_are_saved(data: MarketData, tmp_path: Path) -> None:
    import torch

    out = tmp_path / "bundle"
    with pytest.raises(TrainingInterrupted):
        train_market(data, CONFIG, out, interrupt_at(2, 1), created=0.0)
    for name in (state.BEST_CHECKPOINT, state.LAST_CHECKPOINT):
        assert torch.load(state.state_directory(out) / name, weights_only=True)["state_dict"]
    unfinished = state.load(out)
    assert unfinished is not None
    rows = unfinished.restore_rows(MarketData)
    assert np.array_equal(rows.past, data.past)
    assert rows.known_names == data.known_names


def test_resume_with_other_options_is_refused(data: MarketData, tmp_path: Path) -> None:
    out, other = tmp_path / "bundle", replace(CONFIG, hidden_size=6)
    with pytest.raises(TrainingInterrupted):
        train_market(data, CONFIG, out, interrupt_at(2, 1), created=0.0)
    with pytest.raises(BundleError, match="other options"):
        train_market(data, other, out, ignore_progress, created=0.0)
    manifest = train_market(data, other, out, ignore_progress, created=0.0, force=True)
    assert manifest.network.hidden_size == 6


def test_damaged_training_state_is_reported(data: MarketData, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(TrainingInterrupted):
        train_market(data, CONFIG, out, interrupt_at(2, 1), created=0.0)
    (state.state_directory(out) / state.STATE_FILE).write_text("{")
    with pytest.raises(DataError, match="--force"):
        train_market(data, CONFIG, out, ignore_progress, created=0.0)
    with pytest.raises(TrainingInterrupted):
        train_market(data, CONFIG, out, interrupt_at(2, 1), created=0.0, force=True)
    for name in (state.BEST_CHECKPOINT, state.LAST_CHECKPOINT):
        (state.state_directory(out) / name).write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(DataError, match="--force"):
        train_market(data, CONFIG, out, ignore_progress, created=0.0)


def test_engine_mismatch_writes_no_bundle(data: MarketData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(MarketEngine):
        def predict(self, *arguments):  # type: ignore[no-untyped-def]
            forecast = super().predict(*arguments)
            return replace(forecast, quantiles=forecast.quantiles + 1e-4)

    monkeypatch.setattr(market_train, "MarketEngine", Wrong)
    with pytest.raises(BundleError, match="no bundle was written") as error_info:
        train_market(data, replace(CONFIG, epochs=1), tmp_path / "bundle", ignore_progress, created=0.0)
    assert error_info.value.check == "canary"
    assert not (tmp_path / "bundle").exists()


def test_diverged_training_is_reported_and_leaves_nothing(
    data: MarketData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingConfig, "check", lambda _: None)  # a rate that it would refuse diverges for certain
    with pytest.raises(DataError, match="Lower --learning-rate"):
        train_market(
            data, replace(CONFIG, learning_rate=1e30), tmp_path / "below" / "bundle", ignore_progress, created=0.0
        )
    assert list(tmp_path.iterdir()) == []


def test_concurrent_training_of_same_output_is_refused(data: MarketData, tmp_path: Path) -> None:
    out, refused = tmp_path / "bundle", list[BundleError]()

    def again(reached: TrainingProgress) -> None:
        for force in (False, True) if reached.stage == "fit" else ():
            with pytest.raises(BundleError, match="Another training run is active in") as error_info:
                train_market(data, replace(CONFIG, epochs=1), out, ignore_progress, created=0.0, force=force)
            refused.append(error_info.value)

    manifest = train_market(data, replace(CONFIG, epochs=1), out, again, created=0.0)
    assert {error.check for error in refused} == {"busy"}
    assert load_market_bundle(out).manifest == manifest
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


def test_foreign_state_directory_is_left_untouched(data: MarketData, tmp_path: Path) -> None:
    mine = state.state_directory(tmp_path / "bundle") / "mine"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(BundleError, match="contains mine"):
        train_market(data, CONFIG, tmp_path / "bundle", ignore_progress, created=0.0)
    assert mine.read_text() == "mine"


def test_existing_output_is_left_untouched(data: MarketData, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine").write_text("mine")
    with pytest.raises(BundleError, match="exists already"):
        train_market(data, CONFIG, tmp_path / "bundle", ignore_progress, created=0.0)
    assert (tmp_path / "bundle" / "mine").read_text() == "mine"


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"attention_heads": 5},
        {"dropout": 1.0},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"learning_rate": 1e300},
        {"dropout": float("nan")},
        {"levels": (0.5, float("nan"))},
        {"levels": (float("nan"), 0.5)},
        {"levels": ()},
        {"levels": tuple(i / 128 for i in range(1, 128))},
        {"validation": float("nan")},
        {"hidden_size": 4097},
        {"seed": 2**32},
        {"levels": (0.1, 0.9)},
        {"levels": (0.5, 0.5)},
        {"levels": (0.0, 0.5)},
        {"validation": 0.6, "test": 0.4},
        {"encoder_length": 300},
    ],
)
def test_invalid_options_are_refused_before_writing(
    data: MarketData, tmp_path: Path, change: dict[str, object]
) -> None:
    with pytest.raises(DataError):
        train_market(data, replace(CONFIG, **change), tmp_path / "bundle", ignore_progress, created=0.0)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_missing_gpu_is_reported(data: MarketData, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(DataError, match="accelerator"):
        train_market(data, replace(CONFIG, accelerator="cuda"), tmp_path / "bundle", ignore_progress, created=0.0)
