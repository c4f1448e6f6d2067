"""What kinds of servers there are, and what each single one is like: its load over the day, its jobs, its habits.

The one thing to know before changing it: a server's traits depend on the seed and its number alone, never on how many
others there are, so that a fleet can grow while it runs. Times are in seconds, UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from forecastd.errors import NeedsHuman
from forecastd.fleet.simulator.noise import FloatArray, KeyArray, derive, mix, uniform

MINUTE, HOUR, DAY = 60.0, 3_600.0, 86_400.0


@dataclass(frozen=True)
class PeriodicJob:
    """Something that runs by the clock: every `every` seconds, `at` seconds past, for about `seconds`.

    `cpu`, `disk` in points of percent at its height; `network` in MB/s sent.
    """

    period: float
    offset: float
    duration: float
    cpu: float = 0.0
    disk: float = 0.0
    network: float = 0.0


@dataclass(frozen=True)
class ServerProfile:
    """A kind of server. Ranges are (lowest, highest), drawn once for each server.

    `peak`: the hour of the day's wave; `second`: of the one that comes twice a day; `swing`, `bump`: how far these go
    from the day's mean, as a share of it. `weekend`: demand on Saturday and Sunday as a share of a working day's.
    `used`: mean utilisation. `rate`: requests a second. `base_ms`: latency without load. `io`: how much its work is disk.
    """

    name: str
    share: int
    peak_hour: float
    daily_amplitude: float
    second_peak_hour: float
    second_amplitude: float
    weekend: float
    utilisation: tuple[float, float]
    rate: tuple[float, float]
    base_ms: tuple[float, float]
    memory: tuple[float, float]
    disk: tuple[float, float]
    io: float
    kb_in: float
    kb_out: float
    jobs: tuple[PeriodicJob, ...]


_HOURLY = PeriodicJob(HOUR, 0.0, 40.0, cpu=4.0, disk=14.0)  # logs are rotated
PROFILES = (
    ServerProfile(
        "web", 8, 20.0, 0.40, 8.5, 0.14, 0.85, (0.28, 0.42), (120, 320), (18, 40), (38, 52), (25, 50), 0.10, 4.0, 26.0,
        (_HOURLY, PeriodicJob(10 * MINUTE, 2 * MINUTE, 50.0, cpu=14.0, network=3.0)),
    ),
    ServerProfile(
        "database", 4, 20.0, 0.34, 8.5, 0.12, 0.88, (0.24, 0.38), (300, 900), (2.5, 7), (52, 64), (40, 62), 0.80, 1.5, 6.0,
        (_HOURLY, PeriodicJob(5 * MINUTE, MINUTE, 45.0, cpu=6.0, disk=26.0),
         PeriodicJob(DAY, 2 * HOUR, 35 * MINUTE, cpu=10.0, disk=30.0, network=18.0)),
    ),
    ServerProfile(
        "cache", 3, 20.0, 0.38, 8.5, 0.13, 0.86, (0.16, 0.28), (900, 2_400), (0.4, 1.2), (58, 68), (12, 25), 0.05, 0.6, 4.0,
        (_HOURLY, PeriodicJob(15 * MINUTE, 4 * MINUTE, 35.0, cpu=8.0, disk=20.0)),
    ),
    ServerProfile(
        "worker", 3, 14.0, 0.45, 13.0, 0.10, 0.55, (0.30, 0.46), (15, 60), (90, 260), (40, 55), (30, 50), 0.25, 12.0, 9.0,
        (_HOURLY, PeriodicJob(5 * MINUTE, 3 * MINUTE, 70.0, cpu=16.0, disk=6.0, network=2.0)),
    ),
    ServerProfile(
        "batch", 2, 3.0, 0.30, 15.0, 0.05, 0.95, (0.12, 0.22), (2, 8), (400, 1_200), (34, 48), (42, 60), 0.45, 60.0, 40.0,
        (_HOURLY, PeriodicJob(15 * MINUTE, 0.0, 210.0, cpu=34.0, disk=22.0, network=9.0),
         PeriodicJob(HOUR, 30 * MINUTE, 9 * MINUTE, cpu=16.0, disk=16.0, network=6.0)),
    ),
)  # fmt: skip
PROFILES_BY_NAME = {profile.name: profile for profile in PROFILES}
_WEEK_START = 4 * DAY  # 1970-01-01 was a Thursday: the Monday after it


def profile_order(profiles: Mapping[str, int] | None) -> tuple[ServerProfile, ...]:
    """The profiles in the order in which servers take them, again and again; each as often as its share says.

    Raises:
        NeedsHuman: there is no such profile, a share is negative, or all are nought.
    """
    shares = {profile.name: profile.share for profile in PROFILES} if profiles is None else dict(profiles)
    unknown = sorted(set(shares) - set(PROFILES_BY_NAME))
    if unknown:
        raise NeedsHuman(f"There is no profile {unknown[0]!r}: choose among {', '.join(PROFILES_BY_NAME)}.")
    if any(share < 0 for share in shares.values()) or not any(shares.values()):
        raise NeedsHuman("The shares of the profiles must be whole numbers from 0, and one of them above 0.")
    total = sum(shares.values())
    positions = [((repeat + 0.5) / share, name) for name, share in shares.items() for repeat in range(share)]
    order = [
        name
        for _, name in sorted(positions, key=lambda position: (position[0], list(PROFILES_BY_NAME).index(position[1])))
    ]
    return tuple(PROFILES_BY_NAME[name] for name in order[:total])


@dataclass(frozen=True)
class ServerTraits:
    """What each server is like; every array is [S, 1] unless it says otherwise.

    `swings`, `bumps`: [S, 2] the day's two waves, as factors of cosine and sine. `gc`, `sway`, `leak`: periods in seconds of
    its garbage collection, of its autoscaler and of the restarts that end its memory leak; `_at` the seconds that each began.
    """

    daily_wave: FloatArray
    second_wave: FloatArray
    weekend: FloatArray
    utilisation: FloatArray
    rate: FloatArray
    base_ms: FloatArray
    memory: FloatArray
    disk: FloatArray
    io: FloatArray
    kb_in: FloatArray
    kb_out: FloatArray
    disk_ms: FloatArray
    gc_period: FloatArray
    gc_offset: FloatArray
    scaling_period: FloatArray
    scaling_offset: FloatArray
    scaling_amplitude: FloatArray
    leak_period: FloatArray
    leak_offset: FloatArray
    leak_amount: FloatArray
    daily_fill: FloatArray
    fill_offset: FloatArray
    job_delay: FloatArray


def draw_traits(key: KeyArray, kinds: tuple[ServerProfile, ...]) -> ServerTraits:
    """The traits of the servers with these keys and profiles."""

    def drawn(stream: int, low: float | FloatArray, high: float | FloatArray) -> FloatArray:
        return np.asarray(low + (np.asarray(high) - low) * uniform(derive(key, 1_000 + stream))[:, None])

    def ranged(stream: int, name: str) -> FloatArray:
        low, high = (np.array([[getattr(kind, name)[end]] for kind in kinds], dtype=np.float64) for end in (0, 1))
        return drawn(stream, low, high)

    def fixed(name: str) -> FloatArray:
        return np.array([[getattr(kind, name)] for kind in kinds], dtype=np.float64)

    gc, sway, leak = drawn(1, 75, 240), drawn(2, 110, 300), drawn(3, 3 * HOUR, 9 * HOUR)
    return ServerTraits(
        daily_wave=_wave(fixed("swing") * drawn(5, 0.85, 1.15), fixed("peak") + drawn(6, -0.7, 0.7), 1),
        second_wave=_wave(fixed("bump") * drawn(7, 0.8, 1.2), fixed("second") + drawn(8, -0.5, 0.5), 2),
        weekend=fixed("weekend"),
        utilisation=ranged(9, "used"),
        rate=ranged(10, "rate"),
        base_ms=ranged(11, "base_ms"),
        memory=ranged(12, "memory"),
        disk=ranged(13, "disk"),
        io=fixed("io") * drawn(14, 0.8, 1.2),
        kb_in=fixed("kb_in") * drawn(15, 0.8, 1.25),
        kb_out=fixed("kb_out") * drawn(16, 0.8, 1.25),
        disk_ms=drawn(17, 0.5, 2.0),
        gc_period=gc,
        gc_offset=gc * drawn(18, 0, 1),
        scaling_period=sway,
        scaling_offset=sway * drawn(19, 0, 1),
        scaling_amplitude=drawn(20, 0.05, 0.14),
        leak_period=leak,
        leak_offset=leak * drawn(21, 0, 1),
        leak_amount=drawn(22, 2, 8),
        daily_fill=drawn(23, 2, 7),
        fill_offset=DAY * drawn(24, 0.1, 0.3),
        job_delay=drawn(25, 0, 20),
    )


def _wave(height: FloatArray, hour: FloatArray, cycles: int) -> FloatArray:
    """A wave of so many cycles a day with its crest at this hour: its factors of cosine and sine, [S, 2]."""
    angle = hour * (2 * np.pi * cycles / 24)
    return np.concatenate([height * np.cos(angle), height * np.sin(angle)], axis=1)


def seasonal_demand(traits: ServerTraits, seconds: FloatArray) -> FloatArray:
    """[S, T] what the day and the week ask of each server, 1 on average, at these [T] times."""
    angle = seconds * (2 * np.pi / DAY)
    day = traits.daily_wave[:, :1] * np.cos(angle) + traits.daily_wave[:, 1:] * np.sin(angle)
    day += traits.second_wave[:, :1] * np.cos(2 * angle) + traits.second_wave[:, 1:] * np.sin(2 * angle)
    into_week = (seconds - _WEEK_START) % (7 * DAY)
    weekend = np.clip((into_week - 5 * DAY) / HOUR, 0, 1) - np.clip((into_week - 7 * DAY + HOUR) / HOUR, 0, 1)
    return np.asarray(np.maximum(1 + day, 0.1) * (1 - (1 - traits.weekend) * weekend))


@dataclass(frozen=True)
class JobLoad:
    """What the jobs add, each [S, T]: points of CPU and of the disk's time, MB/s sent."""

    cpu: FloatArray
    disk: FloatArray
    network: FloatArray


class JobSchedule:
    """The jobs of the servers with these keys and profiles."""

    def __init__(self, key: KeyArray, kinds: tuple[ServerProfile, ...], traits: ServerTraits) -> None:
        names = np.array([kind.name for kind in kinds])
        self._rows = [(kind, np.flatnonzero(names == kind.name)) for kind in PROFILES if kind.name in names]
        self._key, self._delay = key, traits.job_delay

    def load_at(self, seconds: FloatArray) -> JobLoad:
        """What runs at these [T] times. Each run differs a little in length and height from the last."""
        shape = (len(self._key), len(seconds))
        total = JobLoad(np.zeros(shape), np.zeros(shape), np.zeros(shape))
        for kind, rows in self._rows:
            for number, job in enumerate(kind.jobs):
                elapsed = seconds[None, :] - job.offset - self._delay[rows]
                cycle = np.floor(elapsed / job.period)
                run = mix(derive(self._key[rows], 2_000 + number)[:, None] + cycle.astype(np.int64).astype(np.uint64))
                length = job.duration * (0.85 + 0.3 * uniform(run))
                phase = elapsed - cycle * job.period
                height = np.clip(np.minimum(phase / 10, (length - phase) / 15), 0, 1) * (0.85 + 0.3 * uniform(mix(run)))
                total.cpu[rows] += job.cpu * height
                total.disk[rows] += job.disk * height
                total.network[rows] += job.network * height
        return total
