"""A market bundle is checked completely before it is used, and its engine is compared with its canary."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from models.base import ModelInput
from models.bundle.bundle import write_bundle
from models.bundle.files import MANIFEST
from models.bundle.records import CANARY, WEIGHTS, Interval, TrainingRecord
from models.errors import BundleError, DataError
from models.market.bundle import MarketBundle, load_market_bundle, make_market_canary
from models.market.engine import MarketEngine, verify_market_canary
from models.market.manifest import MarketManifest, Scaler, network_reals
from models.tft.config import TftConfig
from models.tft.parameters import parameter_shapes

LENGTH, HORIZON, LEVELS = 24, 6, (0.1, 0.5, 0.9)
PAST, KNOWN = ("ret_1h", "vol_24h"), ("hour_sin",)
PARTS = {
    "train": Interval(1_600_000_000, 1_600_200_000, 30),
    "validation": Interval(1_600_210_000, 1_600_280_000, 9),
    "test": Interval(1_600_290_000, 1_600_360_000, 9),
}


def make_input(seed: int) -> ModelInput:
    rng = np.random.default_rng(seed)
    return ModelInput(
        end=1_700_000_000 // 3600 * 3600,
        step=3600,
        target=10 + rng.normal(0, 0.01, LENGTH).cumsum(),
        past=rng.normal(size=(LENGTH, len(PAST))),
        known=rng.normal(size=(LENGTH + HORIZON, len(KNOWN))),
    )


@pytest.fixture(scope="module")
def bundle_in_memory() -> MarketBundle:
    """A bundle with random weights, in memory."""
    encoder, decoder = network_reals(PAST, KNOWN)
    network = TftConfig(8, 4, 2, 1, encoder, decoder, len(LEVELS))
    rng = np.random.default_rng(0)
    weights = {k: rng.normal(0, 0.4, shape).astype(np.float32) for k, shape in parameter_shapes(network).items()}
    manifest = MarketManifest(
        name="random",
        past=PAST,
        known=KNOWN,
        scalers={name: Scaler(0.1, 2.0) for name in (*PAST, *KNOWN)},
        step=3600,
        encoder_length=LENGTH,
        horizon=HORIZON,
        levels=LEVELS,
        network=network,
        training=TrainingRecord(1_600_000_000, 1_600_360_000, 100, "a" * 64, "sample", True, 0, PARTS, {}),
        versions={},
        scores={},
        files={},
        sha256="0" * 64,
    )
    draft = MarketBundle(Path("memory"), manifest, weights, {})
    quantiles = MarketEngine(draft).predict(make_input(1)).quantiles
    return replace(draft, canary=make_market_canary(make_input(1), quantiles))


@pytest.fixture
def path(bundle_in_memory: MarketBundle, tmp_path: Path) -> Path:
    """The same bundle on disk."""
    write_bundle(tmp_path / "bundle", bundle_in_memory)
    return tmp_path / "bundle"


def test_bundle_reloaded_passes_canary(path: Path, bundle_in_memory: MarketBundle) -> None:
    bundle = load_market_bundle(path)
    assert bundle.sha256 == hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
    assert bundle.manifest == MarketManifest.read(path)
    assert bundle.ignored == ()
    assert all(
        np.array_equal(bundle.weights[name], bundle_in_memory.weights[name]) for name in bundle_in_memory.weights
    )
    assert verify_market_canary(bundle, MarketEngine(bundle)) == 0.0


def test_bundle_unknown_files_are_listed(path: Path) -> None:
    (path / "notes.txt").write_text("mine")
    assert load_market_bundle(path).ignored == ("notes.txt",)


def renamed(bundle: MarketBundle, name: str) -> MarketBundle:
    """The same bundle under another name."""
    return replace(bundle, manifest=replace(bundle.manifest, name=name))


def replace_file(path: Path, name: str, content: bytes) -> None:
    """Replace a file and change the manifest accordingly, like an attacker."""
    (path / name).write_bytes(content)
    document = json.loads((path / MANIFEST).read_text())
    document["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (path / MANIFEST).write_text(json.dumps(document))


def with_weights(change: Callable[[dict[str, np.ndarray]], None]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        arrays = load((path / WEIGHTS).read_bytes())
        change(arrays)
        replace_file(path, WEIGHTS, save(arrays))

    return damage


def set_nan(arrays: dict[str, np.ndarray]) -> None:
    arrays["output_layer.bias"][0] = np.nan


def widen(arrays: dict[str, np.ndarray]) -> None:
    arrays["output_layer.bias"] = np.zeros(4, np.float32)


def to_float64(arrays: dict[str, np.ndarray]) -> None:
    arrays["output_layer.bias"] = arrays["output_layer.bias"].astype(np.float64)


def remove_array(arrays: dict[str, np.ndarray]) -> None:
    del arrays["output_layer.bias"]


def add_array(arrays: dict[str, np.ndarray]) -> None:
    arrays["backdoor"] = np.zeros(1, np.float32)


def truncate(path: Path) -> None:
    content = (path / WEIGHTS).read_bytes()
    (path / WEIGHTS).write_bytes(content[: len(content) // 2])


def flip_a_bit(path: Path) -> None:
    content = bytearray((path / WEIGHTS).read_bytes())
    content[-5] ^= 1
    (path / WEIGHTS).write_bytes(bytes(content))


def grow(path: Path) -> None:
    with (path / WEIGHTS).open("ab") as file:
        file.truncate(1 << 40)  # sparse: takes no room, and must not be read


def link_out(path: Path) -> None:
    outside = path.parent / "outside.safetensors"
    (path / WEIGHTS).rename(outside)
    (path / WEIGHTS).symlink_to(outside)


def make_fifo(path: Path) -> None:
    (path / WEIGHTS).unlink()
    os.mkfifo(path / WEIGHTS)


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        (lambda path: (path / MANIFEST).unlink(), "missing"),
        (lambda path: (path / WEIGHTS).unlink(), "missing"),
        (lambda path: (path / CANARY).unlink(), "missing"),
        (link_out, "missing"),
        (make_fifo, "missing"),
        (lambda path: (path / MANIFEST).write_bytes(b" " * (1 << 21)), "schema"),
        (truncate, "hash"),
        (flip_a_bit, "hash"),
        (grow, "hash"),
        (lambda path: (path / WEIGHTS).write_bytes(b""), "hash"),
        (lambda path: replace_file(path, WEIGHTS, b"x" * 40_000), "weights"),
        (with_weights(widen), "weights"),
        (with_weights(to_float64), "weights"),
        (with_weights(remove_array), "weights"),
        (with_weights(add_array), "weights"),
        (with_weights(set_nan), "finite"),
        (lambda path: replace_file(path, WEIGHTS, b"\x80\x04" + b"x" * 40_000), "pickle"),
        (lambda path: replace_file(path, WEIGHTS, b"PK\x03\x04" + b"x" * 40_000), "pickle"),
        (lambda path: replace_file(path, WEIGHTS, b"x" * (1 << 22)), "schema"),
    ],
)
def test_load_bundle_damaged_names_the_check(path: Path, damage: Callable[[Path], None], check: str) -> None:
    damage(path)
    with pytest.raises(BundleError) as error_info:
        load_market_bundle(path)
    assert error_info.value.check == check
    message = str(error_info.value)
    assert message.endswith(f"(check: {check})")
    assert str(path) in message, "the message names the bundle"
    assert re.search(r"restore|train the model again|train one|copy|check the", message, re.IGNORECASE), message
    assert str(path) in str(error_info.value)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return Path.write_text, (self.path, "boom")  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["model.pt", "model.ckpt", "model.pkl", "model"])
def test_load_bundle_pickle_is_refused_without_running_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    for path_to_load in (tmp_path / name, tmp_path) if name != "model" else (tmp_path / name,):
        with pytest.raises(BundleError, match="not opened") as error_info:
            load_market_bundle(path_to_load)
        assert error_info.value.check == "pickle"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("text")])
def test_read_manifest_no_bundle_is_missing(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "model")
    with pytest.raises(BundleError) as error_info:
        MarketManifest.read(tmp_path / "model")
    assert error_info.value.check == "missing"


def test_write_bundle_existing_needs_replace(path: Path, bundle_in_memory: MarketBundle) -> None:
    before = (path / MANIFEST).read_bytes()
    with pytest.raises(BundleError) as error_info:
        write_bundle(path, renamed(bundle_in_memory, "other"))
    assert error_info.value.check == "exists"
    assert (path / MANIFEST).read_bytes() == before
    write_bundle(path, renamed(bundle_in_memory, "other"), replace_old=True)
    assert load_market_bundle(path).manifest.name == "other"
    assert [entry.name for entry in path.parent.iterdir()] == ["bundle"]


def test_write_bundle_full_disk_keeps_old_bundle(
    path: Path, bundle_in_memory: MarketBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_bundle(path, renamed(bundle_in_memory, "other"), replace_old=True)
    assert load_market_bundle(path).manifest.name == "random"
    assert [entry.name for entry in path.parent.iterdir()] == ["bundle"]


def test_verify_canary_different_output_is_refused(path: Path) -> None:
    arrays = load((path / CANARY).read_bytes())
    arrays["quantiles"] = arrays["quantiles"] * 1.001
    replace_file(path, CANARY, save(arrays))
    bundle = load_market_bundle(path)
    with pytest.raises(BundleError) as error_info:
        verify_market_canary(bundle, MarketEngine(bundle))
    assert error_info.value.check == "canary"


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), level=st.floats(-5, 5))
def test_forecast_is_sorted_and_independent_of_price_level(
    bundle_in_memory: MarketBundle, seed: int, level: float
) -> None:
    engine, inputs = MarketEngine(bundle_in_memory), make_input(seed)
    forecast = engine.predict(inputs)
    assert forecast.quantiles.shape == (HORIZON, len(LEVELS))
    assert (np.diff(forecast.quantiles, axis=1) >= 0).all()
    assert forecast.value == forecast.quantiles[-1, 1]
    assert (forecast.input_sha256, forecast.bundle_sha256) == (inputs.sha256(), bundle_in_memory.sha256)
    moved = engine.predict(replace(inputs, target=inputs.target + level))
    assert moved.quantiles == pytest.approx(forecast.quantiles, abs=1e-5)


def test_engine_batch_and_threads_equal_single_predictions(bundle_in_memory: MarketBundle) -> None:
    engine = MarketEngine(bundle_in_memory)
    inputs = [make_input(seed) for seed in range(40)]
    alone = [engine.predict(item).quantiles for item in inputs]
    with ThreadPoolExecutor(4) as pool:
        shared = list(pool.map(lambda item: engine.predict(item).quantiles, inputs))
    for batch, single, threaded in zip(engine.predict_batch(inputs), alone, shared, strict=True):
        assert batch.quantiles == pytest.approx(single, abs=1e-6)
        assert np.array_equal(threaded, single)
    assert engine.predict_batch([]) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 60}, "60 s apart"),
        ({"target": np.arange(LENGTH - 1.0)}, "target"),
        ({"past": np.zeros((LENGTH, 3))}, "past"),
        ({"known": np.zeros((LENGTH, 1))}, "known"),
        ({"past": np.full((LENGTH, 2), np.inf)}, "finite"),
        ({"target": np.zeros(LENGTH)}, "does not move"),
    ],
)
def test_engine_wrong_input_is_refused(bundle_in_memory: MarketBundle, change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        MarketEngine(bundle_in_memory).predict(replace(make_input(0), **change))  # type: ignore[arg-type]


def test_engine_extreme_inputs_gives_finite_numbers(bundle_in_memory: MarketBundle) -> None:
    inputs = make_input(0)
    forecast = MarketEngine(bundle_in_memory).predict(
        replace(inputs, past=inputs.past * 1e12, known=inputs.known * -1e12)
    )
    assert np.isfinite(forecast.quantiles).all()
