"""Every engine of the fleet gives what the library's own forward gives, on random networks and over hundreds of ticks.

These tests guard an upgrade of pytorch-forecasting: what it changes in its network shows here first.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import BundleError, DataError
from models.fleet.anchors import LAST
from models.fleet.base import FleetEngine, FleetInput
from models.fleet.bundle import (
    CANARY_SERVERS,
    FleetBundle,
    FleetCanary,
    canary_input,
    load_fleet_bundle,
    read_fleet_manifest,
    write_fleet_bundle,
)
from models.fleet.engines import ENGINES, TOLERANCE, load_fleet_engine, range_difference, verify_fleet_canary
from models.fleet.manifest import DEFAULT, OTHER, Anchor, FleetManifest, Metric, fleet_reals
from models.fleet.sessions import Sessions
from models.manifest import Network
from models.records import Interval, Training
from models.shapes import expected_shapes

TICK = 344_000_000
FAST = sorted(set(ENGINES) - {"library"})
ANCHORS = (LAST, Anchor(0.5, 0.0), Anchor(0.25, 0.9), Anchor(0.1, 1.0), Anchor(0.05, 0.5))
SIZES = {  # hidden, continuous, heads, layers, metrics, profiles, embedding, cycles, encoder, minimum, horizon
    "small": (8, 4, 2, 1, 3, 3, 2, ("day",), 24, 8, 6),
    "deep": (12, 6, 3, 3, 5, 4, 5, ("day", "week"), 30, 10, 9),
    "one metric, no calendar": (8, 8, 1, 1, 1, 2, 8, (), 12, 4, 4),
    "continuous wider than hidden": (6, 10, 2, 2, 2, 2, 1, ("week",), 10, 10, 5),
    "one step ahead": (6, 4, 2, 1, 2, 2, 2, (), 9, 4, 1),
    "many steps ahead": (6, 4, 2, 1, 2, 2, 2, ("hour",), 9, 4, 101),
}


def make(size: str, seed: int = 0) -> FleetBundle:
    """A bundle with a random network, not checked and not on disk."""
    hidden, small, heads, layers, count, profiles, embedding, cycles, length, minimum, horizon = SIZES[size]
    rng = np.random.default_rng(seed)
    metrics = tuple(
        Metric(f"metric_{index}", "%", -1e6 if index % 2 else 0.0, 1e9, "none" if index % 2 else "log1p")
        for index in range(count)
    )
    names = (OTHER, *(f"profile{index}" for index in range(1, profiles)))
    groups = (DEFAULT, *(f"profile:{name}" for name in names[1:]), "server:s2")
    encoder, decoder = fleet_reals(tuple(metric.name for metric in metrics), cycles)
    network = Network(hidden, small, heads, layers, encoder, decoder, 5, count, profiles, embedding)
    parts = {name: Interval(10 * at, 10 * at + 10, 1) for at, name in enumerate(("train", "validation", "test"))}
    manifest = FleetManifest(
        name="random", metrics=metrics, cycles=cycles, profiles=names, groups=groups, step=5, encoder_length=length,
        encoder_minimum=minimum, horizon=horizon, levels=(0.1, 0.3, 0.5, 0.7, 0.9), network=network,
        training=Training(0, 30, 6, "0" * 64, "made up", True, 0, parts, {}), versions={}, scores={}, files={},
        anchors=ANCHORS if size == "deep" else (),
    )  # fmt: skip
    weights = {
        name: rng.normal(0, 1.2 / np.sqrt(shape[-1]) if len(shape) > 1 else 0.4, shape).astype(np.float32)
        for name, shape in expected_shapes(network).items()
    }
    table = len(groups), count
    center, scale = rng.uniform(1, 3, table).astype(np.float32), rng.uniform(0.3, 1.0, table).astype(np.float32)
    rows = np.arange(CANARY_SERVERS)
    values = rng.uniform(1, 9, (CANARY_SERVERS, length, count)).astype(np.float32)
    quantiles = np.zeros((CANARY_SERVERS, count, 5, horizon), dtype=np.float32)
    canary = FleetCanary(TICK, values, rows % profiles, rows % len(groups), quantiles)
    bundle = FleetBundle(Path("nowhere"), manifest, weights, center, scale, canary)
    made = load_fleet_engine(bundle, "library").forecast(canary_input(bundle))
    return replace(bundle, canary=replace(canary, quantiles=made))


@pytest.fixture(scope="module", params=sorted(SIZES))
def bundle(request: pytest.FixtureRequest) -> FleetBundle:
    return make(request.param)


class Fleet:
    """Servers whose metrics walk; `window` gives what an engine sees at a tick."""

    def __init__(self, bundle: FleetBundle, servers: int, ticks: int, seed: int = 1) -> None:
        manifest = bundle.manifest
        self.manifest = manifest
        rng = np.random.default_rng(seed)
        steps = rng.normal(0, 0.3, (servers, ticks + manifest.encoder_length, len(manifest.metrics)))
        self.values = np.abs(3 + np.cumsum(steps, axis=1)).astype(np.float32)
        self.servers = tuple(f"s{index}" for index in range(servers))
        known = (*manifest.profiles, "of-no-training")
        self.profiles = tuple(known[index % len(known)] for index in range(servers))

    def window(self, at: int, lengths: Any = None) -> FleetInput:
        length, count = self.manifest.encoder_length, len(self.servers)
        lengths = np.full(count, length) if lengths is None else np.asarray(lengths)
        values = self.values[:, at : at + length].copy()
        return FleetInput(TICK + at, self.manifest.step, self.servers, self.profiles, values, lengths)


@pytest.mark.parametrize("name", FAST)
def test_an_engine_equals_the_library_for_full_encoders(bundle: FleetBundle, name: str) -> None:
    window = Fleet(bundle, 23, 1).window(0)
    wanted = load_fleet_engine(bundle, "library").forecast(window)
    got = load_fleet_engine(bundle, name, threads=2).forecast(window)
    assert np.ptp(wanted, axis=(0, 3)).min() > 0  # servers and steps differ, so a mix-up would show
    assert range_difference(got, wanted) < TOLERANCE / 10


@pytest.mark.parametrize("name", FAST)
def test_an_engine_equals_the_library_for_encoders_of_all_lengths(bundle: FleetBundle, name: str) -> None:
    manifest, rng = bundle.manifest, np.random.default_rng(3)
    window = Fleet(bundle, 31, 1).window(0, rng.integers(manifest.encoder_minimum, manifest.encoder_length + 1, 31))
    for row, length in enumerate(window.lengths):
        window.values[row, : manifest.encoder_length - length] = 1e30  # what is not there is never read
    wanted = load_fleet_engine(bundle, "library").forecast(window)
    assert range_difference(load_fleet_engine(bundle, name, threads=2).forecast(window), wanted) < TOLERANCE / 10


@pytest.mark.parametrize("size", ["small", "deep"])
def test_kept_pasts_stay_equal_over_hundreds_of_ticks_of_a_living_fleet(
    size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make(size, seed=5)
    fleet, rng, length = Fleet(bundle, 12, 420), np.random.default_rng(8), bundle.manifest.encoder_length
    stream, library = load_fleet_engine(bundle, "stream"), load_fleet_engine(bundle, "library")
    at, rests = 0, list[bool]()
    rest = Sessions.rest

    def spied(self: Sessions, past: Any, future: Any, which: Any, carried: Any = None) -> Any:
        rests.append(carried is not None)
        return rest(self, past, future, which, carried)

    monkeypatch.setattr(Sessions, "rest", spied)
    while at < 400:
        window = fleet.window(at)
        there = np.arange(12)
        if rng.random() < 0.4:  # servers join, leave and come in another order
            there = np.sort(rng.permutation(12)[: rng.integers(6, 13)])
        if rng.random() < 0.2:
            there = rng.permutation(there)
        if rng.random() < 0.2:  # a row came late, or was corrected
            fleet.values[rng.integers(12), at + rng.integers(length)] += 0.7
            window = fleet.window(at)
        if rng.random() < 0.1:
            row = int(rng.integers(12))
            profiles = list(fleet.profiles)
            profiles[row] = str(rng.choice(bundle.manifest.profiles))
            fleet.profiles = tuple(profiles)
            window = fleet.window(at)
        part = FleetInput(
            window.tick, window.step, tuple(window.servers[i] for i in there), tuple(window.profiles[i] for i in there),
            window.values[there], window.lengths[there],
        )  # fmt: skip
        if rng.random() < 0.1:  # some are new
            part = replace(part, lengths=np.where(rng.random(len(there)) < 0.3, length - 3, part.lengths))
        assert range_difference(stream.forecast(part), library.forecast(part)) < TOLERANCE / 10, at
        if rng.random() < 0.8:
            stream.look_ahead(part.tick + 1)
        at += int(rng.choice([0, 1, 1, 1, 1, 2, 5, length + 3], p=[0.05, 0.3, 0.2, 0.15, 0.15, 0.1, 0.04, 0.01]))
    assert 50 < sum(rests) < len(rests), "some were foreseen"


def test_a_fleet_that_goes_back_in_time_is_forecast_all_the_same() -> None:
    bundle = make("small")
    fleet, stream = Fleet(bundle, 4, 60), load_fleet_engine(bundle, "stream")
    for at in (30, 31, 12, 13, 59, 0):
        wanted = load_fleet_engine(bundle, "library").forecast(fleet.window(at))
        assert range_difference(stream.forecast(fleet.window(at)), wanted) < TOLERANCE / 10, at


def test_the_past_of_a_stream_is_not_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, computed = make("small"), list[int]()
    fleet, stream = Fleet(bundle, 7, 10), load_fleet_engine(bundle, "stream")
    select = Sessions.select

    def counted(self: Sessions, variables: Any, which: Any) -> Any:
        computed.append(len(variables))
        return select(self, variables, which)

    monkeypatch.setattr(Sessions, "select", counted)
    for at in range(4):
        stream.forecast(fleet.window(at))
    assert computed == [7 * 24, 7, 7, 7]


def test_servers_are_told_apart_by_name_and_never_by_place(bundle: FleetBundle) -> None:
    window, engine = Fleet(bundle, 9, 1).window(0), load_fleet_engine(bundle, "auto")
    before = dict(zip(window.servers, engine.forecast(window), strict=True))
    order = np.random.default_rng(2).permutation(9)
    mixed = replace(
        window, servers=tuple(window.servers[i] for i in order), profiles=tuple(window.profiles[i] for i in order),
        values=window.values[order],
    )  # fmt: skip
    for server, quantiles in zip(mixed.servers, engine.forecast(mixed), strict=True):
        np.testing.assert_allclose(quantiles, before[server], rtol=1e-4, atol=1e-4)


def test_a_server_has_its_own_scale_else_its_profiles_else_the_default() -> None:
    bundle = make("small")
    window = Fleet(bundle, 4, 1).window(0)
    window = replace(
        window, servers=("s2", "new", "newer", "newest"), profiles=("profile1", "profile1", "profile2", "x")
    )
    from models.fleet.scaling import FleetScaling

    groups = [bundle.manifest.groups[row] for row in FleetScaling(bundle).groups(window)]
    assert groups == ["server:s2", "profile:profile1", "profile:profile2", "default"]


def test_quantiles_never_cross_and_stay_within_the_metrics_bounds() -> None:
    bundle = make("deep")
    manifest = bundle.manifest
    tight = tuple(replace(metric, low=1.5, high=4.0) for metric in manifest.metrics)
    window = Fleet(bundle, 12, 1).window(0)
    for name in sorted(ENGINES):
        got = load_fleet_engine(replace(bundle, manifest=replace(manifest, metrics=tight)), name).forecast(window)
        assert (np.diff(got, axis=2) >= 0).all(), name
        assert got.min() >= 1.5, name
        assert got.max() <= 4.0, name


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"step": 10}, "step"),
        ({"values": np.zeros((4, 23, 3), np.float32)}, "shape"),
        ({"servers": ("s0", "s1", "s0", "s3")}, "twice"),
        ({"lengths": np.array([24, 24, 24, 7])}, "8 to 24"),
        ({"lengths": np.array([24, 24, 24, 25])}, "8 to 24"),
    ],
)
def test_an_input_of_another_kind_is_refused(change: dict[str, Any], told: str) -> None:
    bundle = make("small")
    with pytest.raises(DataError, match=told):
        load_fleet_engine(bundle, "auto").forecast(replace(Fleet(bundle, 4, 1).window(0), **change))


def test_a_hole_in_a_window_is_the_inputs_fault_and_not_the_models() -> None:
    bundle = make("small")
    for hole in (np.nan, np.inf):
        window = Fleet(bundle, 4, 1).window(0)
        window.values[2, 7, 1] = hole
        with pytest.raises(DataError, match="not finite"):
            load_fleet_engine(bundle, "auto").forecast(window)


def test_no_servers_are_no_forecast() -> None:
    bundle = make("small")
    empty = FleetInput(TICK, 5, (), (), np.zeros((0, 24, 3), np.float32), np.zeros(0, np.int64))
    for name in sorted(ENGINES):
        assert load_fleet_engine(bundle, name).forecast(empty).shape == (0, 3, 5, 6)


def test_an_unknown_engine_is_told_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="auto, library"):
        load_fleet_engine(make("small"), "fastest")


def test_numbers_that_overflow_inside_the_network_are_told_as_the_models_fault() -> None:
    bundle = make("small")
    wild = replace(bundle, weights={name: np.full_like(value, 1e30) for name, value in bundle.weights.items()})
    for name in sorted(FAST):
        with pytest.raises(BundleError) as caught:
            load_fleet_engine(wild, name).forecast(Fleet(bundle, 3, 1).window(0))
        assert caught.value.check == "finite"


def test_progress_is_told_on_the_way_and_never_goes_back(bundle: FleetBundle) -> None:
    for name in sorted(ENGINES):
        heard: list[tuple[int, int]] = []
        engine = load_fleet_engine(bundle, name)

        def hear(done: int, total: int, heard: list[tuple[int, int]] = heard) -> None:
            heard.append((done, total))

        engine.forecast(Fleet(bundle, 40, 1).window(0), hear)
        done = [one for one, _ in heard]
        assert len(heard) > 4, name
        assert done == sorted(set(done)), name
        assert done[-1] <= heard[-1][1], name


@pytest.fixture
def written(bundle: FleetBundle, tmp_path: Path) -> tuple[FleetBundle, Path]:
    write_fleet_bundle(tmp_path / "bundle", bundle)
    return bundle, tmp_path / "bundle"


def test_a_bundle_comes_back_as_it_was_written_and_proves_itself(written: tuple[FleetBundle, Path]) -> None:
    before, path = written
    after = load_fleet_bundle(path)
    assert after.manifest == replace(before.manifest, files=after.manifest.files, sha256=after.sha256)
    assert read_fleet_manifest(path) == after.manifest
    for name in sorted(ENGINES):
        engine: FleetEngine = load_fleet_engine(after, name)
        assert verify_fleet_canary(after, engine) < TOLERANCE / 10


def test_a_bundle_with_other_weights_does_not_pass_its_canary(bundle: FleetBundle) -> None:
    name = next(one for one in bundle.weights if one.startswith("output_layer") and one.endswith("weight"))
    moved = replace(bundle, weights={**bundle.weights, name: bundle.weights[name] * np.float32(1.05)})
    with pytest.raises(BundleError) as caught:
        verify_fleet_canary(moved, load_fleet_engine(moved, "auto"))
    assert caught.value.check == "canary"


def test_a_manifest_that_could_not_be_read_again_is_never_written(bundle: FleetBundle, tmp_path: Path) -> None:
    wrong = replace(bundle, manifest=replace(bundle.manifest, groups=("server:only",)))
    with pytest.raises(BundleError):
        write_fleet_bundle(tmp_path / "bundle", wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["onnx", "stream"])
@pytest.mark.parametrize("score", [80.0, 85.6, 88.0, 95.0, -80.0, -90.0, -102.0, -104.0])
def test_scores_at_the_ends_of_an_exponentials_range_are_no_trouble(name: str, score: float) -> None:
    """The sum of exponentials may overflow where none of them does, and be too small to divide by."""
    bundle, weights = make("small"), dict[str, Any]()
    size = next(len(value) for key, value in bundle.weights.items() if key.endswith("q_layers.0.bias"))
    for key, value in bundle.weights.items():
        if "q_layers" in key or "k_layers" in key:
            same = np.sqrt(abs(score) / np.sqrt(size)) * (np.sign(score) if "q_layers" in key else 1)
            weights[key] = 0.002 * value if key.endswith("weight") else np.full_like(value, same)
        else:
            weights[key] = 0.05 * value if "v_layer" in key else value
    even, window = replace(bundle, weights=weights), Fleet(bundle, 12, 1).window(0)
    wanted = load_fleet_engine(even, "library").forecast(window)
    assert range_difference(load_fleet_engine(even, name, threads=2).forecast(window), wanted) < TOLERANCE / 10


@pytest.mark.parametrize("name", ["onnx", "stream"])
def test_scores_that_are_too_large_for_an_exponential_are_no_trouble(name: str) -> None:
    bundle = make("small")
    steep = {key: 3000 * value if "multihead_attn.q_layers" in key else value for key, value in bundle.weights.items()}
    steep_bundle, window = replace(bundle, weights=steep), Fleet(bundle, 12, 1).window(0)
    engine = load_fleet_engine(steep_bundle, name, threads=2)
    wanted = load_fleet_engine(steep_bundle, "library").forecast(window)
    assert range_difference(engine.forecast(window), wanted) < TOLERANCE


def test_what_is_known_ahead_changes_nothing(bundle: FleetBundle) -> None:
    fleet, ahead, library = Fleet(bundle, 13, 6), *(load_fleet_engine(bundle, name) for name in ("stream", "library"))
    for at in range(6):
        assert range_difference(ahead.forecast(fleet.window(at)), library.forecast(fleet.window(at))) < TOLERANCE / 10
        ahead.look_ahead(TICK + at + 1 + at % 4 // 3)  # one of them is not the tick that comes


def test_a_tick_that_is_asked_for_again_is_forecast_from_what_it_is_now() -> None:
    bundle = make("deep")
    fleet, stream, library = Fleet(bundle, 5, 9), *(load_fleet_engine(bundle, name) for name in ("stream", "library"))
    for at in (0, 1, 2, 2, 2, 3, 3, 4):
        fleet.values[at % 5, at + 7] += 0.9  # a row that came late
        assert range_difference(stream.forecast(fleet.window(at)), library.forecast(fleet.window(at))) < TOLERANCE / 10
        stream.look_ahead(TICK + at + 1)


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_every_server_is_told_once_with_the_quantiles_that_it_has_in_the_end(bundle: FleetBundle, name: str) -> None:
    manifest, told = bundle.manifest, dict[int, Any]()
    lengths = np.where(np.arange(25) % 3, manifest.encoder_length, manifest.encoder_minimum)

    def done(rows: Any, quantiles: Any) -> None:
        for row, own in zip(rows.tolist(), quantiles, strict=True):
            assert row not in told
            told[row] = own.copy()

    engine = load_fleet_engine(bundle, name, threads=2)
    found = engine.forecast(Fleet(bundle, 25, 1).window(0, lengths), done=done)
    np.testing.assert_array_equal(np.stack([told[row] for row in range(25)]), found)


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
def test_whatever_comes_after_a_look_ahead_does_no_harm(between: Any) -> None:
    bundle = make("small")
    fleet, stream = Fleet(bundle, 12, 9), load_fleet_engine(bundle, "stream")
    for at in range(3):
        stream.forecast(fleet.window(at))
        stream.look_ahead(TICK + at + 1)
    between(fleet, stream)
    wanted = load_fleet_engine(bundle, "library").forecast(fleet.window(3))
    assert range_difference(stream.forecast(fleet.window(3)), wanted) < TOLERANCE / 10


def test_nothing_is_run_or_told_any_more_when_a_forecast_has_failed() -> None:
    bundle, begun, told = make("small"), threading.Event(), list[int]()
    engine = load_fleet_engine(bundle, "stream", threads=2)

    def done(rows: Any, _: Any) -> None:
        if rows[0] == 0:
            assert begun.wait(60)
            raise DataError("no")
        begun.set()
        threading.Event().wait(0.3)
        told.extend(rows.tolist())

    with pytest.raises(DataError):
        engine.forecast(Fleet(bundle, 60, 1).window(0), done=done)
    before = len(told)
    threading.Event().wait(0.5)
    assert len(told) == before > 0


def test_what_was_foreseen_before_a_correction_is_not_used() -> None:
    bundle = make("small")
    fleet, stream, library = (
        Fleet(bundle, 4, 9),
        load_fleet_engine(bundle, "stream"),
        load_fleet_engine(bundle, "library"),
    )
    for at in range(3):
        stream.forecast(fleet.window(at))
        stream.look_ahead(TICK + at + 1)
    fleet.values[:, 10] += 1.0
    for at in (2, 3):  # the same tick once more, and the next one
        assert range_difference(stream.forecast(fleet.window(at)), library.forecast(fleet.window(at))) < TOLERANCE / 10
