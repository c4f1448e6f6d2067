"""The forecast of a whole fleet at one tick: an immutable value that is made once and read by every request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import orjson
from numpy.typing import NDArray

from forecastd.clock import to_iso
from forecastd.inference.quantile_json import MetricInfo, metrics_json

STORED_LEVELS = (0.1, 0.5, 0.9)  # quantile levels of the stored JSON
TFT, HEURISTIC = "tft", "heuristic"


@dataclass(frozen=True, eq=False)
class FleetForecast:
    """Quantiles of every metric of every server for the steps after `tick`.

    Args:
        tick: the last observed tick; its time is `tick * step`, unix seconds
        made_at: unix seconds
        seconds: the time the forecast took
        servers: in no particular order; look up a server by its name
        profiles: of each server
        models: of each server, "tft" or "heuristic"
        quantiles: float32 `[S, H, M, Q]` in the metrics' units; row k is for the tick `tick + 1 + k`; NaN where
            unknown
        encoded: each server's forecast as JSON, without its age
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
        """The number of steps ahead."""
        return int(self.quantiles.shape[1])

    def metadata(self, row: int, levels: Sequence[float] = STORED_LEVELS) -> dict[str, object]:
        """The JSON fields of one server's forecast, without its numbers."""
        seconds = self.horizon * self.step
        return {
            "server": self.servers[row],
            "profile": self.profiles[row],
            "model": self.models[row],
            "bundle": self.bundle,
            "made_at": to_iso(self.made_at),
            "origin": to_iso(self.tick * self.step),
            "step_seconds": self.step,
            "horizon_steps": self.horizon,
            "horizon_seconds": seconds,
            "horizon": format_horizon(seconds),
            "times": {
                "first": to_iso((self.tick + 1) * self.step),
                "last": to_iso((self.tick + self.horizon) * self.step),
            },
            "levels": list(levels),
        }

    def encode(
        self,
        row: int,
        metrics: Sequence[MetricInfo],
        levels: Sequence[float] = STORED_LEVELS,
        only: Sequence[str] | None = None,
    ) -> bytes:
        """One server's forecast as JSON, with these levels and metrics. `metrics` describes all metrics of the
        forecast."""
        columns = [column for column, name in enumerate(self.metrics) if only is None or name in only]
        quantiles = self.quantiles[row : row + 1].transpose(0, 2, 3, 1)[:, columns]
        metrics_part = metrics_json(quantiles, [metrics[column] for column in columns], self.levels, levels)[0]
        return join_metrics(self.metadata(row, levels), metrics_part)

    def with_encoded(self, metrics_parts: Sequence[bytes]) -> FleetForecast:
        """A copy with the stored JSON, built from the JSON of each server's metrics."""
        # The part that is equal for all servers is encoded once.
        common = self.metadata(0) if self.servers else {}
        common_part = orjson.dumps({name: value for name, value in common.items() if name not in _PER_SERVER_KEYS})[
            1:-1
        ]
        encoded = []
        for server, profile, model, metrics_part in zip(
            self.servers, self.profiles, self.models, metrics_parts, strict=True
        ):
            server_part = orjson.dumps({"server": server, "profile": profile, "model": model})[:-1]
            encoded.append(b"".join((server_part, b",", common_part, b',"metrics":', metrics_part, b"}")))
        return replace(self, encoded=tuple(encoded))


_PER_SERVER_KEYS = ("server", "profile", "model")


def join_metrics(document: dict[str, object], metrics: bytes) -> bytes:
    """A JSON document with the encoded metrics appended."""
    return b"".join((orjson.dumps(document)[:-1], b',"metrics":', metrics, b"}"))


def format_horizon(seconds: float) -> str:
    """A duration in at most two units: 45 s, 8 min, 1 h 30 min, 2 d 4 h."""
    total = round(seconds)
    for size, unit, smaller, smaller_unit in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if total >= size:
            remainder = total % size // smaller
            return f"{total // size} {unit}" + (f" {remainder} {smaller_unit}" if remainder else "")
    return f"{total} s"
