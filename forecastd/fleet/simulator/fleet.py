"""The simulated fleet: 14 metrics from load, jobs, traits and faults, correlated as in real servers.

Demand drives utilization; utilization drives CPU, load, network and, by the queueing formula rho / (1 - rho),
latency; a busy disk slows its database, which slows the servers that depend on it a little later.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import count, cycle, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecastd.errors import NeedsHuman
from forecastd.fleet.contract import METRIC_COUNT, METRIC_INDEX, METRICS
from forecastd.fleet.ingest.feed import FleetRows
from forecastd.fleet.simulator import noise, profiles
from forecastd.fleet.simulator.faults import FAULT_KINDS, SCENARIOS, Faults, Scenario
from forecastd.fleet.simulator.noise import FloatArray, TickArray
from forecastd.fleet.simulator.profiles import DAY, MINUTE

_BATCH_VALUES = 200_000  # values per metric in one batch: they fit the CPU cache
_TAU = 2 * np.pi
_LOWS = np.array([metric.low for metric in METRICS], dtype=np.float32)
_HIGHS = np.array([metric.high for metric in METRICS], dtype=np.float32)
# The numbers of the noise streams: see the invariant in noise.py.
(_SHARED_LOAD, _OWN_LOAD, _FLICKER, _BURSTS, _CPU, _LOAD, _MEMORY, _DISK, _BUSY, _DISK_MS, _IN, _OUT, _LATENCY, _RATE,
 _ERRORS, _IO_WAIT, _SCALING, _PACKET_LOSS, _SWAP) = range(19)  # fmt: skip


class Simulator:
    """`servers` servers whose metrics are a function of `seed` and the tick.

    `scenario`: healthy; degrading (some servers ramp up for tens of minutes, then cross their thresholds); critical
    (several have crossed them at `start`); cascade (a database slows down, dependent servers follow, others take over
    the load); varied (all of these, repeatedly, at random times: the training data of a model). `start`: the tick at
    which the scenario begins. Of 20 servers 8 are web, 4 database, 3 cache, 3 worker and 2 batch.

    Raises:
        NeedsHuman: the scenario is unknown, or a number is out of range.
    """

    def __init__(
        self, seed: int, servers: int, scenario: Scenario = "healthy", step: int = 5, *, start: int = 0
    ) -> None:
        if scenario not in SCENARIOS:
            raise NeedsHuman(f"Unknown scenario {scenario!r}. Use one of: {', '.join(SCENARIOS)}.")
        if servers < 1 or step < 1:
            raise NeedsHuman("A simulated fleet needs at least one server and a step of at least one second.")
        self.seed, self.scenario, self.step, self.start = seed, scenario, step, start
        kinds = tuple(islice(cycle(profiles.PROFILE_ORDER), servers))
        self.profiles = tuple(kind.name for kind in kinds)
        numbers: defaultdict[str, Iterator[int]] = defaultdict(lambda: count(1))
        self.names = tuple(f"{profile}-{next(numbers[profile]):02d}" for profile in self.profiles)
        self._key = noise.keys(seed, servers)
        self._traits = profiles.ServerTraits(self._key, kinds)
        self._job_schedule = profiles.JobSchedule(self._key, kinds, self._traits)
        self._series: dict[tuple[int, ...], noise.KeyArray] = {}
        self._faults = Faults(scenario, self._key, self.profiles, start=start, step=step)
        # Profiles with the same peak hour share the load of the same users.
        peak_hours = sorted({kind.peak_hour for kind in profiles.PROFILES})
        self._shared_load_keys = noise.derive(noise.keys(seed, len(peak_hours)), 900)
        self._shared_load_index = np.array([peak_hours.index(kind.peak_hour) for kind in kinds])

    def rows(self, tick: int) -> FleetRows:
        """The rows of all servers at this tick, complete and within the bounds of the contract."""
        values = self.block(tick, 1)[:, 0, :]
        errors, latency = values[:, METRIC_INDEX["error_percent"]], values[:, METRIC_INDEX["latency_ms"]]
        slow = latency > 6 * self._traits.base_ms[:, 0] + 5
        statuses = tuple("degraded" if bad else "ok" for bad in (errors > 5) | slow)
        times = np.full(len(self.names), float(tick * self.step))
        return FleetRows.from_values(
            self.names, times, values, step=self.step, profiles=self.profiles, statuses=statuses
        )

    def block(self, first_tick: int, count: int) -> NDArray[np.float32]:
        """float32 [S, count, M], oldest first: `count` ticks from `first_tick`, in the units of the contract."""
        block = np.empty((len(self.names), count, METRIC_COUNT), dtype=np.float32)
        batch_ticks = max(1, _BATCH_VALUES // len(self.names))
        for begin in range(0, count, batch_ticks):
            end = min(count, begin + batch_ticks)
            ticks = np.arange(first_tick + begin, first_tick + end, dtype=np.int64)
            for name, values in self._metrics(ticks).items():
                block[:, begin:end, METRIC_INDEX[name]] = values
        return np.clip(block, _LOWS, _HIGHS, out=block)

    def _metrics(self, ticks: TickArray) -> dict[str, FloatArray]:
        """[S, T] of each metric, before it is clipped to its bounds."""
        traits, seconds = self._traits, ticks.astype(np.float64) * self.step
        job_cpu, job_disk, job_network = self._job_schedule.load_at(seconds)
        faults = self._fault_levels(ticks)
        demand = self._demand(ticks, seconds, faults)
        utilization = np.clip(traits.utilization * demand, 0.01, 0.93)
        utilization += faults["rush"] * np.maximum(0.965 - utilization, 0)
        utilization = np.clip(utilization, 0.0, 0.975)
        collection = self._garbage_collection(seconds)
        memory = self._memory(ticks, seconds, demand, collection, faults)
        disk = self._disk(ticks, seconds, utilization, job_disk, faults)
        thrash = np.maximum(memory - 90, 0) / 10
        cpu = 2 + 96 * utilization + job_cpu + 9 * collection + 12 * thrash
        cpu += (0.5 + 5 * utilization * (1 - utilization)) * self._white(_CPU, ticks)
        rho = np.clip(0.6 * utilization + 0.4 * np.clip(cpu, 0, 98) / 100, 0, 0.975)
        waiting = rho / (1 - rho)
        slowdown = (
            (1 + 9 * faults["upstream"])
            * (1 + 1.8 * faults["rush"] ** 2)
            * (1 + 1.6 * thrash)
            * (1 + 0.8 * faults["network"])
        )
        slowdown *= 1 + traits.io * 0.12 * np.maximum(disk["disk_latency_ms"] / traits.disk_ms - 1.5, 0)
        latency = traits.base_ms * slowdown * (0.75 + 0.5 * waiting)
        rate = traits.rate * demand * (1 + 1.3 * faults["rush"]) * (1 - 0.35 * faults["upstream"])
        rate *= np.maximum(1 + 0.035 * self._white(_RATE, ticks), 0.1)
        bursts, packet_loss = self._bursts(_BURSTS, ticks), self._bursts(_PACKET_LOSS, ticks)
        errors = 0.06 * np.exp(0.5 * self._drift(_ERRORS, ticks, 15, 200)) + 0.3 * bursts
        errors += 22 * np.maximum(rho - 0.88, 0) + 7 * faults["upstream"] ** 2 + 4 * faults["network"] + 3 * thrash**2
        errors += 6 * np.maximum(disk["disk_percent"] - 94, 0)
        return disk | {
            "cpu_percent": cpu,
            "load_per_core": np.maximum(
                0.92 * rho + 0.09 * waiting + 0.012 * disk["cpu_iowait_percent"] + 1.6 * faults["upstream"], 0.0
            ) * np.exp(0.05 * self._drift(_LOAD, ticks, 10, 45)),
            "memory_percent": memory,
            "swap_percent": 1.5 + 0.4 * self._drift(_SWAP, ticks, 150, 2_000) + 4.5 * np.maximum(memory - 84, 0),
            "network_in_mb_s": rate * traits.kb_in / 1e3 * np.exp(0.06 * self._white(_IN, ticks)),
            "network_out_mb_s": rate * traits.kb_out / 1e3 * np.exp(0.06 * self._white(_OUT, ticks)) + job_network,
            "network_errors_per_s": 0.8 * packet_loss
            + 62 * faults["network"] * np.exp(0.3 * self._white(_PACKET_LOSS, ticks)),
            "latency_ms": latency * np.exp((0.03 + 0.10 * rho) * self._drift(_LATENCY, ticks, 5, 20)),
            "requests_per_s": rate,
            "error_percent": errors * np.exp(0.25 * self._white(_ERRORS, ticks)),
        }  # fmt: skip

    def _fault_levels(self, ticks: TickArray) -> dict[str, Any]:
        """[S, T] the level of each fault; the scalar 0 where the scenario has none."""
        if not self._faults.has_faults:
            return dict.fromkeys((*FAULT_KINDS, "upstream", "takeover"), 0.0)
        levels: dict[str, Any] = {kind: self._faults.level(kind, ticks) for kind in FAULT_KINDS}
        levels["upstream"] = self._faults.upstream(ticks, 0, 1.0)
        has_one_pool = self._faults.pools < 2
        levels["takeover"] = 0.0 if has_one_pool else self._faults.upstream(ticks, -1, 2.0)
        return levels

    def _demand(self, ticks: TickArray, seconds: FloatArray, faults: Mapping[str, Any]) -> FloatArray:
        """[S, T] the demand on each server, 1 on average: season, load shared by a peak hour, own fluctuation."""
        traits = self._traits
        shared_load = noise.drift(self._shared_load_keys, ticks, *self._ticks(120, 750, 4_500))[self._shared_load_index]
        own_load = self._drift(_OWN_LOAD, ticks, 40, 300, 2_500)
        amplitude = traits.scaling_amplitude * np.clip(1 + 0.45 * self._drift(_SCALING, ticks, 1_500), 0.1, 2)
        scaling = amplitude * np.sin((seconds - traits.scaling_offset) * (_TAU / traits.scaling_period))
        demand = profiles.seasonal_demand(traits, seconds) * np.exp(0.06 * shared_load + 0.05 * own_load)
        demand *= 1 + scaling + 0.02 * self._white(_FLICKER, ticks)
        return np.asarray(np.maximum(demand * (1 + 0.55 * faults["takeover"]), 0.02))

    def _garbage_collection(self, seconds: FloatArray) -> FloatArray:
        """[S, T] the activity of the garbage collector, 0 to 1: some seconds in each of its periods."""
        traits = self._traits
        elapsed = (seconds - traits.gc_offset) % traits.gc_period
        return np.asarray(np.clip(1 - elapsed / 14, 0, 1))

    def _memory(
        self,
        ticks: TickArray,
        seconds: FloatArray,
        demand: FloatArray,
        collection: FloatArray,
        faults: Mapping[str, Any],
    ) -> FloatArray:
        traits = self._traits
        garbage = ((seconds - traits.gc_offset) % traits.gc_period) / traits.gc_period
        leaked = traits.leak_amount * (((seconds - traits.leak_offset) % traits.leak_period) / traits.leak_period)
        memory = traits.memory + 5 * (demand - 1) + 2.6 * (garbage - collection) + leaked
        memory += 0.7 * self._drift(_MEMORY, ticks, 60, 1_000)
        return np.asarray(memory + faults["leak"] * np.maximum(99.5 - memory, 0))

    def _disk(
        self, ticks: TickArray, seconds: FloatArray, utilization: FloatArray, job: FloatArray, faults: Mapping[str, Any]
    ) -> dict[str, FloatArray]:
        """The disk metrics: space used, busy time, latency, and the I/O wait of the CPU."""
        traits = self._traits
        space_used = traits.disk + traits.daily_fill * (((seconds - traits.fill_offset) % DAY) / DAY)
        space_used += 0.08 * self._drift(_DISK, ticks, 300, 3_500)
        space_used += faults["fill"] * np.maximum(98.5 - space_used, 0)
        busy = np.clip(3 + 45 * traits.io * utilization + job + 2.2 * self._drift(_BUSY, ticks, 5, 60), 0.2, 88)
        busy += faults["disk"] * np.maximum(97 - busy, 0)
        share = np.clip(busy / 100, 0, 0.985)
        slow = traits.disk_ms * (0.9 + 0.8 * share / (1.02 - share)) * (1 + 7 * faults["disk"] ** 2)
        return {
            "disk_percent": space_used,
            "disk_busy_percent": busy,
            "disk_latency_ms": slow * np.exp(0.10 * self._drift(_DISK_MS, ticks, 5, 30)),
            "cpu_iowait_percent": (0.4 + 22 * (0.3 + traits.io) * share**2.5 + 14 * faults["disk"])
            * np.exp(0.20 * self._white(_IO_WAIT, ticks)),
        }

    def _bursts(self, stream: int, ticks: TickArray) -> FloatArray:
        """[S, T] occasional bursts of about a minute: 0 most of the time, about 1 within a burst."""
        key = self._keys(5_000, stream)
        window = max(1, round(12 * MINUTE / self.step))
        draw = noise.bits_at(key[:, None], (ticks // window)[None, :])
        begins = noise.uniform(noise.mix(draw)) * 0.8 * window
        length = (3 + 20 * noise.uniform(noise.mix(draw ^ np.uint64(1)))) * (5 / self.step)
        elapsed = (ticks % window)[None, :] - begins
        within = (noise.uniform(draw) < 0.06) & (elapsed >= 0) & (elapsed < length)
        return np.asarray(within * (0.4 + noise.uniform(noise.bits_at(key[:, None], ticks[None, :]))))

    def _white(self, stream: int, ticks: TickArray) -> FloatArray:
        return noise.white(self._keys(stream), ticks)

    def _drift(self, stream: int, ticks: TickArray, *periods: float) -> FloatArray:
        """[S, T] noise that is correlated over these periods, in seconds."""
        return noise.drift(self._keys(stream), ticks, *self._ticks(*periods))

    def _keys(self, *streams: int) -> noise.KeyArray:
        if streams not in self._series:
            self._series[streams] = noise.derive(self._key, *streams)
        return self._series[streams]

    def _ticks(self, *periods: float) -> list[int]:
        return [max(1, round(period / self.step)) for period in periods]
