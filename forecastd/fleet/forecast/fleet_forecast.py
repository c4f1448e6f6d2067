"""The forecast of a whole fleet at one tick: an immutable value that is made once and read by every request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import orjson
from numpy.typing import NDArray

from forecastd.clock import to_iso
from forecastd.inference.quantile_json import MetricInfo, QuantileJsonWriter
from forecastd.runtime.formatting import format_duration

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
        write = QuantileJsonWriter([metrics[column] for column in columns], self.levels, levels)
        return self._join(row, self._common_json(levels), write(quantiles)[0])

    def with_encoded(self, metrics_parts: Sequence[bytes]) -> FleetForecast:
        """A copy with the stored JSON, built from the JSON of each server's metrics."""
        common = self._common_json(STORED_LEVELS)  # equal for all servers, so encoded once
        return replace(self, encoded=tuple(self._join(row, common, part) for row, part in enumerate(metrics_parts)))

    def _common_json(self, levels: Sequence[float]) -> bytes:
        """The fields that every server's forecast has, without braces."""
        seconds = self.horizon * self.step
        document = {
            "bundle": self.bundle,
            "made_at": to_iso(self.made_at),
            "origin": to_iso(self.tick * self.step),
            "step_seconds": self.step,
            "horizon_steps": self.horizon,
            "horizon_seconds": seconds,
            "horizon": format_duration(seconds),
            "times": {
                "first": to_iso((self.tick + 1) * self.step),
                "last": to_iso((self.tick + self.horizon) * self.step),
            },
            "levels": list(levels),
        }
        return orjson.dumps(document)[1:-1]

    def _join(self, row: int, common: bytes, metrics: bytes) -> bytes:
        server = {"server": self.servers[row], "profile": self.profiles[row], "model": self.models[row]}
        return b"".join((orjson.dumps(server)[:-1], b",", common, b',"metrics":', metrics, b"}"))
