"""A model that was given up, without real children: the pauses before it runs again, and its fallback."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from forecastd.errors import NeedsHuman, SkipEpoch
from forecastd.inference import supervised_model
from forecastd.inference.bundle_store import BundleStore, FallbackBundles
from forecastd.inference.supervised_model import SupervisedModel
from forecastd.runtime.jobs import ModelFailed
from forecastd.supervise.jobs import ChildSetup, check_job
from forecastd.supervise.queue import BundleQuarantined
from forecastd.testing import ManualClock

JOB = check_job(0.0, 1)
POOLS: list[FakePool] = []
ERRORS: dict[str, Exception] = {}  # by the name of the bundle


class FakePool:
    """A pool whose jobs end with the error of its bundle, or with the bundle's name as its hash."""

    def __init__(self, setup: ChildSetup, *_: object, **__: object) -> None:
        self.name, self.closed = setup.name, False
        POOLS.append(self)

    def wait_ready(self, *_: object) -> str:
        if (error := ERRORS.get(self.name)) is not None:
            raise error
        return self.name

    def run(self, *_: object) -> Any:
        return SimpleNamespace(bundle_sha256=self.wait_ready())

    def close(self) -> None:
        self.closed = True


def fake_manifest(path: Path) -> Any:
    """A manifest whose name and hash are the name of its directory."""
    return SimpleNamespace(name=path.name, sha256=path.name)


class PatientModel(SupervisedModel[Any]):
    """A model whose path is its name and its hash."""

    manifest_type: Any = SimpleNamespace(read=fake_manifest)
    retry_seconds = (30.0, 600.0)

    def _setup(self, bundle: Path, manifest: Any) -> ChildSetup:
        return ChildSetup((), "market", name=bundle.name)

    def run(self) -> str:
        """Run a job until a bundle has done it; return the bundle's name."""
        while (value := self._run(JOB, lambda: False)) is None:
            pass
        return str(value.bundle_sha256)


class HastyModel(PatientModel):
    """A model that runs again at once."""

    retry_seconds = (0.0, 0.0)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(autouse=True)
def _fake_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    POOLS.clear()
    ERRORS.clear()
    monkeypatch.setattr(supervised_model, "ProcessPool", FakePool)


@pytest.fixture
def fallback(tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> FallbackBundles[Any]:
    """The bundles "second" and "first", newest first."""
    store = BundleStore(tmp_path, clock)
    monkeypatch.setattr(store, "list_good", lambda _: [tmp_path / "second", tmp_path / "first"])
    return FallbackBundles(store, "fleet", fake_manifest)


def run_for(model: PatientModel, clock: ManualClock, seconds: int) -> list[int]:
    """Run a job every second; the seconds at which children were started for it."""
    starts = []
    for second in range(seconds):
        before = len(POOLS)
        with pytest.raises(SkipEpoch, match="it hung"):
            model.run()
        starts += [second] if len(POOLS) > before else []
        clock.advance(1)
    return starts


def test_quarantined_model_runs_again_after_growing_pauses(clock: ManualClock) -> None:
    model = PatientModel(Path("first"), clock=clock)
    ERRORS["first"] = BundleQuarantined("it hung")
    assert run_for(model, clock, 2200) == [30, 90, 210, 450, 930, 1530, 2130]
    assert all(pool.closed for pool in POOLS)
    clock.advance(600)
    ERRORS.clear()
    assert model.run() == "first"
    ERRORS["first"] = BundleQuarantined("it hung")
    assert run_for(model, clock, 100) == [30, 90], "a good job makes the pauses short again"


def test_quarantined_model_without_pauses_runs_again_at_once(clock: ManualClock) -> None:
    model = HastyModel(Path("first"), clock=clock)
    ERRORS["first"] = BundleQuarantined("it hung")
    assert run_for(model, clock, 3) == [1, 2]


@pytest.mark.parametrize(
    ("error", "quarantined"),
    [(BundleQuarantined("it hung."), ["own"]), (ModelFailed("it is truncated.", "bundle", "hash"), [])],
)
def test_given_up_model_falls_back_to_newest_good_one(
    clock: ManualClock, fallback: FallbackBundles[Any], error: Exception, quarantined: list[str]
) -> None:
    model = PatientModel(Path("own"), clock=clock, fallback=fallback)
    ERRORS["own"] = error
    assert model.run() == "second"
    assert [(pool.name, pool.closed) for pool in POOLS] == [("own", True), ("second", False)]
    assert f"{error} Falling back to the last good model, second" in model.warnings[0]
    assert list(fallback.store.list_quarantined()) == quarantined
    ERRORS["second"] = BundleQuarantined("it hung too")
    assert model.run() == "first"
    ERRORS["first"] = BundleQuarantined("it hung as well")
    with pytest.raises(SkipEpoch, match="it hung as well"):
        model.run()


def test_rejected_bundle_is_no_fallback(clock: ManualClock, fallback: FallbackBundles[Any]) -> None:
    def refuse_second(manifest: Any) -> None:
        if manifest.name == "second":
            raise NeedsHuman("not here")

    model = PatientModel(Path("own"), clock=clock, fallback=fallback, validate=refuse_second)
    ERRORS["own"] = ModelFailed("it is truncated", "bundle", "hash")
    assert model.run() == "first"


@pytest.mark.parametrize("kind", ["data", "model"])
def test_refused_job_gives_up_no_model(clock: ManualClock, fallback: FallbackBundles[Any], kind: str) -> None:
    model = PatientModel(Path("own"), clock=clock, fallback=fallback)
    ERRORS["own"] = ModelFailed("no", kind)
    with pytest.raises(SkipEpoch):
        model.run()
    assert [pool.name for pool in POOLS] == ["own"]


def test_model_closed_during_fallback_keeps_no_children(
    clock: ManualClock, fallback: FallbackBundles[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = PatientModel(Path("own"), clock=clock, fallback=fallback)
    ERRORS["own"] = BundleQuarantined("it hung")
    monkeypatch.setattr(model, "_accept", lambda *_: model.close())
    assert model.run() == "second"
    assert all(pool.closed for pool in POOLS)
