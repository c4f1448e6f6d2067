"""What goes wrong, on whom and when: each fault as a level from 0 (nothing) to about 1 (as bad as it gets) at any tick.

The one thing to know before changing it: a level is a function of the time and of a few numbers drawn per server, so a
fault needs no past to be known. Dependants see the level of what they depend on, some ticks later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from forecastd.fleet.simulator.noise import Keys, Reals, Ticks, derived, mixed, uniform
from forecastd.fleet.simulator.profiles import HOUR, MINUTE

Scenario = Literal["healthy", "degrading", "critical", "cascade", "varied"]
SCENARIOS: tuple[Scenario, ...] = ("healthy", "degrading", "critical", "cascade", "varied")
Kind = Literal["leak", "rush", "fill", "disk", "network"]
KINDS: tuple[Kind, ...] = ("leak", "rush", "fill", "disk", "network")
Numbers = NDArray[np.int64]
_FOR_EVER = 10_000 * HOUR


@dataclass(frozen=True)
class Course:
    """How faults of a scenario go, in seconds: (shortest, longest) of each part.

    `waits`: from the start of the scenario until it sets in; `early`: by how much it is ahead of the start. `every`: how
    long until it is over and may come again.
    """

    waits: tuple[float, float]
    ramp: tuple[float, float]
    holds: tuple[float, float]
    recovers: tuple[float, float]
    every: float
    early: float = 0.0


_COURSES: dict[Scenario, Course] = {
    "degrading": Course(
        (0, 4 * MINUTE), (15 * MINUTE, 40 * MINUTE), (25 * MINUTE, 40 * MINUTE), (60, 150), 2 * HOUR, early=7 * MINUTE
    ),
    "critical": Course(
        (0, 3 * MINUTE), (6 * MINUTE, 9 * MINUTE), (_FOR_EVER, _FOR_EVER), (60, 60), 2 * _FOR_EVER, early=12 * MINUTE
    ),
    "cascade": Course((MINUTE, 2 * MINUTE), (5 * MINUTE, 8 * MINUTE), (25 * MINUTE, 30 * MINUTE), (90, 180), HOUR),
    "varied": Course((0, 25 * MINUTE), (5 * MINUTE, 40 * MINUTE), (2 * MINUTE, 20 * MINUTE), (40, 240), 90 * MINUTE),
}
_OFTEN: dict[Kind, float] = {"leak": 0.11, "rush": 0.11, "fill": 0.08, "disk": 0.09, "network": 0.05}  # of varied


class Faults:
    """The faults of one scenario on the servers with these keys. `start` is the tick at which the scenario begins."""

    def __init__(self, scenario: Scenario, key: Keys, names: tuple[str, ...], *, start: int, step: int) -> None:
        self._course = _COURSES.get(scenario)
        self._every_server = scenario == "varied"
        self._key, self._start, self._step = derived(key, 3_000), start, step
        self._struck = _struck(scenario, self._key, names)
        databases = [i for i, name in enumerate(names) if name == "database"]
        self.pools = len(databases)
        self._database = np.array(databases or [0], dtype=np.int64)
        depends = np.array([name in {"web", "worker"} for name in names]) & (self.pools > 0)
        self.pool = np.where(depends, np.arange(len(names)) % max(self.pools, 1), -1)
        self._lag = np.rint((20 + 130 * uniform(derived(self._key, 1))) / step).astype(np.int64)
        self._all = np.arange(len(names))

    @property
    def any(self) -> bool:
        """Whether anything ever goes wrong."""
        return self._course is not None

    def level(self, kind: Kind, ticks: Ticks) -> Reals:
        """[S, T] how far this fault has gone on each server."""
        return self._level(kind, self._all, ticks[None, :])

    def upstream(self, ticks: Ticks, pools_off: int, later: float) -> Reals:
        """[S, T] how slow the disk is of the database that the server depends on.

        `pools_off`: of a neighbouring pool's instead. `later`: how many times its own lag the server sees it later.
        """
        if not self.pools:
            return np.zeros((len(self._all), len(ticks)))
        delay = np.rint(self._lag * later).astype(np.int64)
        source = self._database[(self.pool + pools_off) % self.pools]
        level = self._level("disk", source, ticks[None, :] - delay[:, None])
        return np.asarray(level * (self.pool >= 0)[:, None])

    def _level(self, kind: Kind, who: Numbers, ticks: Ticks) -> Reals:
        course = self._course
        if course is None or not (self._every_server or np.any(self._struck[kind][who])):
            return np.zeros((len(who), ticks.shape[1]))
        since = (ticks - self._start) * float(self._step) + course.early
        turn = np.floor(since / course.every)
        key = derived(self._key[who], KINDS.index(kind))[:, None]
        if self._every_server:
            run = mixed(key + turn.astype(np.int64).astype(np.uint64))
            strength = (uniform(run) < _OFTEN[kind]) * (0.45 + 0.55 * uniform(mixed(run)))
        else:
            run = mixed(key)
            strength = self._struck[kind][who][:, None] * (turn >= 0) * (0.9 + 0.1 * uniform(mixed(run)))
        wait, ramp, hold, recovery = (
            low + (high - low) * uniform(derived(run, part))
            for part, (low, high) in enumerate((course.waits, course.ramp, course.holds, course.recovers))
        )
        into = since - turn * course.every - wait
        up = np.clip(into / ramp, 0, 1)
        down = np.clip((into - ramp - hold) / recovery, 0, 1)
        return np.asarray(strength * up * (1 - down))


def _struck(scenario: Scenario, key: Keys, names: tuple[str, ...]) -> dict[Kind, Reals]:
    """Per kind, 1 for the servers that it strikes; chosen by their keys, the same ones for the same seed."""
    order = np.argsort(derived(key, 4_000), kind="stable")
    struck = {kind: np.zeros(len(names)) for kind in KINDS}
    if scenario in {"degrading", "critical"}:
        kinds: tuple[Kind, ...] = ("leak", "rush", "fill") if scenario == "degrading" else KINDS
        count = min(len(names), max(len(kinds), round(0.25 * len(names))))
        for place, server in enumerate(order[:count]):
            struck[kinds[place % len(kinds)]][server] = 1.0
    elif scenario == "cascade":
        databases = [i for i in order if names[i] == "database"]
        struck["disk"][(databases or list(order))[0]] = 1.0
    return struck
