"""The forecaster with real children: a faulty model costs at most its own epoch, and the last good bundle takes over."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from forecastd.clock import SystemClock
from forecastd.errors import NeedsHuman, SkipEpoch
from forecastd.inference import forecaster as forecaster_module
from forecastd.inference.bundle_store import BundleStore, FallbackBundles
from forecastd.inference.forecaster import Forecaster, TooFewCandles
from forecastd.inference.market_runner import market_setup
from forecastd.market.candles import Candles
from forecastd.market.features import parse_features
from forecastd.market.sources.sample import SampleSource
from forecastd.market.window import RollingWindow
from forecastd.supervise.detector import PhaseLimits
from forecastd.supervise.policy import SupervisionPolicy
from models.bundle.bundle import write_bundle
from models.market.bundle import MarketBundle, load_market_bundle
from models.market.manifest import MarketManifest
from tests.support.bundles import write_longer_bundle
from tests.support.supervision import is_running
from tests.support.waiting import wait_until

NOW = 1_790_000_000.0
SOURCE = SampleSource("btcusd")
POLICY = SupervisionPolicy(
    PhaseLimits(predicting=2.5, stopping=3), attempts=3, standbys=1, quarantine_after=3, memory=1 << 30
)

Gather = Callable[[Forecaster], Candles]
Fallback = FallbackBundles[MarketManifest]


@pytest.fixture(scope="module")
def demo(root: Path) -> Path:
    return root / "models" / "demo"


@pytest.fixture(scope="module")
def bundle(demo: Path) -> MarketBundle:
    return load_market_bundle(demo)


@pytest.fixture
def copy(demo: Path, tmp_path: Path) -> Path:
    """A copy of the demo bundle that a test may damage."""
    return Path(shutil.copytree(demo, tmp_path / "copy"))


@pytest.fixture
def store(tmp_path: Path) -> BundleStore:
    return BundleStore(tmp_path / "state" / "bundles", SystemClock())


@pytest.fixture
def fallback(store: BundleStore) -> Fallback:
    return FallbackBundles(store, 67, MarketManifest.read)


@pytest.fixture
def gather(tmp_path: Path) -> Iterator[Gather]:
    with RollingWindow.open(tmp_path / "window.sqlite") as window:
        yield lambda forecaster: forecaster.gather_candles(SOURCE, window, NOW)[0]


@pytest.fixture(autouse=True)
def no_leftover_children() -> Iterator[None]:
    yield
    assert [child for child in psutil.Process().children(recursive=True) if is_running(child)] == []


@pytest.fixture
def inject(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives the first launches of every later forecaster these faults."""

    def set_faults(faults: str, faulty: int = 1) -> None:
        monkeypatch.setattr(
            forecaster_module, "market_setup", functools.partial(market_setup, faults=faults, faulty_launches=faulty)
        )

    return set_faults


def run_cycle(forecaster: Forecaster, gather: Gather) -> float:
    """Check, forecast and guards, as in a cycle; gives the point value."""
    with forecaster:
        sha256 = forecaster.check()
        assert sha256 == forecaster.manifest.sha256
        candles = gather(forecaster)
        forecast = forecaster.forecast(candles)
        assert forecast.bundle_sha256 == forecaster.manifest.sha256
        forecaster.check_guards(forecast, candles)
        return forecast.value


@pytest.fixture(scope="module")
def expected(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    with RollingWindow.open(tmp_path_factory.mktemp("window") / "w.sqlite") as window:
        return run_cycle(Forecaster(demo), lambda forecaster: forecaster.gather_candles(SOURCE, window, NOW)[0])


MISBEHAVIORS = {
    "print:256": "",
    "fork": "",
    "leak@50": "ran out of memory",
    "exit:3@50": "exit status 3",
    "exit:0@99": "exit status 0",
    "raise@loading": "No module named 'a_library_that_is_not_there'",
    "raise@50": "No module named",
    "crash": "SIGSEGV",
    "torn": "SIGKILL",
    "garbage": "invalid message",
    "shape": "shape",
    "nan": "not finite",
    "deaf": "no progress",
    "hang@50": "no progress",
}


@pytest.mark.parametrize("faults", MISBEHAVIORS)
def test_misbehaving_child_is_logged_and_replaced(
    demo: Path,
    inject: Callable[..., None],
    gather: Gather,
    *,
    expected: float,
    caplog: pytest.LogCaptureFixture,
    faults: str,
) -> None:
    inject(faults)
    forecaster = Forecaster(demo, policy=replace(POLICY, memory=512 << 20, standbys=0))
    with caplog.at_level(logging.WARNING):
        assert run_cycle(forecaster, gather) == expected
    assert MISBEHAVIORS[faults] in caplog.text
    assert forecaster.counts.jobs["result"] == 1


@pytest.mark.parametrize("faults", ["exit:3@50", "shape", "raise@loading"])
def test_always_failing_model_skips_epoch_and_is_retried_next_epoch(
    demo: Path, inject: Callable[..., None], gather: Gather, expected: float, faults: str
) -> None:
    inject(faults, 100)
    with Forecaster(demo, policy=POLICY) as forecaster:
        with pytest.raises(SkipEpoch) as caught:
            forecast_once(forecaster, gather)
        assert caught.value.check == "model_process"
        assert "demo" in str(caught.value)
        assert MISBEHAVIORS[faults] in str(caught.value)
        inject("")
        assert forecast_once(forecaster, gather) == expected, "the next attempt starts new children"


def forecast_once(forecaster: Forecaster, gather: Gather) -> float:
    forecaster.check()
    return forecaster.forecast(gather(forecaster)).value


def test_nan_after_ten_valid_results_is_never_returned(
    demo: Path, inject: Callable[..., None], gather: Gather, expected: float, caplog: pytest.LogCaptureFixture
) -> None:
    inject("nan:10", 2)
    with Forecaster(demo, policy=POLICY) as forecaster:
        candles = gather(forecaster)
        values = {forecaster.forecast(candles).value for _ in range(25)}
    assert values == {expected}
    assert forecaster.counts.invalid_results >= 1
    assert "not finite" in caplog.text


def truncate(path: Path) -> None:
    (path / "weights.safetensors").write_bytes((path / "weights.safetensors").read_bytes()[:5000])


def flip_bit(path: Path) -> None:
    weights = bytearray((path / "weights.safetensors").read_bytes())
    weights[-100] ^= 1
    (path / "weights.safetensors").write_bytes(weights)


def corrupt_manifest(path: Path) -> None:
    (path / "manifest.json").write_text('{"name": ')


def replace_canary(path: Path) -> None:
    bundle = load_market_bundle(path)
    canary = {**bundle.canary, "quantiles": bundle.canary["quantiles"] + 0.01}
    write_bundle(path, replace(bundle, canary=canary), replace_old=True)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, "is truncated"),
    "flipped": (flip_bit, "was changed"),
    "corrupt": (corrupt_manifest, "manifest"),
    "canary": (replace_canary, "canary"),
    "missing": (shutil.rmtree, "There is no model"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_bundle_falls_back_to_its_own_copy(
    copy: Path,
    fallback: Fallback,
    gather: Gather,
    *,
    expected: float,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    assert run_cycle(Forecaster(copy, policy=POLICY, fallback=fallback), gather) == expected
    damage_bundle, message = DAMAGE[damage]
    damage_bundle(copy)
    again = Forecaster(copy, policy=POLICY, fallback=fallback)
    with caplog.at_level(logging.ERROR):
        assert run_cycle(again, gather) == expected
    (warning,) = again.warnings
    assert message in warning
    assert "Falling back to the last good model" in warning
    assert warning in caplog.text
    assert run_cycle(Forecaster(copy, policy=POLICY, fallback=fallback), gather) == expected, (
        "and so does the next forecaster"
    )


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_bundle_without_fallback_raises_needs_human(copy: Path, fallback: Fallback, damage: str) -> None:
    damage_bundle, message = DAMAGE[damage]
    damage_bundle(copy)
    with pytest.raises(NeedsHuman, match=message), Forecaster(copy, policy=POLICY, fallback=fallback) as forecaster:
        forecaster.check()


def test_crashing_bundle_is_quarantined_and_fallback_serves_same_epoch(
    demo: Path,
    copy: Path,
    fallback: Fallback,
    gather: Gather,
    *,
    expected: float,
    inject: Callable[..., None],
) -> None:
    assert run_cycle(Forecaster(demo, policy=POLICY, fallback=fallback), gather) == expected
    bundle = load_market_bundle(copy)
    bad = write_bundle(copy, replace(bundle, manifest=replace(bundle.manifest, name="bad")), replace_old=True)
    inject("exit:9@50", 4)  # three attempts at the job, and the standby
    forecaster = Forecaster(copy, policy=POLICY, fallback=fallback)
    assert run_cycle(forecaster, gather) == expected
    assert forecaster.manifest.name == MarketManifest.read(demo).name
    assert "in quarantine" in forecaster.warnings[0]
    assert forecaster.counts.quarantines == 1
    entry = fallback.store.list_quarantined()[bad.sha256]
    assert "exit status 9" in entry.reason

    inject("")
    later = Forecaster(copy, policy=POLICY, fallback=fallback)
    assert run_cycle(later, gather) == expected
    assert later.manifest.name == MarketManifest.read(demo).name
    assert "in quarantine since" in later.warnings[0]
    assert later.counts.crashes == 0, "the quarantined bundle was not started"

    assert fallback.store.release(bad.sha256[:12])
    released = Forecaster(copy, policy=POLICY, fallback=fallback)
    assert run_cycle(released, gather) == expected
    assert (released.manifest.name, released.warnings) == ("bad", ())


def test_quarantined_bundle_without_fallback_still_runs(
    copy: Path,
    fallback: Fallback,
    gather: Gather,
    expected: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fallback.store.quarantine(MarketManifest.read(copy), "it hung")
    assert run_cycle(Forecaster(copy, policy=POLICY, fallback=fallback), gather) == expected
    assert "no fallback model" in caplog.text


def test_fallback_with_longer_encoder_raises_too_few_candles(
    demo: Path,
    bundle: MarketBundle,
    tmp_path: Path,
    fallback: Fallback,
    *,
    gather: Gather,
    inject: Callable[..., None],
) -> None:
    write_longer_bundle(tmp_path / "longer", bundle, 24)
    run_cycle(Forecaster(tmp_path / "longer", policy=POLICY, fallback=fallback), gather)
    inject("exit:9@50", 4)
    with Forecaster(demo, policy=POLICY, fallback=fallback) as forecaster:
        forecaster.check()
        candles = gather(forecaster)
        with pytest.raises(TooFewCandles):
            forecaster.forecast(candles)
        assert forecaster.manifest.name == "longer"
        more = gather(forecaster)
        assert len(more) == len(candles) + 24
        assert np.isfinite(forecaster.forecast(more).value)


def test_rejected_bundle_is_no_fallback(copy: Path, fallback: Fallback, gather: Gather) -> None:
    """As on a real network, when the last good bundle was trained on synthetic data."""
    run_cycle(Forecaster(copy, policy=POLICY, fallback=fallback), gather)
    truncate(copy)

    def refuse(manifest: MarketManifest) -> None:
        if manifest.training.synthetic and accepted:
            raise NeedsHuman("synthetic")
        accepted.append(manifest)

    accepted: list[MarketManifest] = []
    with Forecaster(copy, policy=POLICY, fallback=fallback, validate=refuse) as forecaster:
        with pytest.raises(NeedsHuman, match="is truncated"):
            forecaster.check()
        assert forecaster.warnings == ()


def test_bundle_with_other_features_is_no_fallback(
    copy: Path, bundle: MarketBundle, fallback: Fallback, gather: Gather
) -> None:
    run_cycle(Forecaster(copy, policy=POLICY, fallback=fallback), gather)
    corrupt_manifest(copy)
    names = (*bundle.manifest.past, *bundle.manifest.known)
    other = parse_features(tuple(name for name in names if name != bundle.manifest.past[0]), "a test")
    with pytest.raises(NeedsHuman, match="manifest"):
        Forecaster(copy, other, policy=POLICY, fallback=fallback)


def test_fallback_of_another_topic_is_not_used(copy: Path, store: BundleStore, gather: Gather) -> None:
    run_cycle(Forecaster(copy, policy=POLICY, fallback=FallbackBundles(store, 1, MarketManifest.read)), gather)
    truncate(copy)
    with (
        pytest.raises(NeedsHuman),
        Forecaster(copy, policy=POLICY, fallback=FallbackBundles(store, 2, MarketManifest.read)) as forecaster,
    ):
        forecaster.check()


def kill_children(forecaster: Forecaster) -> None:
    pids = {int(str(child["pid"])) for child in forecaster.children()}
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_until(
        lambda: not pids & {int(str(child["pid"])) for child in forecaster.children()}, "the children are replaced"
    )


def test_bundle_replaced_on_disk_is_loaded_by_the_next_child(
    copy: Path, fallback: Fallback, gather: Gather, bundle: MarketBundle, expected: float
) -> None:
    with Forecaster(copy, policy=POLICY, fallback=fallback) as forecaster:
        old = forecaster.check()
        candles = gather(forecaster)
        new = write_bundle(
            copy, replace(bundle, manifest=replace(bundle.manifest, name="new")), replace_old=True
        ).sha256
        assert forecaster.check() == old, "the loaded model stays in use"
        assert forecaster.forecast(candles).bundle_sha256 == old
        kill_children(forecaster)
        assert forecaster.forecast(candles).bundle_sha256 == new
        assert forecaster.manifest.name == "new"
        assert forecaster.check() == new
        forecast = forecaster.forecast(candles)
        assert forecast.value == expected
        forecaster.check_guards(forecast, candles)
    assert [manifest.sha256 for _, manifest in fallback.candidates(set())] == [new]


def test_bundle_damaged_while_running_falls_back_when_children_die(
    copy: Path, fallback: Fallback, gather: Gather, expected: float
) -> None:
    with Forecaster(copy, policy=POLICY, fallback=fallback) as forecaster:
        forecaster.check()
        candles = gather(forecaster)
        forecaster.check_guards(forecaster.forecast(candles), candles)
        truncate(copy)
        assert forecaster.forecast(candles).value == expected
        kill_children(forecaster)
        assert forecaster.forecast(candles).value == expected
        assert "is truncated" in forecaster.warnings[0]


def test_child_with_wrong_bundle_hash_skips_epoch(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Forecaster(demo, policy=POLICY) as forecaster:
        forecaster.check()
        forecaster.manifest = replace(forecaster.manifest, sha256="0" * 64)
        monkeypatch.setattr(MarketManifest, "read", lambda _: forecaster.manifest)
        with pytest.raises(SkipEpoch, match="instead of 000000000000"):
            forecaster.check()


def test_closed_forecaster_raises_skip_epoch(demo: Path, gather: Gather) -> None:
    forecaster = Forecaster(demo, policy=POLICY)
    candles = gather(forecaster)
    forecaster.close()
    forecaster.close()
    for call in (forecaster.check, lambda: forecaster.forecast(candles)):
        with pytest.raises(SkipEpoch, match="shutting down"):
            call()
    assert forecaster.children() == []


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "/proc/self/mem/x", ""])
def test_invalid_bundle_path_raises_needs_human(path: str) -> None:
    with pytest.raises(NeedsHuman):
        Forecaster(Path(path))


def test_observer_receives_all_lifecycle_events(demo: Path, gather: Gather, expected: float) -> None:
    events: list[Any] = []
    assert run_cycle(Forecaster(demo, policy=POLICY, observer=events.append), gather) == expected
    assert {"launched", "ready", "dispatched", "finished", "exited"} <= {event.kind for event in events}
