"""The forecast of a whole fleet at one tick: what is made once and then read by everybody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import orjson
from numpy.typing import NDArray

from forecastd.clock import iso
from forecastd.quantilejson import Described, metrics_json

SERVED = (0.1, 0.5, 0.9)  # the levels of the bytes that are stored
TFT, HEURISTIC = "tft", "heuristic"


@dataclass(frozen=True, eq=False)
class FleetForecast:
    """Quantiles of every metric of every server for the steps after `tick`.

    tick:      the last observed tick; its time is `tick * step`, unix seconds
    made_at:   unix seconds; `seconds`: how long it took
    servers:   in no order that means anything: look one up by its name
    profiles, models: of each server; a model is "tft" or "heuristic"
    quantiles: float32 `[S, H, M, Q]` in the metrics' units; row k speaks of the tick `tick + 1 + k`; NaN: not known
    encoded:   each server's forecast as JSON, without its age
    """

    tick: int
    step: int
    made_at: float
    seconds: float
    metrics: tuple[str, ...]
    levels: tuple[float, ...]
    servers: tuple[str, ...]
    profiles: tuple[str, ...]
    models: tuple[str, ...]
    quantiles: NDArray[np.float32]
    bundle: str
    bundle_sha256: str
    engine: str
    encoded: tuple[bytes, ...] = ()

    @property
    def horizon(self) -> int:
        """Steps ahead."""
        return int(self.quantiles.shape[1])

    def document(self, row: int, levels: Sequence[float] = SERVED) -> dict[str, object]:
        """What is told of one server's forecast beside its numbers."""
        seconds = self.horizon * self.step
        return {
            "server": self.servers[row],
            "profile": self.profiles[row],
            "model": self.models[row],
            "bundle": self.bundle,
            "made_at": iso(self.made_at),
            "origin": iso(self.tick * self.step),
            "step_seconds": self.step,
            "horizon_steps": self.horizon,
            "horizon_seconds": seconds,
            "horizon": in_words(seconds),
            "times": {"first": iso((self.tick + 1) * self.step), "last": iso((self.tick + self.horizon) * self.step)},
            "levels": list(levels),
        }

    def encode(
        self,
        row: int,
        metrics: Sequence[Described],
        levels: Sequence[float] = SERVED,
        only: Sequence[str] | None = None,
    ) -> bytes:
        """One server's forecast as JSON, at these levels and of these metrics. `metrics`: of all that are forecast."""
        places = [place for place, name in enumerate(self.metrics) if only is None or name in only]
        quantiles = self.quantiles[row : row + 1].transpose(0, 2, 3, 1)[:, places]
        part = metrics_json(quantiles, [metrics[place] for place in places], self.levels, levels)[0]
        return joined(self.document(row, levels), part)

    def with_json(self, parts: Sequence[bytes]) -> FleetForecast:
        """The same with the stored JSON made of that of each server's metrics."""
        # What is told of all servers alike is encoded once.
        common = self.document(0) if self.servers else {}
        tail = orjson.dumps({name: value for name, value in common.items() if name not in _OWN})[1:-1]
        encoded = []
        for server, profile, model, part in zip(self.servers, self.profiles, self.models, parts, strict=True):
            own = orjson.dumps({"server": server, "profile": profile, "model": model})[:-1]
            encoded.append(b"".join((own, b",", tail, b',"metrics":', part, b"}")))
        return replace(self, encoded=tuple(encoded))


_OWN = ("server", "profile", "model")


def joined(document: dict[str, object], metrics: bytes) -> bytes:
    """A document with the JSON of its metrics."""
    return b"".join((orjson.dumps(document)[:-1], b',"metrics":', metrics, b"}"))


def in_words(seconds: float) -> str:
    """A duration as people say it: 45 s, 8 min, 1 h 30 min, 2 d 4 h."""
    whole = round(seconds)
    for size, unit, below, word in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {unit}" + (f" {rest} {word}" if rest else "")
    return f"{whole} s"
