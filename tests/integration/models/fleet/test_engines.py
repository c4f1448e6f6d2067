"""Every fleet engine gives the outputs of the library's network, for random networks and over hundreds of ticks.

These tests guard an upgrade of pytorch-forecasting: a change of its network fails here first.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.bundle.bundle import write_bundle
from models.bundle.canary import range_difference
from models.errors import BundleError, DataError
from models.fleet.anchors import LAST_VALUE
from models.fleet.base import FleetInput
from models.fleet.bundle import (
    FleetBundle,
    load_fleet_bundle,
)
from models.fleet.engine import FleetEngine
from models.fleet.engines import ENGINES, TOLERANCE, load_fleet_engine, verify_fleet_canary
from models.fleet.manifest import OTHER_PROFILE, Anchor, FleetManifest, ModelMetric
from models.fleet.onnx_sessions import OnnxSessions
from tests.support.bundles import TICK, random_fleet_bundle

FAST_ENGINES = ["auto", *sorted(set(ENGINES) - {"library"})]
ANCHORS = (LAST_VALUE, Anchor(0.5, 0.0), Anchor(0.25, 0.9), Anchor(0.1, 1.0), Anchor(0.05, 0.5))
SIZES = {  # hidden, continuous, heads, layers, metrics, profiles, embedding, cycles, encoder, minimum, horizon
    "small": (8, 4, 2, 1, 3, 3, 2, ("day",), 24, 8, 6),
    "deep": (12, 6, 3, 3, 5, 4, 5, ("day", "week"), 30, 10, 9),
    "one metric, no calendar": (8, 8, 1, 1, 1, 2, 8, (), 12, 4, 4),
    "continuous wider than hidden": (6, 10, 2, 2, 2, 2, 1, ("week",), 10, 10, 5),
    "one step ahead": (6, 4, 2, 1, 2, 2, 2, (), 9, 4, 1),
    "many steps ahead": (6, 4, 2, 1, 2, 2, 2, ("hour",), 9, 4, 101),
}


def make_bundle(size: str, seed: int = 0) -> FleetBundle:
    """A bundle with a random network, not checked and not on disk; its canary is the library's."""
    hidden, small, heads, layers, count, profiles, embedding, cycles, length, minimum, horizon = SIZES[size]
    metrics = tuple(
        ModelMetric(f"metric_{index}", "%", -1e6 if index % 2 else 0.0, 1e9, "none" if index % 2 else "log1p")
        for index in range(count)
    )
    return random_fleet_bundle(
        metrics, profiles=(OTHER_PROFILE, *(f"profile{index}" for index in range(1, profiles))), groups=("server:s2",),
        cycles=cycles, sizes=(hidden, small, heads, layers), embedding_size=embedding, encoder_length=length,
        encoder_minimum=minimum, horizon=horizon, levels=(0.1, 0.3, 0.5, 0.7, 0.9),
        anchors=ANCHORS if size == "deep" else (), engine="library", seed=seed,
    )  # fmt: skip


@pytest.fixture(scope="module", params=sorted(SIZES))
def bundle(request: pytest.FixtureRequest) -> FleetBundle:
    return make_bundle(request.param)


class FakeFleet:
    """Servers whose metrics are random walks; `window` gives the input of an engine at a tick."""

    def __init__(self, bundle: FleetBundle, servers: int, ticks: int, seed: int = 1) -> None:
        manifest = bundle.manifest
        self.manifest = manifest
        rng = np.random.default_rng(seed)
        steps = rng.normal(0, 0.3, (servers, ticks + manifest.encoder_length, len(manifest.metrics)))
        self.values = np.abs(3 + np.cumsum(steps, axis=1)).astype(np.float32)
        self.servers = tuple(f"s{index}" for index in range(servers))
        profile_names = (*manifest.profiles, "of-no-training")
        self.profiles = tuple(profile_names[index % len(profile_names)] for index in range(servers))

    def window(self, offset: int, lengths: Any = None) -> FleetInput:
        length, count = self.manifest.encoder_length, len(self.servers)
        lengths = np.full(count, length) if lengths is None else np.asarray(lengths)
        values = self.values[:, offset : offset + length].copy()
        return FleetInput(TICK + offset, self.manifest.step, self.servers, self.profiles, values, lengths)


@pytest.mark.parametrize("name", FAST_ENGINES)
def test_engine_full_encoders_equals_library(bundle: FleetBundle, name: str) -> None:
    window = FakeFleet(bundle, 23, 1).window(0)
    expected = load_fleet_engine(bundle, "library").forecast(window)
    actual = load_fleet_engine(bundle, name, threads=2).forecast(window)
    assert np.ptp(expected, axis=(0, 3)).min() > 0  # servers and steps differ, so a mix-up would show
    assert range_difference(actual, expected) < TOLERANCE / 10


@pytest.mark.parametrize("name", FAST_ENGINES)
def test_engine_encoders_of_all_lengths_equals_library(bundle: FleetBundle, name: str) -> None:
    manifest, rng = bundle.manifest, np.random.default_rng(3)
    window = FakeFleet(bundle, 31, 1).window(0, rng.integers(manifest.encoder_minimum, manifest.encoder_length + 1, 31))
    for row, length in enumerate(window.lengths):
        window.values[row, : manifest.encoder_length - length] = 1e30  # what is not there is never read
    expected = load_fleet_engine(bundle, "library").forecast(window)
    assert range_difference(load_fleet_engine(bundle, name, threads=2).forecast(window), expected) < TOLERANCE / 10


@pytest.mark.parametrize("size", ["small", "deep"])
def test_stream_engine_changing_fleet_equals_library(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(size, seed=5)
    fleet, rng, length = FakeFleet(bundle, 12, 420), np.random.default_rng(8), bundle.manifest.encoder_length
    stream, library = load_fleet_engine(bundle, "stream"), load_fleet_engine(bundle, "library")
    index, used_states = 0, list[bool]()
    rest = OnnxSessions.decode

    def spied(self: OnnxSessions, past: Any, future: Any, which: Any, state: Any = None) -> Any:
        used_states.append(state is not None)
        return rest(self, past, future, which, state)

    monkeypatch.setattr(OnnxSessions, "decode", spied)
    while index < 400:
        window = fleet.window(index)
        present = np.arange(12)
        if rng.random() < 0.4:  # servers join, leave and come in another order
            present = np.sort(rng.permutation(12)[: rng.integers(6, 13)])
        if rng.random() < 0.2:
            present = rng.permutation(present)
        if rng.random() < 0.2:  # a row came late, or was corrected
            fleet.values[rng.integers(12), index + rng.integers(length)] += 0.7
            window = fleet.window(index)
        if rng.random() < 0.1:
            row = int(rng.integers(12))
            profiles = list(fleet.profiles)
            profiles[row] = str(rng.choice(bundle.manifest.profiles))
            fleet.profiles = tuple(profiles)
            window = fleet.window(index)
        part = FleetInput(
            window.tick, window.step, tuple(window.servers[i] for i in present), tuple(window.profiles[i] for i in present),
            window.values[present], window.lengths[present],
        )  # fmt: skip
        if rng.random() < 0.1:  # some are new
            part = replace(part, lengths=np.where(rng.random(len(present)) < 0.3, length - 3, part.lengths))
        assert range_difference(stream.forecast(part), library.forecast(part)) < TOLERANCE / 10, index
        if rng.random() < 0.8:
            stream.look_ahead(part.tick + 1)
        index += int(rng.choice([0, 1, 1, 1, 1, 2, 5, length + 3], p=[0.05, 0.3, 0.2, 0.15, 0.15, 0.1, 0.04, 0.01]))
    assert 50 < sum(used_states) < len(used_states), "some were prepared"


def test_stream_engine_earlier_tick_equals_library() -> None:
    bundle = make_bundle("small")
    fleet, stream = FakeFleet(bundle, 4, 60), load_fleet_engine(bundle, "stream")
    for index in (30, 31, 12, 13, 59, 0):
        expected = load_fleet_engine(bundle, "library").forecast(fleet.window(index))
        assert range_difference(stream.forecast(fleet.window(index)), expected) < TOLERANCE / 10, index


def test_stream_engine_next_tick_computes_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, computed = make_bundle("small"), list[int]()
    fleet, stream = FakeFleet(bundle, 7, 10), load_fleet_engine(bundle, "stream")
    select = OnnxSessions.select

    def counted(self: OnnxSessions, variables: Any, which: Any) -> Any:
        computed.append(len(variables))
        return select(self, variables, which)

    monkeypatch.setattr(OnnxSessions, "select", counted)
    for index in range(4):
        stream.forecast(fleet.window(index))
    assert computed == [7 * 24, 7, 7, 7]


def test_engine_reordered_servers_gives_same_forecasts(bundle: FleetBundle) -> None:
    window, engine = FakeFleet(bundle, 9, 1).window(0), load_fleet_engine(bundle, "auto")
    before = dict(zip(window.servers, engine.forecast(window), strict=True))
    order = np.random.default_rng(2).permutation(9)
    reordered = replace(
        window, servers=tuple(window.servers[i] for i in order), profiles=tuple(window.profiles[i] for i in order),
        values=window.values[order],
    )  # fmt: skip
    for server, quantiles in zip(reordered.servers, engine.forecast(reordered), strict=True):
        np.testing.assert_allclose(quantiles, before[server], rtol=1e-4, atol=1e-4)


def test_scaling_group_falls_back_to_profile_then_default() -> None:
    bundle = make_bundle("small")
    window = FakeFleet(bundle, 4, 1).window(0)
    window = replace(
        window, servers=("s2", "new", "newer", "newest"), profiles=("profile1", "profile1", "profile2", "x")
    )
    from models.fleet.scaling import FleetScaling

    groups = [bundle.manifest.groups[row] for row in FleetScaling(bundle).groups(window)]
    assert groups == ["server:s2", "profile:profile1", "profile:profile2", "default"]


def test_engine_quantiles_are_sorted_and_within_bounds() -> None:
    bundle = make_bundle("deep")
    manifest = bundle.manifest
    tight = tuple(replace(metric, low=1.5, high=4.0) for metric in manifest.metrics)
    window = FakeFleet(bundle, 12, 1).window(0)
    for name in sorted(ENGINES):
        actual = load_fleet_engine(replace(bundle, manifest=replace(manifest, metrics=tight)), name).forecast(window)
        assert (np.diff(actual, axis=2) >= 0).all(), name
        assert actual.min() >= 1.5, name
        assert actual.max() <= 4.0, name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 10}, "step"),
        ({"values": np.zeros((4, 23, 3), np.float32)}, "shape"),
        ({"servers": ("s0", "s1", "s0", "s3")}, "twice"),
        ({"lengths": np.array([24, 24, 24, 7])}, "8 to 24"),
        ({"lengths": np.array([24, 24, 24, 25])}, "8 to 24"),
    ],
)
def test_engine_wrong_input_is_refused(change: dict[str, Any], message: str) -> None:
    bundle = make_bundle("small")
    with pytest.raises(DataError, match=message):
        load_fleet_engine(bundle, "auto").forecast(replace(FakeFleet(bundle, 4, 1).window(0), **change))


def test_engine_missing_value_raises_data_error() -> None:
    bundle = make_bundle("small")
    for hole in (np.nan, np.inf):
        window = FakeFleet(bundle, 4, 1).window(0)
        window.values[2, 7, 1] = hole
        with pytest.raises(DataError, match="not finite"):
            load_fleet_engine(bundle, "auto").forecast(window)


def test_engine_without_servers_gives_empty_forecast() -> None:
    bundle = make_bundle("small")
    empty = FleetInput(TICK, 5, (), (), np.zeros((0, 24, 3), np.float32), np.zeros(0, np.int64))
    for name in sorted(ENGINES):
        assert load_fleet_engine(bundle, name).forecast(empty).shape == (0, 3, 5, 6)


def test_engine_unknown_name_lists_the_engines() -> None:
    with pytest.raises(ValueError, match="auto, library"):
        load_fleet_engine(make_bundle("small"), "fastest")


def test_engine_network_overflow_raises_bundle_error() -> None:
    bundle = make_bundle("small")
    wild = replace(bundle, weights={name: np.full_like(value, 1e30) for name, value in bundle.weights.items()})
    for name in sorted(FAST_ENGINES):
        with pytest.raises(BundleError) as error_info:
            load_fleet_engine(wild, name).forecast(FakeFleet(bundle, 3, 1).window(0))
        assert error_info.value.check == "finite"


def test_engine_progress_is_reported_and_increases(bundle: FleetBundle) -> None:
    for name in sorted(ENGINES):
        reports: list[tuple[int, int]] = []
        engine = load_fleet_engine(bundle, name)

        def hear(done: int, total: int, reports: list[tuple[int, int]] = reports) -> None:
            reports.append((done, total))

        engine.forecast(FakeFleet(bundle, 40, 1).window(0), hear)
        done = [count for count, _ in reports]
        assert len(reports) > 4, name
        assert done == sorted(set(done)), name
        assert done[-1] <= reports[-1][1], name


@pytest.fixture
def bundle_on_disk(bundle: FleetBundle, tmp_path: Path) -> tuple[FleetBundle, Path]:
    write_bundle(tmp_path / "bundle", bundle)
    return bundle, tmp_path / "bundle"


def test_bundle_reloaded_is_equal_and_passes_canary(bundle_on_disk: tuple[FleetBundle, Path]) -> None:
    before, path = bundle_on_disk
    after = load_fleet_bundle(path)
    assert after.manifest == replace(before.manifest, files=after.manifest.files, sha256=after.sha256)
    assert FleetManifest.read(path) == after.manifest
    for name in sorted(ENGINES):
        engine: FleetEngine = load_fleet_engine(after, name)
        assert verify_fleet_canary(after, engine) < TOLERANCE / 10


def test_bundle_changed_weights_fails_canary(bundle: FleetBundle) -> None:
    name = next(key for key in bundle.weights if key.startswith("output_layer") and key.endswith("weight"))
    moved = replace(bundle, weights={**bundle.weights, name: bundle.weights[name] * np.float32(1.05)})
    with pytest.raises(BundleError) as error_info:
        verify_fleet_canary(moved, load_fleet_engine(moved, "auto"))
    assert error_info.value.check == "canary"


def test_bundle_unreadable_manifest_is_not_written(bundle: FleetBundle, tmp_path: Path) -> None:
    wrong = replace(bundle, manifest=replace(bundle.manifest, groups=("server:only",)))
    with pytest.raises(BundleError):
        write_bundle(tmp_path / "bundle", wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["onnx", "stream"])
@pytest.mark.parametrize("score", [80.0, 85.6, 88.0, 95.0, -80.0, -90.0, -102.0, -104.0])
def test_attention_extreme_scores_equal_library(name: str, score: float) -> None:
    """A sum of exponentials may overflow although no exponential does, or be too small for a division."""
    bundle, weights = make_bundle("small"), dict[str, Any]()
    size = next(len(value) for key, value in bundle.weights.items() if key.endswith("q_layers.0.bias"))
    for key, value in bundle.weights.items():
        if "q_layers" in key or "k_layers" in key:
            constant = np.sqrt(abs(score) / np.sqrt(size)) * (np.sign(score) if "q_layers" in key else 1)
            weights[key] = 0.002 * value if key.endswith("weight") else np.full_like(value, constant)
        else:
            weights[key] = 0.05 * value if "v_layer" in key else value
    even, window = replace(bundle, weights=weights), FakeFleet(bundle, 12, 1).window(0)
    expected = load_fleet_engine(even, "library").forecast(window)
    assert range_difference(load_fleet_engine(even, name, threads=2).forecast(window), expected) < TOLERANCE / 10


@pytest.mark.parametrize("name", ["onnx", "stream"])
def test_attention_overflowing_scores_equal_library(name: str) -> None:
    bundle = make_bundle("small")
    steep = {key: 3000 * value if "multihead_attn.q_layers" in key else value for key, value in bundle.weights.items()}
    steep_bundle, window = replace(bundle, weights=steep), FakeFleet(bundle, 12, 1).window(0)
    engine = load_fleet_engine(steep_bundle, name, threads=2)
    expected = load_fleet_engine(steep_bundle, "library").forecast(window)
    assert range_difference(engine.forecast(window), expected) < TOLERANCE


def test_look_ahead_does_not_change_forecasts(bundle: FleetBundle) -> None:
    fleet, ahead, library = (
        FakeFleet(bundle, 13, 6),
        *(load_fleet_engine(bundle, name) for name in ("stream", "library")),
    )
    for index in range(6):
        assert (
            range_difference(ahead.forecast(fleet.window(index)), library.forecast(fleet.window(index)))
            < TOLERANCE / 10
        )
        ahead.look_ahead(TICK + index + 1 + index % 4 // 3)  # one of them is not the tick that comes


def test_stream_engine_repeated_tick_uses_new_values() -> None:
    bundle = make_bundle("deep")
    fleet, stream, library = (
        FakeFleet(bundle, 5, 9),
        *(load_fleet_engine(bundle, name) for name in ("stream", "library")),
    )
    for index in (0, 1, 2, 2, 2, 3, 3, 4):
        fleet.values[index % 5, index + 7] += 0.9  # a row that came late
        assert (
            range_difference(stream.forecast(fleet.window(index)), library.forecast(fleet.window(index)))
            < TOLERANCE / 10
        )
        stream.look_ahead(TICK + index + 1)


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_engine_reports_each_server_once_with_final_quantiles(bundle: FleetBundle, name: str) -> None:
    manifest, results = bundle.manifest, dict[int, Any]()
    lengths = np.where(np.arange(25) % 3, manifest.encoder_length, manifest.encoder_minimum)

    def done(rows: Any, quantiles: Any) -> None:
        for row, values in zip(rows.tolist(), quantiles, strict=True):
            assert row not in results
            results[row] = values.copy()

    engine = load_fleet_engine(bundle, name, threads=2)
    forecasts = engine.forecast(FakeFleet(bundle, 25, 1).window(0, lengths), on_result=done)
    np.testing.assert_array_equal(np.stack([results[row] for row in range(25)]), forecasts)


@pytest.mark.parametrize(
    "between",
    [
        lambda fleet, stream: stream.look_ahead(TICK + 3),
        lambda fleet, stream: stream.look_ahead(TICK + 4),
        lambda fleet, stream: (stream.forecast(fleet.window(2, [10] * 12)), stream.look_ahead(TICK + 3)),
        lambda fleet, stream: (stream.forecast(fleet.window(3, [10] * 12)), stream.look_ahead(TICK + 4)),
    ],
    ids=["twice", "to another tick", "with short windows at the tick before", "with short windows at the tick itself"],
)
def test_look_ahead_followed_by_other_calls_equals_library(between: Any) -> None:
    bundle = make_bundle("small")
    fleet, stream = FakeFleet(bundle, 12, 9), load_fleet_engine(bundle, "stream")
    for index in range(3):
        stream.forecast(fleet.window(index))
        stream.look_ahead(TICK + index + 1)
    between(fleet, stream)
    expected = load_fleet_engine(bundle, "library").forecast(fleet.window(3))
    assert range_difference(stream.forecast(fleet.window(3)), expected) < TOLERANCE / 10


def test_engine_after_failure_reports_no_more_servers() -> None:
    bundle, started, reported = make_bundle("small"), threading.Event(), list[int]()
    engine = load_fleet_engine(bundle, "stream", threads=2)

    def done(rows: Any, _: Any) -> None:
        if rows[0] == 0:
            assert started.wait(60)
            raise DataError("no")
        started.set()
        threading.Event().wait(0.3)
        reported.extend(rows.tolist())

    with pytest.raises(DataError):
        engine.forecast(FakeFleet(bundle, 60, 1).window(0), on_result=done)
    before = len(reported)
    threading.Event().wait(0.5)
    assert len(reported) == before > 0


def test_look_ahead_before_correction_is_discarded() -> None:
    bundle = make_bundle("small")
    fleet, stream, library = (
        FakeFleet(bundle, 4, 9),
        load_fleet_engine(bundle, "stream"),
        load_fleet_engine(bundle, "library"),
    )
    for index in range(3):
        stream.forecast(fleet.window(index))
        stream.look_ahead(TICK + index + 1)
    fleet.values[:, 10] += 1.0
    for index in (2, 3):  # the same tick once more, and the next one
        assert (
            range_difference(stream.forecast(fleet.window(index)), library.forecast(fleet.window(index)))
            < TOLERANCE / 10
        )
