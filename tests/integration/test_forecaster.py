"""The forecaster on real children: every bad model costs at most its own epoch, and the last good one stands in."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from forecastd import forecaster as rooms
from forecastd.candles import Candles
from forecastd.clock import SystemClock
from forecastd.errors import NeedsHuman, SkipEpoch
from forecastd.features import parse_features
from forecastd.forecaster import Forecaster, TooFewCandles
from forecastd.shelf import Reserve, Shelf
from forecastd.sources.sample import SampleSource
from forecastd.supervise.detector import Limits
from forecastd.supervise.policy import Policy, Setup
from forecastd.window import RollingWindow
from models.base import ModelInput
from models.bundle import Bundle, Canary, load_bundle, read_manifest, write_bundle
from models.engines import load_engine
from models.manifest import Manifest

NOW = 1_790_000_000.0
SOURCE = SampleSource("btcusd")
QUICK = Policy(Limits(predicting=2.5, stopping=3), attempts=3, standbys=1, strikes=3, memory=1 << 30)

Gather = Callable[[Forecaster], Candles]


@pytest.fixture(scope="module")
def demo(root: Path) -> Path:
    return root / "models" / "demo"


@pytest.fixture(scope="module")
def bundle(demo: Path) -> Bundle:
    return load_bundle(demo)


@pytest.fixture
def mine(demo: Path, tmp_path: Path) -> Path:
    """A copy of the demo bundle that a test may spoil."""
    return Path(shutil.copytree(demo, tmp_path / "mine"))


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "state" / "bundles", SystemClock())


@pytest.fixture
def reserve(shelf: Shelf) -> Reserve:
    return Reserve(shelf, 67)


@pytest.fixture
def gather(tmp_path: Path) -> Iterator[Gather]:
    with RollingWindow.open(tmp_path / "window.sqlite") as window:
        yield lambda forecaster: forecaster.gather(SOURCE, window, NOW)[0]


@pytest.fixture(autouse=True)
def no_child_is_left() -> Iterator[None]:
    yield
    assert [one for one in psutil.Process().children(recursive=True) if one.status() != psutil.STATUS_ZOMBIE] == []


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """From now on the first launches of every forecaster have this fault."""

    def give(faults: str, faulty: int = 1) -> None:
        monkeypatch.setattr(rooms, "Setup", functools.partial(Setup, faults=faults, faulty=faulty))

    return give


def served(forecaster: Forecaster, gather: Gather) -> float:
    """A whole forecast, as a cycle makes it."""
    with forecaster:
        sha256 = forecaster.check()
        assert sha256 == forecaster.manifest.sha256
        candles = gather(forecaster)
        forecast = forecaster.forecast(candles)
        assert forecast.bundle_sha256 == forecaster.manifest.sha256
        forecaster.guard(forecast, candles)
        return forecast.value


@pytest.fixture(scope="module")
def right(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    with RollingWindow.open(tmp_path_factory.mktemp("window") / "w.sqlite") as window:
        return served(Forecaster(demo), lambda forecaster: forecaster.gather(SOURCE, window, NOW)[0])


BAD = {
    "print:256": "",
    "fork": "",
    "leak@50": "ran out of memory",
    "exit:3@50": "exit status 3",
    "exit:0@99": "exit status 0",
    "raise@loading": "No module named 'a_library_that_is_not_there'",
    "raise@50": "No module named",
    "crash": "SIGSEGV",
    "torn": "SIGKILL",
    "garbage": "no message",
    "shape": "shape",
    "nan": "not finite",
    "deaf": "no progress",
    "hang@50": "no progress",
}


@pytest.mark.parametrize("faults", BAD)
def test_a_model_that_misbehaves_is_named_and_another_child_makes_the_same_forecast(
    demo: Path,
    fault: Callable[..., None],
    gather: Gather,
    *,
    right: float,
    caplog: pytest.LogCaptureFixture,
    faults: str,
) -> None:
    fault(faults)
    forecaster = Forecaster(demo, policy=replace(QUICK, memory=512 << 20, standbys=0))
    with caplog.at_level(logging.WARNING):
        assert served(forecaster, gather) == right
    assert BAD[faults] in caplog.text
    assert forecaster.counts.jobs["result"] == 1


@pytest.mark.parametrize("faults", ["exit:3@50", "shape", "raise@loading"])
def test_one_that_always_misbehaves_costs_the_epoch_with_a_reason_and_is_tried_again_at_the_next(
    demo: Path, fault: Callable[..., None], gather: Gather, right: float, faults: str
) -> None:
    fault(faults, 100)
    with Forecaster(demo, policy=QUICK) as forecaster:
        with pytest.raises(SkipEpoch) as caught:
            served_once(forecaster, gather)
        assert caught.value.check == "model_process"
        assert "demo" in str(caught.value)
        assert BAD[faults] in str(caught.value)
        fault("")
        assert served_once(forecaster, gather) == right, "the next attempt starts anew"


def served_once(forecaster: Forecaster, gather: Gather) -> float:
    forecaster.check()
    return forecaster.forecast(gather(forecaster)).value


def test_nan_after_ten_good_answers_is_never_passed_on(
    demo: Path, fault: Callable[..., None], gather: Gather, right: float, caplog: pytest.LogCaptureFixture
) -> None:
    fault("nan:10", 2)
    with Forecaster(demo, policy=QUICK) as forecaster:
        candles = gather(forecaster)
        values = {forecaster.forecast(candles).value for _ in range(25)}
    assert values == {right}
    assert forecaster.counts.bad_answers >= 1
    assert "not finite" in caplog.text


# ---- the last good one -------------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    (path / "weights.safetensors").write_bytes((path / "weights.safetensors").read_bytes()[:5000])


def flip(path: Path) -> None:
    weights = bytearray((path / "weights.safetensors").read_bytes())
    weights[-100] ^= 1
    (path / "weights.safetensors").write_bytes(weights)


def garble(path: Path) -> None:
    (path / "manifest.json").write_text('{"name": ')


def another_canary(path: Path) -> None:
    bundle = load_bundle(path)
    canary = replace(bundle.canary, quantiles=bundle.canary.quantiles + 0.01)
    write_bundle(path, bundle.manifest, bundle.weights, canary, replace_old=True)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, "is cut off"),
    "flipped": (flip, "was changed"),
    "garbled": (garble, "manifest"),
    "canary": (another_canary, "canary"),
    "gone": (shutil.rmtree, "There is no model"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bundle_that_was_good_once_stands_in_for_itself_when_it_is_spoilt(
    mine: Path, reserve: Reserve, gather: Gather, *, right: float, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    assert served(Forecaster(mine, policy=QUICK, reserve=reserve), gather) == right
    spoil, words = DAMAGE[damage]
    spoil(mine)
    again = Forecaster(mine, policy=QUICK, reserve=reserve)
    with caplog.at_level(logging.ERROR):
        assert served(again, gather) == right
    (remark,) = again.remarks
    assert words in remark
    assert "stands in" in remark
    assert remark in caplog.text
    assert served(Forecaster(mine, policy=QUICK, reserve=reserve), gather) == right, "and the next time, too"


@pytest.mark.parametrize("damage", DAMAGE)
def test_without_an_earlier_one_a_spoilt_bundle_needs_a_person(mine: Path, reserve: Reserve, damage: str) -> None:
    spoil, words = DAMAGE[damage]
    spoil(mine)
    with pytest.raises(NeedsHuman, match=words), Forecaster(mine, policy=QUICK, reserve=reserve) as forecaster:
        forecaster.check()


def test_a_bundle_that_crashes_its_children_is_put_away_for_the_last_good_one_within_the_same_epoch(
    demo: Path, mine: Path, reserve: Reserve, gather: Gather, *, right: float, fault: Callable[..., None]
) -> None:
    assert served(Forecaster(demo, policy=QUICK, reserve=reserve), gather) == right
    bundle = load_bundle(mine)
    bad = write_bundle(mine, replace(bundle.manifest, name="bad"), bundle.weights, bundle.canary, replace_old=True)
    fault("exit:9@50", 4)  # three for the job, one that stood by
    forecaster = Forecaster(mine, policy=QUICK, reserve=reserve)
    assert served(forecaster, gather) == right
    assert forecaster.manifest.name == read_manifest(demo).name
    assert "in quarantine" in forecaster.remarks[0]
    assert forecaster.counts.quarantines == 1
    held = reserve.shelf.quarantined()[bad.sha256]
    assert "exit status 9" in held.reason

    fault("")
    from_the_start = Forecaster(mine, policy=QUICK, reserve=reserve)
    assert served(from_the_start, gather) == right
    assert from_the_start.manifest.name == read_manifest(demo).name
    assert "in quarantine since" in from_the_start.remarks[0]
    assert from_the_start.counts.crashes == 0, "it was not even started"

    assert reserve.shelf.release(bad.sha256[:12])
    freed = Forecaster(mine, policy=QUICK, reserve=reserve)
    assert served(freed, gather) == right
    assert (freed.manifest.name, freed.remarks) == ("bad", ())


def test_one_in_quarantine_is_run_all_the_same_when_there_is_no_other(
    mine: Path, reserve: Reserve, gather: Gather, right: float, caplog: pytest.LogCaptureFixture
) -> None:
    reserve.shelf.quarantine(read_manifest(mine), "it hung")
    assert served(Forecaster(mine, policy=QUICK, reserve=reserve), gather) == right
    assert "no earlier model" in caplog.text


def longer(path: Path, bundle: Bundle, more: int) -> Manifest:
    """The same network with a longer encoder."""
    manifest = replace(bundle.manifest, name="longer", encoder_length=bundle.manifest.encoder_length + more)
    old = bundle.canary.inputs
    inputs = ModelInput(
        old.end,
        old.step,
        np.concatenate([old.target[:more] + 0.01, old.target]),
        np.concatenate([old.past[:more], old.past]),
        np.concatenate([old.known[:more], old.known]),
    )
    quantiles = load_engine(replace(bundle, manifest=manifest)).predict(inputs).quantiles
    return write_bundle(path, manifest, bundle.weights, Canary(inputs, quantiles))


def test_one_with_a_longer_encoder_says_that_it_needs_more_candles(
    demo: Path,
    bundle: Bundle,
    tmp_path: Path,
    reserve: Reserve,
    *,
    gather: Gather,
    fault: Callable[..., None],
) -> None:
    longer(tmp_path / "longer", bundle, 24)
    served(Forecaster(tmp_path / "longer", policy=QUICK, reserve=reserve), gather)
    fault("exit:9@50", 4)
    with Forecaster(demo, policy=QUICK, reserve=reserve) as forecaster:
        forecaster.check()
        candles = gather(forecaster)
        with pytest.raises(TooFewCandles):
            forecaster.forecast(candles)
        assert forecaster.manifest.name == "longer"
        more = gather(forecaster)
        assert len(more) == len(candles) + 24
        assert np.isfinite(forecaster.forecast(more).value)


def test_what_must_not_run_here_does_not_stand_in(mine: Path, reserve: Reserve, gather: Gather) -> None:
    """As on a real network, where the last good one was trained on made-up data."""
    served(Forecaster(mine, policy=QUICK, reserve=reserve), gather)
    truncate(mine)

    def refuse(manifest: Manifest) -> None:
        if manifest.training.synthetic and accepted:
            raise NeedsHuman("made up")
        accepted.append(manifest)

    accepted: list[Manifest] = []
    with Forecaster(mine, policy=QUICK, reserve=reserve, accept=refuse) as forecaster:
        with pytest.raises(NeedsHuman, match="is cut off"):
            forecaster.check()
        assert forecaster.remarks == ()


def test_one_with_other_features_than_the_users_list_does_not_stand_in(
    mine: Path, bundle: Bundle, reserve: Reserve, gather: Gather
) -> None:
    served(Forecaster(mine, policy=QUICK, reserve=reserve), gather)
    garble(mine)
    names = (*bundle.manifest.past, *bundle.manifest.known)
    other = parse_features(tuple(name for name in names if name != bundle.manifest.past[0]), "a test")
    with pytest.raises(NeedsHuman, match="manifest"):
        Forecaster(mine, other, policy=QUICK, reserve=reserve)


def test_a_topic_falls_back_on_its_own_only(mine: Path, shelf: Shelf, gather: Gather) -> None:
    served(Forecaster(mine, policy=QUICK, reserve=Reserve(shelf, 1)), gather)
    truncate(mine)
    with pytest.raises(NeedsHuman), Forecaster(mine, policy=QUICK, reserve=Reserve(shelf, 2)) as forecaster:
        forecaster.check()


# ---- a bundle that changes while it runs --------------------------------------------------------------------------------


def end_all(forecaster: Forecaster) -> None:
    pids = {int(str(child["pid"])) for child in forecaster.children()}
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + 60
    while pids & {int(str(child["pid"])) for child in forecaster.children()}:
        assert time.monotonic() < end


def test_a_bundle_that_is_replaced_while_it_runs_is_run_as_what_it_is_by_then(
    mine: Path, reserve: Reserve, gather: Gather, bundle: Bundle, right: float
) -> None:
    with Forecaster(mine, policy=QUICK, reserve=reserve) as forecaster:
        old = forecaster.check()
        candles = gather(forecaster)
        new = write_bundle(
            mine, replace(bundle.manifest, name="new"), bundle.weights, bundle.canary, replace_old=True
        ).sha256
        assert forecaster.check() == old, "what is loaded goes on"
        assert forecaster.forecast(candles).bundle_sha256 == old
        end_all(forecaster)
        assert forecaster.forecast(candles).bundle_sha256 == new
        assert forecaster.manifest.name == "new"
        assert forecaster.check() == new
        forecast = forecaster.forecast(candles)
        assert forecast.value == right
        forecaster.guard(forecast, candles)
    assert [manifest.sha256 for _, manifest in reserve.best(set())] == [new]


def test_a_bundle_that_is_spoilt_while_it_runs_is_stood_in_for_when_its_children_end(
    mine: Path, reserve: Reserve, gather: Gather, right: float
) -> None:
    with Forecaster(mine, policy=QUICK, reserve=reserve) as forecaster:
        forecaster.check()
        candles = gather(forecaster)
        forecaster.guard(forecaster.forecast(candles), candles)
        truncate(mine)
        assert forecaster.forecast(candles).value == right
        end_all(forecaster)
        assert forecaster.forecast(candles).value == right
        assert "is cut off" in forecaster.remarks[0]


def test_a_child_that_lies_about_its_bundle_costs_the_epoch(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Forecaster(demo, policy=QUICK) as forecaster:
        forecaster.check()
        forecaster.manifest = replace(forecaster.manifest, sha256="0" * 64)
        monkeypatch.setattr(rooms, "read_manifest", lambda _: forecaster.manifest)
        with pytest.raises(SkipEpoch, match="not 000000000000 as it was told to"):
            forecaster.check()


def test_a_forecaster_may_be_asked_after_its_end(demo: Path, gather: Gather) -> None:
    forecaster = Forecaster(demo, policy=QUICK)
    candles = gather(forecaster)
    forecaster.close()
    forecaster.close()
    for ask in (forecaster.check, lambda: forecaster.forecast(candles)):
        with pytest.raises(SkipEpoch, match="being ended"):
            ask()
    assert forecaster.children() == []


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "/proc/self/mem/x", ""])
def test_a_path_that_can_be_no_bundle_needs_a_person(path: str) -> None:
    with pytest.raises(NeedsHuman):
        Forecaster(Path(path))


def test_whoever_observes_hears_of_a_whole_life(demo: Path, gather: Gather, right: float) -> None:
    events: list[Any] = []
    assert served(Forecaster(demo, policy=QUICK, observe=events.append), gather) == right
    assert {"launched", "ready", "dispatched", "finished", "gone"} <= {event.kind for event in events}
