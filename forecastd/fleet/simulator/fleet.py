"""The simulated fleet: from load, jobs, habits and faults to the 14 metrics, the way they hang together in real servers.

Demand drives utilisation; utilisation drives CPU, load, network and, by the queueing law rho / (1 - rho), latency; a disk
that is busy makes its database slow, and that makes what depends on it slow a little later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecastd.errors import NeedsHuman
from forecastd.fleet.contract import INDEX, METRICS, M
from forecastd.fleet.intake import Rows
from forecastd.fleet.simulator import noise, profiles
from forecastd.fleet.simulator.faults import KINDS, SCENARIOS, Faults, Scenario
from forecastd.fleet.simulator.noise import Reals, Ticks
from forecastd.fleet.simulator.profiles import DAY, MINUTE

_AT_ONCE = 200_000  # values of a metric worked on at a time: what fits a cache rather than the memory
_TAU = 2 * np.pi
_LOWS = np.array([metric.low for metric in METRICS], dtype=np.float32)
_HIGHS = np.array([metric.high for metric in METRICS], dtype=np.float32)
# The streams of noise, a number each: see the warning in noise.py.
(_CROWD, _OWN, _FLICKER, _BURSTS, _CPU, _LOAD, _MEMORY, _DISK, _BUSY, _DISK_MS, _IN, _OUT, _LATENCY, _RATE, _ERRORS, _WAIT,
 _SWAY, _LOST, _SWAP) = range(19)  # fmt: skip


class Simulator:
    """`servers` servers whose metrics are a function of `seed` and the tick.

    `scenario`: healthy; degrading (some ramp for tens of minutes, then cross); critical (several are over at `start`);
    cascade (a database slows, what depends on it follows, others take over); varied (all of it, again and again, at random
    places of time: what a model should learn from). `start`: the tick at which the scenario begins. `profiles`: how many of
    each kind there are, as shares; None: 8 web, 4 database, 3 cache, 3 worker, 2 batch in every 20.

    Raises:
        NeedsHuman: there is no such scenario or profile, or a number is out of range.
    """

    def __init__(
        self, seed: int, servers: int, scenario: Scenario = "healthy", step: int = 5, *, start: int = 0,
        profiles: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        if scenario not in SCENARIOS:
            raise NeedsHuman(f"There is no scenario {scenario!r}: choose among {', '.join(SCENARIOS)}.")
        if servers < 1 or step < 1:
            raise NeedsHuman("A simulated fleet needs at least one server and a step of at least one second.")
        self.seed, self.scenario, self.step, self.start = seed, scenario, step, start
        self._set_up(servers, profiles)

    def _set_up(self, servers: int, shares: Mapping[str, int] | None) -> None:
        order = profiles.parts(shares)
        self._kinds = tuple(order[i % len(order)] for i in range(servers))
        self.profiles = tuple(kind.name for kind in self._kinds)
        seen = dict.fromkeys(self.profiles, 0)
        named: list[str] = []
        for name in self.profiles:
            seen[name] += 1
            named.append(f"{name}-{seen[name]:02d}")
        self.names = tuple(named)
        self._key = noise.keys(self.seed, servers)
        self._traits = profiles.traits(self._key, self._kinds)
        self._timetable = profiles.Timetable(self._key, self._kinds, self._traits)
        self._series: dict[tuple[int, ...], noise.Keys] = {}
        self._faults = Faults(self.scenario, self._key, self.profiles, start=self.start, step=self.step)
        crowds = sorted({kind.peak for kind in profiles.PROFILES})  # who peak together are asked by the same people
        self._crowds = noise.derived(noise.keys(self.seed, len(crowds)), 900)
        self._crowd_of = np.array([crowds.index(kind.peak) for kind in self._kinds])

    def rows(self, tick: int) -> Rows:
        """What all servers report of this tick, complete and within the contract's bounds."""
        values = self.block(tick, 1)[:, 0, :]
        errors, latency = values[:, INDEX["error_percent"]], values[:, INDEX["latency_ms"]]
        slow = latency > 6 * self._traits.base_ms[:, 0] + 5
        statuses = tuple("degraded" if bad else "ok" for bad in (errors > 5) | slow)
        times = np.full(len(self.names), float(tick * self.step))
        return Rows.of(self.names, times, values, step=self.step, profiles=self.profiles, statuses=statuses)

    def block(self, first_tick: int, count: int) -> NDArray[np.float32]:
        """float32 [S, count, M], oldest first: the ticks from `first_tick` on, in the contract's units."""
        found = np.empty((len(self.names), count, M), dtype=np.float32)
        span = max(1, _AT_ONCE // len(self.names))
        for begin in range(0, count, span):
            end = min(count, begin + span)
            ticks = np.arange(first_tick + begin, first_tick + end, dtype=np.int64)
            for name, values in self._metrics(ticks).items():
                found[:, begin:end, INDEX[name]] = values
        return np.clip(found, _LOWS, _HIGHS, out=found)

    def _metrics(self, ticks: Ticks) -> dict[str, Reals]:
        """[S, T] of each metric, before its bounds are held."""
        found, seconds = self._traits, ticks.astype(np.float64) * self.step
        jobs = self._timetable.running(seconds)
        faults = self._levels(ticks)
        asked = self._demand(ticks, seconds, faults)
        used = np.clip(found.used * asked, 0.01, 0.93)
        used += faults["rush"] * np.maximum(0.965 - used, 0)
        used = np.clip(used, 0.0, 0.975)
        collect = self._collect(seconds)
        memory = self._memory(ticks, seconds, asked, collect, faults)
        disk = self._disk(ticks, seconds, used, jobs.disk, faults)
        thrash = np.maximum(memory - 90, 0) / 10
        cpu = 2 + 96 * used + jobs.cpu + 9 * collect + 12 * thrash
        cpu += (0.5 + 5 * used * (1 - used)) * self._white(_CPU, ticks)
        rho = np.clip(0.6 * used + 0.4 * np.clip(cpu, 0, 98) / 100, 0, 0.975)
        waiting = rho / (1 - rho)
        slower = (
            (1 + 9 * faults["upstream"])
            * (1 + 1.8 * faults["rush"] ** 2)
            * (1 + 1.6 * thrash)
            * (1 + 0.8 * faults["network"])
        )
        slower *= 1 + found.io * 0.12 * np.maximum(disk["disk_latency_ms"] / found.disk_ms - 1.5, 0)
        latency = found.base_ms * slower * (0.75 + 0.5 * waiting)
        rate = found.rate * asked * (1 + 1.3 * faults["rush"]) * (1 - 0.35 * faults["upstream"])
        rate *= np.maximum(1 + 0.035 * self._white(_RATE, ticks), 0.1)
        bursts, lost = self._bursts(_BURSTS, ticks), self._bursts(_LOST, ticks)
        errors = 0.06 * np.exp(0.5 * self._wander(_ERRORS, ticks, 15, 200)) + 0.3 * bursts
        errors += 22 * np.maximum(rho - 0.88, 0) + 7 * faults["upstream"] ** 2 + 4 * faults["network"] + 3 * thrash**2
        errors += 6 * np.maximum(disk["disk_percent"] - 94, 0)
        return disk | {
            "cpu_percent": cpu,
            "load_per_core": np.maximum(
                0.92 * rho + 0.09 * waiting + 0.012 * disk["cpu_iowait_percent"] + 1.6 * faults["upstream"], 0.0
            ) * np.exp(0.05 * self._wander(_LOAD, ticks, 10, 45)),
            "memory_percent": memory,
            "swap_percent": 1.5 + 0.4 * self._wander(_SWAP, ticks, 150, 2_000) + 4.5 * np.maximum(memory - 84, 0),
            "network_in_mb_s": rate * found.kb_in / 1e3 * np.exp(0.06 * self._white(_IN, ticks)),
            "network_out_mb_s": rate * found.kb_out / 1e3 * np.exp(0.06 * self._white(_OUT, ticks)) + jobs.network,
            "network_errors_per_s": 0.8 * lost + 62 * faults["network"] * np.exp(0.3 * self._white(_LOST, ticks)),
            "latency_ms": latency * np.exp((0.03 + 0.10 * rho) * self._wander(_LATENCY, ticks, 5, 20)),
            "requests_per_s": rate,
            "error_percent": errors * np.exp(0.25 * self._white(_ERRORS, ticks)),
        }  # fmt: skip

    def _levels(self, ticks: Ticks) -> dict[str, Any]:
        """[S, T] how far each fault has gone; plain noughts where nothing ever goes wrong."""
        if not self._faults.any:
            return dict.fromkeys((*KINDS, "upstream", "takeover"), 0.0)
        levels: dict[str, Any] = {kind: self._faults.level(kind, ticks) for kind in KINDS}
        levels["upstream"] = self._faults.upstream(ticks, 0, 1.0)
        alone = self._faults.pools < 2
        levels["takeover"] = 0.0 if alone else self._faults.upstream(ticks, -1, 2.0)
        return levels

    def _demand(self, ticks: Ticks, seconds: Reals, faults: Mapping[str, Any]) -> Reals:
        """What is asked of each server, 1 on average: the day, the crowd that is common to a kind, and its own swaying."""
        found = self._traits
        crowd = noise.wandering(self._crowds, ticks, *self._ticks(120, 750, 4_500))[self._crowd_of]
        own = self._wander(_OWN, ticks, 40, 300, 2_500)
        swaying = found.sway_by * np.clip(1 + 0.45 * self._wander(_SWAY, ticks, 1_500), 0.1, 2)
        sway = swaying * np.sin((seconds - found.sway_at) * (_TAU / found.sway))
        asked = profiles.demand(found, seconds) * np.exp(0.06 * crowd + 0.05 * own)
        asked *= 1 + sway + 0.02 * self._white(_FLICKER, ticks)
        return np.asarray(np.maximum(asked * (1 + 0.55 * faults["takeover"]), 0.02))

    def _collect(self, seconds: Reals) -> Reals:
        """From 0 to 1: the garbage collector at work, for some seconds of each of its periods."""
        found = self._traits
        into = (seconds - found.gc_at) % found.gc
        return np.asarray(np.clip(1 - into / 14, 0, 1))

    def _memory(self, ticks: Ticks, seconds: Reals, asked: Reals, collect: Reals, faults: Mapping[str, Any]) -> Reals:
        found = self._traits
        garbage = ((seconds - found.gc_at) % found.gc) / found.gc
        leaked = found.leak_by * (((seconds - found.leak_at) % found.leak) / found.leak)
        memory = found.memory + 5 * (asked - 1) + 2.6 * (garbage - collect) + leaked
        memory += 0.7 * self._wander(_MEMORY, ticks, 60, 1_000)
        return np.asarray(memory + faults["leak"] * np.maximum(99.5 - memory, 0))

    def _disk(
        self, ticks: Ticks, seconds: Reals, used: Reals, job: Reals, faults: Mapping[str, Any]
    ) -> dict[str, Reals]:
        """The disk's metrics: how full, how busy, how slow, and how much the CPU waits for it."""
        found = self._traits
        full = found.disk + found.fill * (((seconds - found.fill_at) % DAY) / DAY)
        full += 0.08 * self._wander(_DISK, ticks, 300, 3_500)
        full += faults["fill"] * np.maximum(98.5 - full, 0)
        busy = np.clip(3 + 45 * found.io * used + job + 2.2 * self._wander(_BUSY, ticks, 5, 60), 0.2, 88)
        busy += faults["disk"] * np.maximum(97 - busy, 0)
        share = np.clip(busy / 100, 0, 0.985)
        slow = found.disk_ms * (0.9 + 0.8 * share / (1.02 - share)) * (1 + 7 * faults["disk"] ** 2)
        return {
            "disk_percent": full,
            "disk_busy_percent": busy,
            "disk_latency_ms": slow * np.exp(0.10 * self._wander(_DISK_MS, ticks, 5, 30)),
            "cpu_iowait_percent": (0.4 + 22 * (0.3 + found.io) * share**2.5 + 14 * faults["disk"])
            * np.exp(0.20 * self._white(_WAIT, ticks)),
        }

    def _bursts(self, stream: int, ticks: Ticks) -> Reals:
        """Now and then, for a minute or so, something flickers: 0 most of the time, about 1 within a burst."""
        key = self._keys(5_000, stream)
        span = max(1, round(12 * MINUTE / self.step))
        draw = noise.at(key[:, None], (ticks // span)[None, :])
        begins = noise.uniform(noise.mixed(draw)) * 0.8 * span
        length = (3 + 20 * noise.uniform(noise.mixed(draw ^ np.uint64(1)))) * (5 / self.step)
        into = (ticks % span)[None, :] - begins
        within = (noise.uniform(draw) < 0.06) & (into >= 0) & (into < length)
        return np.asarray(within * (0.4 + noise.uniform(noise.at(key[:, None], ticks[None, :]))))

    def _white(self, stream: int, ticks: Ticks) -> Reals:
        return noise.white(self._keys(stream), ticks)

    def _wander(self, stream: int, ticks: Ticks, *periods: float) -> Reals:
        """[S, T] noise with the memory of these periods, in seconds."""
        found = [noise.smooth(self._keys(stream, period), ticks, period) for period in self._ticks(*periods)]
        return np.asarray(sum(found) / np.sqrt(len(found)))

    def _keys(self, *streams: int) -> noise.Keys:
        if streams not in self._series:
            self._series[streams] = noise.derived(self._key, *streams)
        return self._series[streams]

    def _ticks(self, *periods: float) -> list[int]:
        return [max(1, round(period / self.step)) for period in periods]
