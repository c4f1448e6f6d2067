"""The profiles of simulated servers, and the traits of each server: its load over the day, its jobs, its habits.

Invariant: the traits of a server depend on the seed and its number only, never on the number of servers, so that a
fleet can grow while it is running. Times are in seconds, UTC.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from forecastd.fleet.simulator.noise import FloatArray, KeyArray, derive, mix, uniform

MINUTE, HOUR, DAY = 60.0, 3_600.0, 86_400.0


@dataclass(frozen=True)
class PeriodicJob:
    """A job that runs every `period` seconds, from `offset` seconds into the period, for about `duration` seconds.

    `cpu`, `disk`: percentage points at its peak; `network`: MB/s sent.
    """

    period: float
    offset: float
    duration: float
    cpu: float = 0.0
    disk: float = 0.0
    network: float = 0.0


@dataclass(frozen=True)
class ServerProfile:
    """A kind of server. Pairs are ranges (lowest, highest), drawn once per server.

    `peak_hour`: the crest of the daily wave; `second_peak_hour`: the crest of the wave with two cycles a day.
    `daily_amplitude`, `second_amplitude`: the amplitudes as shares of the daily mean. `weekend`: the demand on
    Saturday and Sunday as a share of a working day's. `utilization`: its mean. `rate`: requests per second.
    `base_ms`: latency without load. `io`: the share of disk work.
    """

    name: str
    share: int
    peak_hour: float
    daily_amplitude: float
    second_peak_hour: float
    second_amplitude: float
    weekend: float
    utilization: tuple[float, float]
    rate: tuple[float, float]
    base_ms: tuple[float, float]
    memory: tuple[float, float]
    disk: tuple[float, float]
    io: float
    kb_in: float
    kb_out: float
    jobs: tuple[PeriodicJob, ...]


_HOURLY = PeriodicJob(HOUR, 0.0, 40.0, cpu=4.0, disk=14.0)  # log rotation
PROFILES = (
    ServerProfile(
        "web", 8, 20.0, 0.40, 8.5, 0.14, 0.85, (0.28, 0.42), (120, 320), (18, 40), (38, 52), (25, 50), 0.10, 4.0, 26.0,
        (_HOURLY, PeriodicJob(10 * MINUTE, 2 * MINUTE, 50.0, cpu=14.0, network=3.0)),
    ),
    ServerProfile(
        "database", 4, 20.0, 0.34, 8.5, 0.12, 0.88, (0.24, 0.38), (300, 900), (2.5, 7), (52, 64), (40, 62),
        0.80, 1.5, 6.0,
        (_HOURLY, PeriodicJob(5 * MINUTE, MINUTE, 45.0, cpu=6.0, disk=26.0),
         PeriodicJob(DAY, 2 * HOUR, 35 * MINUTE, cpu=10.0, disk=30.0, network=18.0)),
    ),
    ServerProfile(
        "cache", 3, 20.0, 0.38, 8.5, 0.13, 0.86, (0.16, 0.28), (900, 2_400), (0.4, 1.2), (58, 68), (12, 25),
        0.05, 0.6, 4.0,
        (_HOURLY, PeriodicJob(15 * MINUTE, 4 * MINUTE, 35.0, cpu=8.0, disk=20.0)),
    ),
    ServerProfile(
        "worker", 3, 14.0, 0.45, 13.0, 0.10, 0.55, (0.30, 0.46), (15, 60), (90, 260), (40, 55), (30, 50),
        0.25, 12.0, 9.0,
        (_HOURLY, PeriodicJob(5 * MINUTE, 3 * MINUTE, 70.0, cpu=16.0, disk=6.0, network=2.0)),
    ),
    ServerProfile(
        "batch", 2, 3.0, 0.30, 15.0, 0.05, 0.95, (0.12, 0.22), (2, 8), (400, 1_200), (34, 48), (42, 60),
        0.45, 60.0, 40.0,
        (_HOURLY, PeriodicJob(15 * MINUTE, 0.0, 210.0, cpu=34.0, disk=22.0, network=9.0),
         PeriodicJob(HOUR, 30 * MINUTE, 9 * MINUTE, cpu=16.0, disk=16.0, network=6.0)),
    ),
)  # fmt: skip
_POSITIONS = [
    ((repeat + 0.5) / profile.share, index) for index, profile in enumerate(PROFILES) for repeat in range(profile.share)
]
PROFILE_ORDER = tuple(PROFILES[index] for _, index in sorted(_POSITIONS))  # in which servers get them, cyclically
_WEEK_START = 4 * DAY  # the first Monday after 1970-01-01, a Thursday


class ServerTraits:
    """The traits of the servers with these keys and profiles; arrays are [S, 1] unless stated otherwise.

    `daily_wave`, `second_wave`: [S, 2] the waves with one and with two cycles a day, as factors of cosine and sine.
    `gc_period`, `scaling_period`, `leak_period`: the periods in seconds of the garbage collection, of the autoscaler,
    and of the restarts that end a memory leak; the `_offset` of each is the second in which it begins.
    """

    def __init__(self, key: KeyArray, kinds: tuple[ServerProfile, ...]) -> None:
        def draw(stream: int, low: float | FloatArray, high: float | FloatArray) -> FloatArray:
            return np.asarray(low + (np.asarray(high) - low) * uniform(derive(key, 1_000 + stream))[:, None])

        def draw_range(stream: int, name: str) -> FloatArray:
            low, high = np.array([getattr(kind, name) for kind in kinds], dtype=np.float64).T[:, :, None]
            return draw(stream, low, high)

        def fixed(name: str) -> FloatArray:
            return np.array([[getattr(kind, name)] for kind in kinds], dtype=np.float64)

        self.daily_wave = _wave(
            fixed("daily_amplitude") * draw(5, 0.85, 1.15), fixed("peak_hour") + draw(6, -0.7, 0.7), 1
        )
        self.second_wave = _wave(
            fixed("second_amplitude") * draw(7, 0.8, 1.2), fixed("second_peak_hour") + draw(8, -0.5, 0.5), 2
        )
        self.weekend = fixed("weekend")
        self.utilization = draw_range(9, "utilization")
        self.rate = draw_range(10, "rate")
        self.base_ms = draw_range(11, "base_ms")
        self.memory = draw_range(12, "memory")
        self.disk = draw_range(13, "disk")
        self.io = fixed("io") * draw(14, 0.8, 1.2)
        self.kb_in = fixed("kb_in") * draw(15, 0.8, 1.25)
        self.kb_out = fixed("kb_out") * draw(16, 0.8, 1.25)
        self.disk_ms = draw(17, 0.5, 2.0)
        self.gc_period = draw(1, 75, 240)
        self.gc_offset = self.gc_period * draw(18, 0, 1)
        self.scaling_period = draw(2, 110, 300)
        self.scaling_offset = self.scaling_period * draw(19, 0, 1)
        self.scaling_amplitude = draw(20, 0.05, 0.14)
        self.leak_period = draw(3, 3 * HOUR, 9 * HOUR)
        self.leak_offset = self.leak_period * draw(21, 0, 1)
        self.leak_amount = draw(22, 2, 8)
        self.daily_fill = draw(23, 2, 7)
        self.fill_offset = DAY * draw(24, 0.1, 0.3)
        self.job_delay = draw(25, 0, 20)


def _wave(height: FloatArray, hour: FloatArray, cycles: int) -> FloatArray:
    """[S, 2] the factors of cosine and sine of a wave with `cycles` cycles a day and its crest at this hour."""
    angle = hour * (2 * np.pi * cycles / 24)
    return np.concatenate([height * np.cos(angle), height * np.sin(angle)], axis=1)


def seasonal_demand(traits: ServerTraits, seconds: FloatArray) -> FloatArray:
    """[S, T] the daily and weekly demand on each server at these [T] times, 1 on average."""
    angle = seconds * (2 * np.pi / DAY)
    day = traits.daily_wave[:, :1] * np.cos(angle) + traits.daily_wave[:, 1:] * np.sin(angle)
    day += traits.second_wave[:, :1] * np.cos(2 * angle) + traits.second_wave[:, 1:] * np.sin(2 * angle)
    into_week = (seconds - _WEEK_START) % (7 * DAY)
    weekend = np.clip((into_week - 5 * DAY) / HOUR, 0, 1) - np.clip((into_week - 7 * DAY + HOUR) / HOUR, 0, 1)
    return np.asarray(np.maximum(1 + day, 0.1) * (1 - (1 - traits.weekend) * weekend))


class JobSchedule:
    """The jobs of the servers with these keys and profiles."""

    def __init__(self, key: KeyArray, kinds: tuple[ServerProfile, ...], traits: ServerTraits) -> None:
        names = np.array([kind.name for kind in kinds])
        self._rows = [(kind, np.flatnonzero(names == kind.name)) for kind in PROFILES if kind.name in names]
        self._key, self._delay = key, traits.job_delay

    def load_at(self, seconds: FloatArray) -> FloatArray:
        """[3, S, T] the load of the jobs at these [T] times: percentage points of CPU and of disk time, MB/s sent.

        Each run differs a little in length and height.
        """
        total = np.zeros((3, len(self._key), len(seconds)))
        for kind, rows in self._rows:
            for number, job in enumerate(kind.jobs):
                elapsed = seconds[None, :] - job.offset - self._delay[rows]
                cycle = np.floor(elapsed / job.period)
                run = mix(derive(self._key[rows], 2_000 + number)[:, None] + cycle.astype(np.int64).astype(np.uint64))
                length = job.duration * (0.85 + 0.3 * uniform(run))
                phase = elapsed - cycle * job.period
                height = np.clip(np.minimum(phase / 10, (length - phase) / 15), 0, 1) * (0.85 + 0.3 * uniform(mix(run)))
                for load, peak in zip(total, (job.cpu, job.disk, job.network), strict=True):
                    load[rows] += peak * height
        return total
