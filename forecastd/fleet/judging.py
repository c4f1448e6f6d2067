"""What a tick means: which servers are ready, what is at risk, and which alerts are open.

It is done at every tick, whether its forecast is there or not: a server that is in trouble now is told of in time although
the model hangs. The alerts' state is written down as it changes, so that a restart opens none a second time.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson

from forecastd.errors import NeedsHuman
from forecastd.fleet.alerting import AlertBook
from forecastd.fleet.contract import INDEX, NAMES
from forecastd.fleet.grid import Block
from forecastd.fleet.observed import observe
from forecastd.fleet.published import Published, ServerView
from forecastd.fleet.readiness import READY, SILENT, Prepared, prepare
from forecastd.fleet.risk import Assessment, assess
from forecastd.fleet.snapshot import FleetForecast
from forecastd.fleet.telling import Person, Telling
from forecastd.fleet.thresholds import Thresholds
from forecastd.wholefile import write_whole

log = logging.getLogger(__name__)

SAVE_EVERY = 12  # ticks between two writings of the alerts' state while none opens, changes or clears
STATES = {READY: "ready", SILENT: "silent"}


class Judge:
    """Judges one tick after the other. For one thread."""

    def __init__(self, thresholds: Thresholds, path: Path, step: int, person: Person) -> None:
        """`path`: where the alerts' state is kept; `person`: who is told of servers in trouble."""
        self._thresholds, self._path, self._step = thresholds, path, step
        self._book = _load(path)
        self._telling = Telling(person, self._book.open)
        self._saved = 0
        self._unsaved = self._refused = False

    def judge(
        self, block: Block, forecast: FleetForecast | None, metrics: tuple[str, ...], minimum: int, before: Published
    ) -> Published:
        """What is to be published of the block's tick. `metrics`, `minimum`: what the model needs of a server."""
        assessment = assess(
            observe(
                block.tick, block.values, step=self._step, servers=block.servers, profiles=block.profiles,
                statuses=block.statuses,
            ),
            None if forecast is None else _whole(forecast), self._thresholds,
        )  # fmt: skip
        events = self._book.update(assessment)
        self._telling.tell(self._book.open)
        self._save(block.tick, changed=bool(events))
        return replace(
            before,
            tick=block.tick,
            servers=_views(block, readiness(block, metrics, minimum), assessment),
            risk=tuple(orjson.dumps(one.as_json()) for one in assessment.worst_first),
            summary=assessment.summary.as_json(),
            alerts=orjson.dumps(self._book.as_json()),
            alert_counts=self._book.counts(),
        )

    def _save(self, tick: int, *, changed: bool) -> None:
        """Write the alerts' state down when there is something new in it. Without it a restart opens them anew."""
        self._unsaved = self._unsaved or changed
        if not self._unsaved and not (self._book.open and tick - self._saved >= SAVE_EVERY):
            return
        try:
            write_whole(self._path, json.dumps(self._book.to_state()).encode())
        except NeedsHuman as error:
            if not self._refused:
                log.warning("The alerts' state is not kept, and is tried again at every tick: %s", error)
            self._refused = True
            return
        if self._refused:
            log.info("The alerts' state is kept again.")
        self._saved, self._unsaved, self._refused = tick, False, False


def readiness(block: Block, metrics: tuple[str, ...], minimum: int) -> Prepared:
    """Which servers a model of these metrics can forecast; a metric that it does not have keeps none from being ready."""
    values = block.values if metrics == NAMES else block.values[:, :, [INDEX[name] for name in metrics]]
    return prepare(values, minimum, metrics)


def _whole(forecast: FleetForecast) -> FleetForecast:
    """The forecast with a column for every metric of the contract, NaN for those that the model does not forecast."""
    if forecast.metrics == NAMES:
        return forecast
    servers, rows, _, levels = forecast.quantiles.shape
    quantiles = np.full((servers, rows, len(NAMES), levels), np.nan, np.float32)
    quantiles[:, :, [INDEX[name] for name in forecast.metrics]] = forecast.quantiles
    return replace(forecast, metrics=NAMES, quantiles=quantiles)


def _views(block: Block, prepared: Prepared, assessment: Assessment) -> tuple[ServerView, ...]:
    return tuple(
        ServerView(
            server=server,
            profile=block.profiles[row],
            status=block.statuses[row],
            state=STATES.get(int(prepared.codes[row]), "warming"),
            reason=prepared.reason(row),
            needs=int(prepared.needs[row]),
            score=risk.score,
            level=risk.level,
        )
        for row, (server, risk) in enumerate(zip(block.servers, assessment.risks, strict=True))
    )


def _load(path: Path) -> AlertBook:
    """The book as it was left; a new one when there is none, or none that can be understood."""
    try:
        return AlertBook.from_state(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return AlertBook()
    except (OSError, ValueError, RecursionError) as error:
        log.warning("The alerts' state in %s is of no use (%s): alerts open anew.", path, type(error).__name__)
        return AlertBook()
