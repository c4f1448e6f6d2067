"""A fleet whose model is a stand-in, served on a real socket; and a clock that a test moves."""

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
from forecastd.fleet.api.listen_address import listen
from forecastd.fleet.contract import METRIC_NAMES, METRICS
from forecastd.fleet.fleet import Fleet
from forecastd.fleet.forecast.fleet_forecast import HEURISTIC, STORED_LEVELS, TFT, FleetForecast
from forecastd.fleet.window.window import WindowBlock
from forecastd.inference.quantile_json import metrics_json
from forecastd.settings import Settings
from forecastd.supervise.events import SupervisionCounts

STEP, HORIZON, ENCODER, MINIMUM = 5, 4, 8, 3
LEVELS = (0.1, 0.5, 0.9)
START = 1_769_860_800.0  # 2026-01-31T12:00:00Z, on the grid
WAIT = 60.0  # the longest that a test waits for what must come


class FleetTestClock:
    """Wall time goes on when a test says so; monotonic time with it."""

    def __init__(self, now: float = START + 1) -> None:
        self._now = now
        self._mono = 1000.0

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._mono

    def advance(self, seconds: float) -> None:
        self._now += seconds
        self._mono += max(0.0, seconds)


@dataclass
class ForecasterScript:
    """What the stand-in models do. `go` holds a forecast up until it is set; `ready_after` holds getting ready up."""

    go: threading.Event = field(default_factory=threading.Event)
    loaded: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None
    bad: dict[str, str] = field(default_factory=dict)  # bundles that turn out to be no good, with why
    opened: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    begun: int = 0


class FakeFleetForecaster:
    """A forecaster of the shape of `inference.FleetForecaster`: the last value goes on, in a band."""

    def __init__(self, bundle: Path, script: ForecasterScript) -> None:
        if not bundle.is_dir() and bundle.name != "first":
            raise NeedsHuman(f"There is no bundle at {bundle}.")
        self._script, self._name, self._over = script, bundle.name, threading.Event()
        self.manifest: Any = SimpleNamespace(
            name=bundle.name, sha256=(bundle.name.encode().hex() + "0" * 64)[:64], step=STEP, encoder_length=ENCODER,
            encoder_minimum=MINIMUM, horizon=HORIZON, levels=LEVELS, names=METRIC_NAMES, metrics=METRICS,
        )  # fmt: skip
        self.counts = SupervisionCounts()
        script.opened.append(bundle.name)

    def wait_until_ready(self, seconds: float | None = None, is_cancelled: Callable[[], bool] = lambda: False) -> str:
        self._wait(self._script.loaded, is_cancelled)
        if self._name in self._script.bad:
            raise NeedsHuman(self._script.bad[self._name])
        return str(self.manifest.sha256)

    def forecast(
        self, block: WindowBlock, prepared: Any = None, is_cancelled: Callable[[], bool] = lambda: False
    ) -> FleetForecast:
        self._script.begun += 1
        self._wait(self._script.go, is_cancelled)
        if self._script.error is not None:
            raise self._script.error
        last = np.nan_to_num(block.values[:, -1], nan=1.0)
        quantiles = np.stack([last * 0.9, last, last * 1.1], axis=-1)[:, None].repeat(HORIZON, axis=1)
        seen = (~np.isnan(block.values).all(axis=2)).sum(axis=1)
        found = FleetForecast(
            tick=block.tick, step=STEP, made_at=(block.tick + 1) * STEP + 1.0, seconds=0.1, metrics=METRIC_NAMES, levels=LEVELS,
            servers=block.servers, profiles=block.profiles,
            models=tuple(TFT if count >= MINIMUM else HEURISTIC for count in seen),
            quantiles=quantiles.astype(np.float32), bundle=self._name, bundle_sha256=self.manifest.sha256, engine="fake",
        )  # fmt: skip
        return found.with_encoded(metrics_json(found.quantiles.transpose(0, 2, 3, 1), METRICS, LEVELS, STORED_LEVELS))

    def children(self) -> list[dict[str, object]]:
        return []

    def close(self) -> None:
        self._over.set()
        self._script.closed.append(self._name)

    def _wait(self, gate: threading.Event, over: Callable[[], bool]) -> None:
        while not gate.wait(0.02):
            if over() or self._over.is_set():
                raise SkipEpoch("The model's processes are being ended.", check="fleet_forecast")


@dataclass
class ServedFleet:
    """A fleet that is served. `client` asks it with no key; `feed` sends rows of servers at a tick."""

    fleet: Fleet
    client: httpx.Client
    clock: FleetTestClock
    script: ForecasterScript
    port: int

    def feed(self, tick_time: float, *servers: str, value: float = 20.0, **fields: Any) -> dict[str, Any]:
        metrics = dict.fromkeys(METRIC_NAMES, value)
        records = [
            {"server": name, "time": tick_time, "profile": "web", "metrics": metrics, **fields} for name in servers
        ]
        answer = self.client.post("/feed", json={"version": 1, "records": records})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def until(self, condition: Callable[[], object]) -> Any:
        """Wait until it is true of what is published; the clock of the ticker's waits stands still meanwhile."""
        return wait_until(condition)

    def close_tick(self) -> int:
        """Let the open tick end and be closed and judged; gives its number."""
        tick = int(self.clock.now() // STEP)
        self.clock.advance((tick + 1) * STEP + 1 - self.clock.now())
        wait_until(lambda: self.fleet.snapshot.tick >= tick)
        return tick

    def forecast_tick(self) -> int:
        """As `close_tick`, with its forecast."""
        tick = self.close_tick()
        wait_until(lambda: (made := self.fleet.snapshot.forecast) is not None and made.tick >= tick)
        return tick


class ServeFleet(Protocol):
    def __call__(
        self, *, keys: tuple[str, ...] = (), opened: bool = True, clock: FleetTestClock | None = None, **settings: Any
    ) -> ServedFleet: ...


def wait_until(condition: Callable[[], object]) -> Any:
    """What the condition gives as soon as that is true; fails after a time that no machine needs."""
    found, pause = condition(), threading.Event()
    for _ in range(int(WAIT / 0.01)):
        if found:
            return found
        pause.wait(0.01)
        found = condition()
    raise AssertionError("what was waited for did not come")


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServeFleet]:
    """Serve a fleet; it ends with the test. `opened`: whether its model gets ready and forecasts at once."""
    monkeypatch.setattr(ticker, "MAX_WAIT_SECONDS", 0.01)  # nobody wakes it when a test moves the clock
    monkeypatch.setattr(fleet, "FORECAST_SHARE", 0.02)  # a model that hangs is not waited for long
    monkeypatch.setattr(fleet, "CLOSE_SECONDS", WAIT)  # whatever does not hang has time to end
    ends: list[Callable[[], object]] = []

    def run(
        *, keys: tuple[str, ...] = (), opened: bool = True, clock: FleetTestClock | None = None, **options: Any
    ) -> ServedFleet:
        script, own = ForecasterScript(), clock or FleetTestClock()
        if opened:
            script.go.set()
            script.loaded.set()
        given: dict[str, Any] = {"state_dir": tmp_path / "state", "fleet_model": Path("first"), "fleet_step": STEP}
        settings = Settings(**(given | options))
        fleet = Fleet(settings, own, factory=lambda bundle, _: FakeFleetForecaster(bundle, script))
        fleet.start()
        ends.append(fleet.close)
        listening = listen("127.0.0.1", 0)
        http = FleetHttpServer(create_app(fleet, ApiKeys(keys)), listening)
        http.__enter__()
        ends.append(http.__exit__)
        client = httpx.Client(base_url=f"http://127.0.0.1:{http.port}", timeout=WAIT, trust_env=False)
        ends.append(client.close)
        wait_until(lambda: _answers(client))
        return ServedFleet(fleet, client, own, script, http.port)

    yield run
    for end in reversed(ends):
        end()


def _answers(client: httpx.Client) -> bool:
    try:
        client.get("/healthz")
    except httpx.ConnectError:
        return False
    return True


@pytest.fixture
def moment() -> Callable[[float], str]:
    """ISO 8601 of a time so many seconds after the start."""
    return lambda seconds: to_iso(START + seconds)
