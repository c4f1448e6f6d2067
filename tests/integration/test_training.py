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
import torch

from models import market, training, workdir
from models.bundle import load_bundle
from models.config import TrainingConfig
from models.engines import Engine, load_engine, verify_canary
from models.errors import BundleError, DataError, TrainingInterrupted
from models.manifest import Manifest
from models.progress import Progress
from models.training import train as train_any
from models.windows import TrainingData

CONFIG = TrainingConfig(
    name="tiny", encoder_length=12, horizon=6, hidden_size=4, hidden_continuous_size=4, attention_heads=2,
    epochs=3, patience=3, batch_size=16, batches_per_epoch=2, scored_windows=20, accelerator="cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def data() -> TrainingData:
    rng = np.random.default_rng(0)
    count = 400
    past = rng.normal(5, 2, size=(count, 1))
    past[300:] += 1000  # only the validation and the test part look like this
    return TrainingData(
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


def silent(_: Progress) -> None:
    pass


def train(
    data: TrainingData, config: TrainingConfig, out: Path, progress: Callable[[Progress], None], **how: Any
) -> Manifest:
    """As `models.training.train`, of a market."""
    manifest = train_any(data, config, out, progress, **how)
    assert isinstance(manifest, Manifest)
    return manifest


@pytest.fixture(scope="module")
def trained(data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest, list[Progress]]:
    """A bundle trained in one go, its manifest, and what was reported on the way."""
    out, seen = tmp_path_factory.mktemp("trained") / "bundle", list[Progress]()
    return out, train(data, CONFIG, out, seen.append, created=1_700_000_000.0), seen


def test_a_trained_bundle_is_whole_and_alone(trained: tuple[Path, Manifest, list[Progress]]) -> None:
    out, manifest, _ = trained
    bundle = load_bundle(out)
    assert bundle.manifest == manifest
    assert bundle.ignored == ()
    assert verify_canary(bundle, load_engine(bundle)) < 1e-5
    assert [entry.name for entry in out.parent.iterdir()] == ["bundle"]  # no checkpoints, no lightning_logs
    assert not (Path.cwd() / "lightning_logs").exists()
    assert manifest.training.config["batches_per_epoch"] == 2
    assert manifest.training.created == 1_700_000_000
    assert manifest.versions["pytorch-forecasting"].startswith("1.8")


def test_scalers_know_the_training_part_only(
    trained: tuple[Path, Manifest, list[Progress]], data: TrainingData
) -> None:
    training = trained[1].training
    assert training.start < training.learnt_until < training.end
    train_rows = data.time < training.learnt_until
    assert trained[1].scalers["p0"].center == pytest.approx(data.past[train_rows, 0].mean())
    assert trained[1].scalers["p0"].center < 10


def test_metrics_stand_beside_the_baselines(trained: tuple[Path, Manifest, list[Progress]]) -> None:
    for part in ("validation", "test"):
        scores = trained[1].metrics[part]
        assert isinstance(scores, dict)
        assert scores["windows"] == 20
        assert scores["horizons"] == 7
        for name in ("model", "zero", "drift", "volatility"):
            assert 0 < scores[name]["pinball"] < 0.1
            assert set(scores[name]["coverage"]) == {"0.96", "0.8", "0.5"}


def test_progress_tells_batches_and_validations(trained: tuple[Path, Manifest, list[Progress]]) -> None:
    fitted = [(p.epoch, p.batch, p.batches) for p in trained[2] if p.loss is not None]
    assert fitted == [(epoch, batch, 2) for epoch in (1, 2, 3) for batch in (1, 2)]
    assert [p.epoch for p in trained[2] if p.validation_loss is not None] == [1, 2, 3]


def test_progress_counts_all_work_and_never_goes_back(trained: tuple[Path, Manifest, list[Progress]]) -> None:
    seen = trained[2]
    done = [p.done for p in seen]
    assert done == sorted(done)
    assert {p.total for p in seen} == {done[-1]}
    assert list(dict.fromkeys(p.stage for p in seen)) == ["start", "fit", "score", "write"]
    for stage, steps in (("start", 5), ("fit", 3 * (2 + 2)), ("score", 10), ("write", 1)):
        assert len({p.done for p in seen if p.stage == stage}) >= steps, stage


def interrupt_at(epoch: int, batch: int) -> Callable[[Progress], None]:
    def progress(reached: Progress) -> None:
        if (reached.epoch, reached.batch) == (epoch, batch) and reached.loss is not None:
            os.kill(os.getpid(), signal.SIGINT)

    return progress


def test_an_interrupted_training_goes_on_to_the_very_same_weights(
    trained: tuple[Path, Manifest, list[Progress]], data: TrainingData, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(TrainingInterrupted, match="Best checkpoint kept; run the same command again"):
        train(data, CONFIG, out, interrupt_at(2, 1), created=0.0)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not out.exists()
    seen: list[Progress] = []
    manifest = train(data, CONFIG, out, seen.append, created=1_700_000_000.0)
    assert {p.epoch for p in seen if p.loss is not None} == {2, 3}
    assert manifest.files["weights.safetensors"] == trained[1].files["weights.safetensors"]
    assert not workdir.place(out).exists()


def test_before_the_first_validation_there_is_nothing_to_keep_and_it_says_so(
    data: TrainingData, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(TrainingInterrupted, match="No epoch was finished yet") as interrupted:
        train(data, CONFIG, out, interrupt_at(1, 1), created=0.0)
    assert not interrupted.value.kept
    with pytest.raises(DataError, match="no checkpoint"):
        train(data, CONFIG, out, silent, created=0.0, finish=True)


def test_finish_writes_what_was_reached(data: TrainingData, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(TrainingInterrupted):
        train(data, CONFIG, out, interrupt_at(3, 1), created=0.0)
    seen: list[Progress] = []
    train(data, CONFIG, out, seen.append, created=0.0, finish=True)
    assert not [p for p in seen if p.stage == "fit"]
    assert load_bundle(out).manifest.name == "tiny"


def test_checkpoints_hold_no_objects_and_the_rows_are_kept(data: TrainingData, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(TrainingInterrupted):
        train(data, CONFIG, out, interrupt_at(2, 1), created=0.0)
    for name in (workdir.BEST, workdir.LAST):
        assert torch.load(workdir.place(out) / name, weights_only=True)["state_dict"]
    kept = workdir.find(out)
    assert kept is not None
    assert isinstance(kept.data, TrainingData)
    assert np.array_equal(kept.data.past, data.past)
    assert kept.data.known_names == data.known_names


def test_other_options_do_not_go_on_with_an_interrupted_training_by_accident(
    data: TrainingData, tmp_path: Path
) -> None:
    out, other = tmp_path / "bundle", replace(CONFIG, hidden_size=6)
    with pytest.raises(TrainingInterrupted):
        train(data, CONFIG, out, interrupt_at(2, 1), created=0.0)
    with pytest.raises(BundleError, match="other options"):
        train(data, other, out, silent, created=0.0)
    manifest = train(data, other, out, silent, created=0.0, force=True)
    assert manifest.network.hidden_size == 6


def test_a_damaged_unfinished_training_is_told_not_guessed(data: TrainingData, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(TrainingInterrupted):
        train(data, CONFIG, out, interrupt_at(2, 1), created=0.0)
    (workdir.place(out) / workdir.STATE).write_text("{")
    with pytest.raises(DataError, match="--force"):
        train(data, CONFIG, out, silent, created=0.0)
    with pytest.raises(TrainingInterrupted):
        train(data, CONFIG, out, interrupt_at(2, 1), created=0.0, force=True)
    for name in (workdir.BEST, workdir.LAST):
        (workdir.place(out) / name).write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(DataError, match="--force"):
        train(data, CONFIG, out, silent, created=0.0)


def test_an_engine_that_differs_from_the_network_is_never_written(
    data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(Engine):
        def predict(self, inputs):  # type: ignore[no-untyped-def, override]
            forecast = super().predict(inputs)
            return replace(forecast, quantiles=forecast.quantiles + 1e-4)

    monkeypatch.setattr(market, "Engine", Wrong)
    with pytest.raises(BundleError, match="no bundle was written") as refused:
        train(data, replace(CONFIG, epochs=1), tmp_path / "bundle", silent, created=0.0)
    assert refused.value.check == "canary"
    assert not (tmp_path / "bundle").exists()


def test_a_training_that_diverges_says_so_and_leaves_nothing(
    data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "check_config", lambda _: None)  # a rate that it would refuse diverges for certain
    with pytest.raises(DataError, match="Lower --learning-rate"):
        train(data, replace(CONFIG, learning_rate=1e30), tmp_path / "below" / "bundle", silent, created=0.0)
    assert list(tmp_path.iterdir()) == []


def test_two_trainings_do_not_share_an_output(data: TrainingData, tmp_path: Path) -> None:
    out, refused = tmp_path / "bundle", list[BundleError]()

    def again(reached: Progress) -> None:
        for force in (False, True) if reached.stage == "fit" else ():
            with pytest.raises(BundleError, match="at work in") as busy:
                train(data, replace(CONFIG, epochs=1), out, silent, created=0.0, force=force)
            refused.append(busy.value)

    manifest = train(data, replace(CONFIG, epochs=1), out, again, created=0.0)
    assert {error.check for error in refused} == {"busy"}
    assert load_bundle(out).manifest == manifest
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


def test_a_directory_that_is_not_of_a_training_is_left_alone(data: TrainingData, tmp_path: Path) -> None:
    mine = workdir.place(tmp_path / "bundle") / "mine"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(BundleError, match="holds mine"):
        train(data, CONFIG, tmp_path / "bundle", silent, created=0.0)
    assert mine.read_text() == "mine"


def test_an_output_that_is_there_is_left_alone(data: TrainingData, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine").write_text("mine")
    with pytest.raises(BundleError, match="exists already"):
        train(data, CONFIG, tmp_path / "bundle", silent, created=0.0)
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
def test_options_that_make_no_sense_are_refused_before_anything_is_written(
    data: TrainingData, tmp_path: Path, change: dict[str, object]
) -> None:
    with pytest.raises(DataError):
        train(data, replace(CONFIG, **change), tmp_path / "bundle", silent, created=0.0)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_told(data: TrainingData, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="accelerator"):
        train(data, replace(CONFIG, accelerator="cuda"), tmp_path / "bundle", silent, created=0.0)
