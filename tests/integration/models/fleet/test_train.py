"""The training of a fleet model from history to bundle: no look-ahead, exact resume, and the served engine equals the
network.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forecastd.fleet.history.training_data import simulate_data
from models.errors import BundleError, DataError, TrainingInterrupted
from models.fleet.anchors import anchor_forecast
from models.fleet.base import FleetInput
from models.fleet.bundle import CENTER_KEY, SCALE_KEY, load_fleet_bundle
from models.fleet.config import FleetTrainingConfig
from models.fleet.dataset import FleetData, carry_forward, split
from models.fleet.engines import load_fleet_engine, verify_fleet_canary
from models.fleet.manifest import FleetManifest
from models.fleet.scaling import FleetScaling, GroupScales
from models.train import train as train_any
from models.training import state
from models.training.progress import TrainingProgress

UNTIL = 1_767_225_600.0  # 2026-01-01T00:00:00Z
CONFIG = FleetTrainingConfig(
    name="tiny", encoder_length=24, encoder_minimum=8, horizon=12, hidden_size=8, hidden_continuous_size=4,
    attention_heads=2, embedding_size=2, epochs=3, patience=3, batch_size=8, batches_per_epoch=3, scored_windows=24,
    compared_windows=4, accelerator="cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def data() -> FleetData:
    """Six servers for an hour and a half, one of which is silent for a while."""
    simulated_data = simulate_data("6x1.5:varied", until=UNTIL, step=5, seed=3)
    values = simulated_data.values.copy()
    values[2, 300:340] = np.nan
    values[4, 100:103, 5] = np.nan
    return replace(simulated_data, values=values)


def ignore_progress(_: TrainingProgress) -> None:
    pass


def train(
    data: FleetData,
    config: FleetTrainingConfig,
    out: Path,
    progress: Callable[[TrainingProgress], None] = ignore_progress,
    **how: Any,
) -> FleetManifest:
    """`models.training.run.train` for a fleet."""
    manifest = train_any(data, config, out, progress, **{"created": UNTIL, **how})
    assert isinstance(manifest, FleetManifest)
    return manifest


@pytest.fixture(scope="module")
def trained(
    data: FleetData, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, FleetManifest, list[TrainingProgress]]:
    """A bundle trained in one run, its manifest, and the progress reports."""
    out, reports = tmp_path_factory.mktemp("trained") / "bundle", list[TrainingProgress]()
    return out, train(data, CONFIG, out, reports.append), reports


TrainingOutput = tuple[Path, FleetManifest, list[TrainingProgress]]


def test_trained_bundle_passes_canary_on_every_engine(trained: TrainingOutput) -> None:
    out, manifest, _ = trained
    bundle = load_fleet_bundle(out)
    assert bundle.manifest == manifest
    assert [entry.name for entry in out.parent.iterdir()] == ["bundle"]
    assert not (Path.cwd() / "lightning_logs").exists()
    for name in ("library", "fused", "onnx", "auto"):
        assert verify_fleet_canary(bundle, load_fleet_engine(bundle, name)) < 1e-3
    assert manifest.training.config["unknown"] == 0.25
    assert manifest.training.synthetic
    assert manifest.profiles == ("other", "web", "database", "cache", "worker", "batch")


def test_calendar_cycle_seen_once_is_not_used(trained: TrainingOutput) -> None:
    assert trained[1].cycles == ()


def test_scores_include_baselines_on_same_windows(trained: TrainingOutput) -> None:
    for part in ("validation", "test"):
        scores = trained[1].scores[part]
        assert isinstance(scores, dict)
        assert scores["windows"] == 24
        for name in ("model", "persistence", "seasonal"):
            assert 0 < scores[name]["pinball"] < 10
            assert set(scores[name]["coverage"]) == {"0.96", "0.8", "0.5"}
            assert set(scores[name]["by_metric"]) == set(trained[1].names)
    test = trained[1].scores["test"]
    assert isinstance(test, dict)
    assert {name: value for name, value in test["sample"].items() if not isinstance(value, dict)} == {"windows": 4}
    assert set(test["sample"]) == {"windows", "model", "persistence", "seasonal", "ets"}


def test_training_progress_never_decreases(trained: TrainingOutput) -> None:
    reports = trained[2]
    completed = [report.done for report in reports]
    assert completed == sorted(completed)
    assert {report.total for report in reports} == {completed[-1]}
    assert list(dict.fromkeys(report.stage for report in reports)) == ["start", "fit", "score", "write"]
    assert [(p.epoch, p.batch) for p in reports if p.loss is not None] == [(e, b) for e in (1, 2, 3) for b in (1, 2, 3)]


def test_training_batch_equals_serving_engine(data: FleetData, trained: TrainingOutput) -> None:
    """A training batch through the network, and the same windows through the serving engine."""
    import torch

    from models.fleet.batches import BatchSpec, FleetWindowDataset, GroupIndex
    from models.tft import torch_model as library

    bundle = load_fleet_bundle(trained[0])
    manifest, filled = bundle.manifest, carry_forward(data.values, data.max_gap)
    groups = GroupScales(manifest.groups, bundle.weights[CENTER_KEY], bundle.weights[SCALE_KEY])
    windows_index = GroupIndex.build(data, groups, manifest.profiles)
    windows = FleetWindowDataset(
        data,
        filled,
        groups,
        network=manifest.network,
        cycles=manifest.cycles,
        anchors=manifest.anchors,
        config=CONFIG,
    )
    network = library.build_with_weights(manifest.network, manifest.levels, manifest.encoder_length, bundle.weights)
    servers, origin = np.array([0, 3, 5]), 700
    for length in (24, 15, 8):
        batch = windows[
            BatchSpec(
                length, servers, np.full(3, origin), windows_index.server_rows[servers], windows_index.profiles[servers]
            )
        ]
        with torch.no_grad():
            outputs = torch.stack(network(batch["x"])["prediction"], dim=2).permute(0, 2, 3, 1).numpy().copy()
        values = np.zeros((3, 24, len(manifest.metrics)), np.float32)
        values[:, -length:] = filled[servers, origin - length + 1 : origin + 1]
        expected = FleetScaling(bundle).restore(outputs, values[:, -length:], windows_index.server_rows[servers])
        inputs = FleetInput(
            data.first + origin, data.step, tuple(data.servers[window] for window in servers),
            tuple(data.profiles[window] for window in servers), values, np.full(3, length),
        )  # fmt: skip
        assert load_fleet_engine(bundle).forecast(inputs) == pytest.approx(expected, rel=1e-3, abs=1e-3)
        window_count = anchor_forecast(values[:, -length:], manifest.anchors, 12)[:, 0]
        scaled = (data.values[servers, origin + 1 : origin + 13, 0] - window_count) / (
            groups.scale[windows_index.server_rows[servers], 0][:, None]
        )
        assert batch["target"][..., 0].numpy() == pytest.approx(scaled, abs=1e-4)


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), epoch=st.integers(0, 5))
def test_batch_sampling_is_repeatable_per_epoch(data: FleetData, seed: int, epoch: int) -> None:
    from models.fleet.batches import FleetBatchSampler, GroupIndex

    filled = carry_forward(data.values, data.max_gap)
    part = split(data, filled, replace(CONFIG, validation=0.2, test=0.2)).train
    profiles = ("other", *dict.fromkeys(data.profiles))
    names = (*(f"server:{draw}" for draw in data.servers[1:]), *(f"profile:{draw}" for draw in profiles[1:]), "default")
    server_index = GroupIndex.build(
        data, GroupScales(names, np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32)), profiles
    )
    config = replace(CONFIG, seed=seed, short=0.5, batches_per_epoch=4)
    drawn = []
    for _ in range(2):
        draws = FleetBatchSampler(part, server_index, data.ticks, config)
        draws.set_epoch(epoch)
        drawn.append(list(draws))
    assert len(drawn[0]) == len(draws) == 4
    for draw, again in zip(*drawn, strict=True):
        assert draw.length == again.length
        assert all(np.array_equal(a, b) for a, b in zip(draw[1:], again[1:], strict=True))
        assert 8 <= draw.length <= 24
        for server, origin, row, profile in zip(*draw[1:], strict=True):
            assert np.isfinite(filled[server, origin - draw.length + 1 : origin + 1]).all()
            name, of = names[row], data.profiles[server]
            assert name in {f"server:{data.servers[server]}", f"profile:{of}", "default"}
            assert profiles[profile] == ("other" if name == "default" else of)


def test_training_loss_is_pinball_loss(data: FleetData, trained: TrainingOutput) -> None:
    import torch

    from models.fleet.batches import FleetQuantileModule
    from models.tft import torch_model as library

    bundle = load_fleet_bundle(trained[0])
    manifest = bundle.manifest
    network = library.build_with_weights(manifest.network, manifest.levels, manifest.encoder_length, bundle.weights)
    weights = np.linspace(0.5, 1.5, len(manifest.metrics), dtype=np.float32)
    module = FleetQuantileModule(network, CONFIG, weights, 10).eval()
    rng = np.random.default_rng(0)
    past = rng.normal(size=(3, 24, len(manifest.network.encoder_reals))).astype(np.float32)
    future = rng.normal(size=(3, 12, len(manifest.network.decoder_reals))).astype(np.float32)
    x = library.make_inputs(manifest.network, past, future, np.array([1, 2, 0]))
    target = rng.normal(size=(3, 12, len(manifest.metrics))).astype(np.float32)
    target[0, 3:7, 2] = np.nan
    with torch.no_grad():
        reported_loss = float(module.loss({"x": x, "target": torch.from_numpy(target)}))
        outputs = torch.stack(network(x)["prediction"], dim=2).numpy()
    level = np.array(manifest.levels)
    error = target[..., None] - outputs
    losses = np.maximum(level * error, (level - 1) * error).mean(axis=-1) * weights
    assert reported_loss == pytest.approx(np.nansum(losses) / np.isfinite(target).sum(), rel=1e-4)


def interrupt_at(epoch: int, batch: int) -> Callable[[TrainingProgress], None]:
    def progress(reached: TrainingProgress) -> None:
        if (reached.epoch, reached.batch) == (epoch, batch) and reached.loss is not None:
            os.kill(os.getpid(), signal.SIGINT)

    return progress


def test_resumed_training_reaches_same_weights(data: FleetData, trained: TrainingOutput, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(TrainingInterrupted, match="Best checkpoint kept"):
        train(data, CONFIG, out, interrupt_at(2, 2))
    saved_epochs = state.load(out)
    assert saved_epochs is not None
    assert np.array_equal(saved_epochs.restore_rows(FleetData).values, data.values, equal_nan=True)
    reports: list[TrainingProgress] = []
    manifest = train(data, CONFIG, out, reports.append)
    assert {p.epoch for p in reports if p.loss is not None} == {2, 3}
    assert manifest.files == trained[1].files
    assert not state.state_directory(out).exists()


def test_training_finish_writes_best_so_far(data: FleetData, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(TrainingInterrupted):
        train(data, CONFIG, out, interrupt_at(3, 1))
    reports: list[TrainingProgress] = []
    train(data, CONFIG, out, reports.append, finish=True)
    assert not [p for p in reports if p.stage == "fit"]
    assert load_fleet_bundle(out).manifest.name == "tiny"


def test_training_without_own_scales_uses_profile_scales(data: FleetData, tmp_path: Path) -> None:
    manifest = train(data, replace(CONFIG, own_scales=False, epochs=1), tmp_path / "bundle")
    assert manifest.groups == (
        "profile:web",
        "profile:database",
        "profile:cache",
        "profile:worker",
        "profile:batch",
        "default",
    )


def test_training_single_server_and_metric_works(data: FleetData, tmp_path: Path) -> None:
    """On a grid that shows the days, and no hours; of weeks there is one and a half."""
    single = replace(
        data,
        step=1200,
        first=int(UNTIL // 1200),
        servers=data.servers[:1],
        profiles=data.profiles[:1],
        metrics=data.metrics[:1],
        values=data.values[:1, :, :1],
    )
    manifest = train(single, replace(CONFIG, epochs=1), tmp_path / "bundle")
    bundle = load_fleet_bundle(tmp_path / "bundle")
    assert verify_fleet_canary(bundle, load_fleet_engine(bundle)) < 1e-3
    assert manifest.network.targets == 1
    assert manifest.cycles == ("day",)


def test_training_refuses_engine_that_differs(data: FleetData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from models.fleet import library_engine

    forecast = library_engine.LibraryEngine.forecast

    def wrong(self, *arguments: Any) -> Any:  # type: ignore[no-untyped-def]
        return forecast(self, *arguments) + 1

    monkeypatch.setattr(library_engine.LibraryEngine, "forecast", wrong)
    with pytest.raises(BundleError, match="no bundle was written") as error_info:
        train(data, replace(CONFIG, epochs=1), tmp_path / "bundle")
    assert error_info.value.check == "canary"
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_minimum": 25}, "--encoder-minimum"),
        ({"encoder_minimum": 1}, "--encoder-minimum"),
        ({"embedding_size": 9}, "embedding of a profile"),
        ({"short": 1.5}, "from 0 to 1"),
        ({"levels": (0.1, 0.9)}, "0.5"),
        ({"encoder_length": 400}, "needs at least"),
    ],
)
def test_training_invalid_options_write_nothing(
    change: dict[str, Any], message: str, data: FleetData, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        train(data, replace(CONFIG, **change), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
