"""A fleet with a fake model, served on a real socket, and a manual clock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import httpx
import numpy as np
import pytest

from forecastd.clock import to_iso
from forecastd.errors import NeedsHuman, SkipEpoch
from forecastd.fleet import fleet, ticker
from forecastd.fleet.api.app import create_app
from forecastd.fleet.api.http_server import FleetHttpServer
from forecastd.fleet.api.keys import ApiKeys
from forecastd.fleet.api.listener import Listener, listen
from forecastd.fleet.contract import METRIC_NAMES, METRICS
from forecastd.fleet.fleet import Fleet
from forecastd.fleet.forecast.fleet_forecast import HEURISTIC, STORED_LEVELS, TFT, FleetForecast
from forecastd.fleet.window.window import WindowBlock
from forecastd.inference.quantile_json import QuantileJsonWriter
from forecastd.settings import load_settings
from forecastd.supervise.events import SupervisionCounts
from forecastd.testing import ManualClock
from tests.support.waiting import wait_until

STEP, HORIZON, ENCODER, MINIMUM = 5, 4, 8, 3
LEVELS = (0.1, 0.5, 0.9)
START = 1_769_860_800.0  # 2026-01-31T12:00:00Z, the start of a tick
WAIT = 60.0  # seconds; longer than a busy machine needs


@dataclass
class ForecasterScript:
    """The behavior of the fake models. Forecasts wait for `proceed`, loading waits for `loaded`."""

    proceed: threading.Event = field(default_factory=threading.Event)
    loaded: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None
    invalid_bundles: dict[str, str] = field(default_factory=dict)  # bundle name -> why it is invalid
    opened_names: list[str] = field(default_factory=list)
    closed_names: list[str] = field(default_factory=list)
    started: int = 0

    def open(self, bundle: Path, *_: object) -> Any:
        """A fake model of this bundle."""
        return FakeFleetForecaster(bundle, self)


class FakeFleetForecaster:
    """A fake `FleetForecaster`: repeats the last value, within a band."""

    def __init__(self, bundle: Path, script: ForecasterScript) -> None:
        if not bundle.is_dir() and bundle.name != "first":
            raise NeedsHuman(f"No bundle at {bundle}.")
        self._script, self._name, self._closed = script, bundle.name, threading.Event()
        self.manifest: Any = SimpleNamespace(
            name=bundle.name, sha256=(bundle.name.encode().hex() + "0" * 64)[:64], step=STEP, encoder_length=ENCODER,
            encoder_minimum=MINIMUM, horizon=HORIZON, levels=LEVELS, names=METRIC_NAMES, metrics=METRICS,
        )  # fmt: skip
        self.counts = SupervisionCounts()
        script.opened_names.append(bundle.name)

    def check(self, should_stop: Callable[[], bool] = lambda: False) -> str:
        self._wait(self._script.loaded, should_stop)
        if self._name in self._script.invalid_bundles:
            raise NeedsHuman(self._script.invalid_bundles[self._name])
        return str(self.manifest.sha256)

    def forecast(self, block: WindowBlock, should_stop: Callable[[], bool] = lambda: False) -> FleetForecast:
        self._script.started += 1
        self._wait(self._script.proceed, should_stop)
        if self._script.error is not None:
            raise self._script.error
        last = np.nan_to_num(block.values[:, -1], nan=1.0)
        quantiles = np.stack([last * 0.9, last, last * 1.1], axis=-1)[:, None].repeat(HORIZON, axis=1)
        counts = (~np.isnan(block.values).all(axis=2)).sum(axis=1)
        forecast = FleetForecast(
            tick=block.tick, step=STEP, made_at=(block.tick + 1) * STEP + 1.0, seconds=0.1, metrics=METRIC_NAMES,
            levels=LEVELS, servers=block.servers, profiles=block.profiles,
            models=tuple(TFT if count >= MINIMUM else HEURISTIC for count in counts),
            quantiles=quantiles.astype(np.float32), bundle=self._name, bundle_sha256=self.manifest.sha256, engine="fake",
        )  # fmt: skip
        return forecast.with_encoded(
            QuantileJsonWriter(METRICS, LEVELS, STORED_LEVELS)(forecast.quantiles.transpose(0, 2, 3, 1))
        )

    def children(self) -> list[dict[str, object]]:
        return []

    def close(self) -> None:
        self._closed.set()
        self._script.closed_names.append(self._name)

    def _wait(self, event: threading.Event, should_stop: Callable[[], bool]) -> None:
        while not event.wait(0.02):
            if should_stop() or self._closed.is_set():
                raise SkipEpoch("The model processes are being stopped.", check="fleet_forecast")


@dataclass
class ServedFleet:
    """A served fleet. `client` sends no key; `feed` sends rows of servers at a time."""

    fleet: Fleet
    client: httpx.Client
    clock: ManualClock
    script: ForecasterScript
    listener: Listener
    port: int

    def feed(self, tick_time: float, *servers: str, value: float = 20.0, **fields: Any) -> dict[str, Any]:
        metrics = dict.fromkeys(METRIC_NAMES, value)
        records = [
            {"server": name, "time": tick_time, "profile": "web", "metrics": metrics, **fields} for name in servers
        ]
        answer = self.client.post("/feed", json={"version": 1, "records": records})
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.json()
        return document

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until the condition is true; the clock of the fleet does not move meanwhile."""
        wait_until(condition, seconds=WAIT)

    def close_tick(self) -> int:
        """End the open tick, wait until it is closed and evaluated, and return its number."""
        tick = int(self.clock.now() // STEP)
        self.clock.advance((tick + 1) * STEP + 1 - self.clock.now())
        wait_until(lambda: self.fleet.snapshot.tick >= tick)
        return tick

    def forecast_tick(self) -> int:
        """See `close_tick`: and wait for its forecast."""
        tick = self.close_tick()
        wait_until(lambda: (forecast := self.fleet.snapshot.forecast) is not None and forecast.tick >= tick)
        return tick


class ServeFleet(Protocol):
    def __call__(
        self,
        *,
        keys: tuple[str, ...] = (),
        loads_at_once: bool = True,
        clock: ManualClock | None = None,
        **settings: Any,
    ) -> ServedFleet: ...


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServeFleet]:
    """Serve a fleet until the end of the test. `loads_at_once`: its model loads and forecasts without waiting."""
    monkeypatch.setattr(ticker, "MAX_WAIT_SECONDS", 0.01)  # advancing the manual clock does not wake it
    monkeypatch.setattr(fleet, "FORECAST_SHARE", 0.02)  # do not wait long for a hung model
    monkeypatch.setattr(fleet, "CLOSE_SECONDS", WAIT)  # time for everything that does not hang
    cleanups: list[Callable[[], object]] = []

    def run(
        *, keys: tuple[str, ...] = (), loads_at_once: bool = True, clock: ManualClock | None = None, **options: Any
    ) -> ServedFleet:
        script, test_clock = ForecasterScript(), clock or ManualClock(START + 1)
        if loads_at_once:
            script.proceed.set()
            script.loaded.set()
        values: dict[str, Any] = {"state_dir": tmp_path / "state", "fleet_model": Path("first"), "fleet_step": STEP}
        settings = load_settings(**(values | options))
        fleet = Fleet(settings, test_clock, factory=script.open)
        fleet.start()
        cleanups.append(fleet.close)
        listener = listen("127.0.0.1", 0, test_clock)
        http = FleetHttpServer(create_app(fleet, ApiKeys(keys)), listener)
        http.start()
        cleanups.append(http.__exit__)
        client = httpx.Client(base_url=f"http://127.0.0.1:{http.port}", timeout=WAIT, trust_env=False)
        cleanups.append(client.close)
        wait_until(lambda: _answers(client))
        return ServedFleet(fleet, client, test_clock, script, listener, http.port)

    yield run
    for cleanup in reversed(cleanups):
        cleanup()


def _answers(client: httpx.Client) -> bool:
    try:
        client.get("/healthz")
    except httpx.ConnectError:
        return False
    return True


@pytest.fixture
def unstarted_fleet(tmp_path: Path) -> Fleet:
    """A fleet whose threads have not begun."""
    script = ForecasterScript()
    settings = load_settings(state_dir=tmp_path / "state", fleet_model=Path("first"), fleet_step=STEP)
    return Fleet(settings, ManualClock(START), factory=script.open)


@pytest.fixture
def iso_time() -> Callable[[float], str]:
    """The ISO 8601 text of a time some seconds after the start."""
    return lambda seconds: to_iso(START + seconds)
