"""A fleet's training from history to bundle: honest, resumable to the bit, and what is trained is what is served."""

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
from hypothesis import given, settings
from hypothesis import strategies as st

from forecastd.fleet.past import simulated
from models import workdir
from models.errors import BundleError, DataError, TrainingInterrupted
from models.fleet import network as library
from models.fleet.anchors import anchored
from models.fleet.base import FleetInput
from models.fleet.bundle import load_fleet_bundle
from models.fleet.config import FleetTrainingConfig
from models.fleet.data import Cut, FleetData, carried, split
from models.fleet.engines import load_fleet_engine, verify_fleet_canary
from models.fleet.fit import Draw, Draws, FleetFit, Which, Windows
from models.fleet.groups import Groups
from models.fleet.manifest import FleetManifest
from models.fleet.scaling import FleetScaling
from models.progress import Progress
from models.training import train as train_any

UNTIL = 1_767_225_600.0  # 2026-01-01T00:00:00Z
CONFIG = FleetTrainingConfig(
    name="tiny", encoder_length=24, encoder_minimum=8, horizon=12, hidden_size=8, hidden_continuous_size=4,
    attention_heads=2, embedding_size=2, epochs=3, patience=3, batch_size=8, batches_per_epoch=3, scored_windows=24,
    compared_windows=4, accelerator="cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def data() -> FleetData:
    """Six servers for an hour and a half, one of which falls silent for a while."""
    made = simulated("6x1.5:varied", until=UNTIL, step=5, seed=3)
    values = made.values.copy()
    values[2, 300:340] = np.nan
    values[4, 100:103, 5] = np.nan
    return replace(made, values=values)


def silent(_: Progress) -> None:
    pass


def train(
    data: FleetData, config: FleetTrainingConfig, out: Path, progress: Callable[[Progress], None] = silent, **how: Any
) -> FleetManifest:
    """As `models.training.train`, of a fleet."""
    manifest = train_any(data, config, out, progress, **{"created": UNTIL, **how})
    assert isinstance(manifest, FleetManifest)
    return manifest


@pytest.fixture(scope="module")
def trained(data: FleetData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FleetManifest, list[Progress]]:
    """A bundle trained in one go, its manifest, and what was reported on the way."""
    out, seen = tmp_path_factory.mktemp("trained") / "bundle", list[Progress]()
    return out, train(data, CONFIG, out, seen.append), seen


Trained = tuple[Path, FleetManifest, list[Progress]]


def test_a_trained_bundle_is_whole_and_every_engine_reproduces_it(trained: Trained) -> None:
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


def test_of_a_day_that_was_not_seen_twice_the_network_is_told_nothing(trained: Trained) -> None:
    assert trained[1].cycles == ()


def test_scores_stand_beside_the_baselines_on_the_same_windows(trained: Trained) -> None:
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
    assert {name: one for name, one in test["sample"].items() if not isinstance(one, dict)} == {"windows": 4}
    assert set(test["sample"]) == {"windows", "model", "persistence", "seasonal", "ets"}


def test_progress_counts_all_work_and_never_goes_back(trained: Trained) -> None:
    seen = trained[2]
    done = [one.done for one in seen]
    assert done == sorted(done)
    assert {one.total for one in seen} == {done[-1]}
    assert list(dict.fromkeys(one.stage for one in seen)) == ["start", "fit", "score", "write"]
    assert [(p.epoch, p.batch) for p in seen if p.loss is not None] == [(e, b) for e in (1, 2, 3) for b in (1, 2, 3)]


def test_what_is_trained_is_what_is_served(data: FleetData, trained: Trained) -> None:
    """A batch of the training through the network, and the same windows through the engine that serves."""
    bundle = load_fleet_bundle(trained[0])
    manifest, filled = bundle.manifest, carried(data.values, data.max_gap)
    groups = Groups(manifest.groups, bundle.center, bundle.scale)
    which = Which.of(data, groups, manifest.profiles)
    windows = Windows(
        data,
        filled,
        groups,
        network=manifest.network,
        cycles=manifest.cycles,
        anchors=manifest.anchors,
        config=CONFIG,
    )
    network = library.with_weights(manifest.network, manifest.levels, manifest.encoder_length, bundle.weights)
    servers, origin = np.array([0, 3, 5]), 700
    for length in (24, 15, 8):
        batch = windows[Draw(length, servers, np.full(3, origin), which.own[servers], which.profiles[servers])]
        with torch.no_grad():
            outputs = torch.stack(network(batch["x"])["prediction"], dim=2).permute(0, 2, 3, 1).numpy().copy()
        values = np.zeros((3, 24, len(manifest.metrics)), np.float32)
        values[:, -length:] = filled[servers, origin - length + 1 : origin + 1]
        wanted = FleetScaling(bundle).restore(outputs, values[:, -length:], which.own[servers])
        inputs = FleetInput(
            data.first + origin, data.step, tuple(data.servers[one] for one in servers),
            tuple(data.profiles[one] for one in servers), values, np.full(3, length),
        )  # fmt: skip
        assert load_fleet_engine(bundle).forecast(inputs) == pytest.approx(wanted, rel=1e-3, abs=1e-3)
        counted = anchored(values[:, -length:], manifest.anchors, 12)[:, 0]
        scaled = (data.values[servers, origin + 1 : origin + 13, 0] - counted) / (
            groups.scale[which.own[servers], 0][:, None]
        )
        assert batch["target"][..., 0].numpy() == pytest.approx(scaled, abs=1e-4)


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), epoch=st.integers(0, 5))
def test_draws_are_the_same_for_the_same_epoch_and_hold_what_they_promise(
    data: FleetData, seed: int, epoch: int
) -> None:
    filled = carried(data.values, data.max_gap)
    part = split(data, filled, Cut(8, 24, 12, 0.2, 0.2)).train
    profiles = ("other", *dict.fromkeys(data.profiles))
    names = (*(f"server:{one}" for one in data.servers[1:]), *(f"profile:{one}" for one in profiles[1:]), "default")
    which = Which.of(data, Groups(names, np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32)), profiles)
    config = replace(CONFIG, seed=seed, short=0.5, batches_per_epoch=4)
    found = []
    for _ in range(2):
        draws = Draws(part, which, data.ticks, config)
        draws.set_epoch(epoch)
        found.append(list(draws))
    assert len(found[0]) == len(draws) == 4
    for one, again in zip(*found, strict=True):
        assert one.length == again.length
        assert all(np.array_equal(a, b) for a, b in zip(one[1:], again[1:], strict=True))
        assert 8 <= one.length <= 24
        for server, origin, row, profile in zip(*one[1:], strict=True):
            assert np.isfinite(filled[server, origin - one.length + 1 : origin + 1]).all()
            name, of = names[row], data.profiles[server]
            assert name in {f"server:{data.servers[server]}", f"profile:{of}", "default"}
            assert profiles[profile] == ("other" if name == "default" else of)


def test_the_loss_is_the_pinball_loss_of_what_was_observed(data: FleetData, trained: Trained) -> None:
    bundle = load_fleet_bundle(trained[0])
    manifest = bundle.manifest
    network = library.with_weights(manifest.network, manifest.levels, manifest.encoder_length, bundle.weights)
    weights = np.linspace(0.5, 1.5, len(manifest.metrics), dtype=np.float32)
    module = FleetFit(network, CONFIG, weights, 10).eval()
    rng = np.random.default_rng(0)
    past = rng.normal(size=(3, 24, len(manifest.network.encoder_reals))).astype(np.float32)
    future = rng.normal(size=(3, 12, len(manifest.network.decoder_reals))).astype(np.float32)
    x = library.inputs(manifest.network, past, future, np.array([1, 2, 0]))
    target = rng.normal(size=(3, 12, len(manifest.metrics))).astype(np.float32)
    target[0, 3:7, 2] = np.nan
    with torch.no_grad():
        told = float(module.loss({"x": x, "target": torch.from_numpy(target)}))
        outputs = torch.stack(network(x)["prediction"], dim=2).numpy()
    level = np.array(manifest.levels)
    error = target[..., None] - outputs
    losses = np.maximum(level * error, (level - 1) * error).mean(axis=-1) * weights
    assert told == pytest.approx(np.nansum(losses) / np.isfinite(target).sum(), rel=1e-4)


def interrupt_at(epoch: int, batch: int) -> Callable[[Progress], None]:
    def progress(reached: Progress) -> None:
        if (reached.epoch, reached.batch) == (epoch, batch) and reached.loss is not None:
            os.kill(os.getpid(), signal.SIGINT)

    return progress


def test_an_interrupted_training_goes_on_to_the_very_same_weights(
    data: FleetData, trained: Trained, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(TrainingInterrupted, match="Best checkpoint kept"):
        train(data, CONFIG, out, interrupt_at(2, 2))
    kept = workdir.find(out)
    assert kept is not None
    assert isinstance(kept.data, FleetData)
    assert np.array_equal(kept.data.values, data.values, equal_nan=True)
    seen: list[Progress] = []
    manifest = train(data, CONFIG, out, seen.append)
    assert {p.epoch for p in seen if p.loss is not None} == {2, 3}
    assert manifest.files == trained[1].files
    assert not workdir.place(out).exists()


def test_finish_writes_what_was_reached(data: FleetData, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(TrainingInterrupted):
        train(data, CONFIG, out, interrupt_at(3, 1))
    seen: list[Progress] = []
    train(data, CONFIG, out, seen.append, finish=True)
    assert not [p for p in seen if p.stage == "fit"]
    assert load_fleet_bundle(out).manifest.name == "tiny"


def test_without_scales_of_their_own_servers_go_by_their_profile(data: FleetData, tmp_path: Path) -> None:
    manifest = train(data, replace(CONFIG, own_scales=False, epochs=1), tmp_path / "bundle")
    assert manifest.groups == (
        "profile:web",
        "profile:database",
        "profile:cache",
        "profile:worker",
        "profile:batch",
        "default",
    )


def test_one_server_with_one_metric_can_be_trained_on(data: FleetData, tmp_path: Path) -> None:
    """On a grid that shows the days, and no hours; of weeks there is one and a half."""
    one = replace(
        data,
        step=1200,
        first=int(UNTIL // 1200),
        servers=data.servers[:1],
        profiles=data.profiles[:1],
        metrics=data.metrics[:1],
        values=data.values[:1, :, :1],
    )
    manifest = train(one, replace(CONFIG, epochs=1), tmp_path / "bundle")
    bundle = load_fleet_bundle(tmp_path / "bundle")
    assert verify_fleet_canary(bundle, load_fleet_engine(bundle)) < 1e-3
    assert manifest.network.targets == 1
    assert manifest.cycles == ("day",)


def test_an_engine_that_differs_from_the_network_is_never_written(
    data: FleetData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from models.fleet import reference

    forecast = reference.Library.forecast

    def wrong(self, *given: Any) -> Any:  # type: ignore[no-untyped-def]
        return forecast(self, *given) + 1

    monkeypatch.setattr(reference.Library, "forecast", wrong)
    with pytest.raises(BundleError, match="no bundle was written") as refused:
        train(data, replace(CONFIG, epochs=1), tmp_path / "bundle")
    assert refused.value.check == "canary"
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"encoder_minimum": 25}, "--encoder-minimum"),
        ({"encoder_minimum": 1}, "--encoder-minimum"),
        ({"embedding_size": 9}, "told by"),
        ({"short": 1.5}, "from 0 to 1"),
        ({"levels": (0.1, 0.9)}, "0.5"),
        ({"encoder_length": 400}, "it takes at least"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_written(
    change: dict[str, Any], told: str, data: FleetData, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=told):
        train(data, replace(CONFIG, **change), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
