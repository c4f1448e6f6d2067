"""Scale metrics for the network and restore their units: what a forecast needs of the library's data set.

As in pytorch_forecasting's GroupNormalizer, a metric is transformed, then centered and scaled by its group. The
numbers are fixed by the training, so the scaled value of a tick never changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.errors import BundleError, DataError
from models.fleet.anchors import anchor_forecast
from models.fleet.base import FleetInput, Floats, Indices
from models.fleet.bundle import CENTER_KEY, SCALE_KEY, FleetBundle
from models.fleet.manifest import CYCLE_SECONDS, DEFAULT_GROUP, ModelMetric

_NOT_FINITE = "This model's network gave a number that is not finite. Check its input, or use another model."


@dataclass(frozen=True, eq=False)
class GroupScales:
    """Names of the groups, and center and scale `[G, M]` of each, in transformed metrics."""

    names: tuple[str, ...]
    center: Floats
    scale: Floats

    def row(self, name: str) -> int:
        """Row of the group `name`."""
        return self.names.index(name)


class MetricTransform:
    """The transform of each metric: clipped to its bounds `low` and `high` `[M]`, in log(1 + x) where `logarithmic`."""

    def __init__(self, metrics: tuple[ModelMetric, ...]) -> None:
        self.low, self.high = (
            np.array([getattr(metric, bound) for metric in metrics], dtype=np.float32) for bound in ("low", "high")
        )
        self.logarithmic = np.array([metric.transform == "log1p" for metric in metrics])

    def __call__(self, values: Floats) -> Floats:
        """Transformed metrics `[..., M]`."""
        clipped = np.clip(values, self.low, self.high)
        if self.logarithmic.any():
            clipped[..., self.logarithmic] = np.log1p(clipped[..., self.logarithmic])
        return clipped

    def invert(self, quantiles: Floats) -> None:
        """Restore the units of transformed metrics `[S, M, Q, H]`, within the bounds, in place."""
        for metric in np.flatnonzero(self.logarithmic):
            with np.errstate(over="ignore"):  # beyond every bound, and clipped below
                np.expm1(quantiles[:, metric], out=quantiles[:, metric])
        np.maximum(quantiles, self.low[:, None, None], out=quantiles)  # np.clip with arrays is five times slower
        np.minimum(quantiles, self.high[:, None, None], out=quantiles)


class FleetScaling:
    """The scales of one bundle, and their assignment to servers."""

    def __init__(self, bundle: FleetBundle) -> None:
        manifest = bundle.manifest
        self._manifest = manifest
        self._groups = {name: row for row, name in enumerate(manifest.groups)}
        self._profiles = {name: row for row, name in enumerate(manifest.profiles)}
        self._center, self._scale = bundle.weights[CENTER_KEY], bundle.weights[SCALE_KEY]
        self._transform = MetricTransform(manifest.metrics)

    def profiles(self, inputs: FleetInput) -> Indices:
        """The index of each server's profile; that of `OTHER_PROFILE` if the bundle does not know its profile."""
        return np.array([self._profiles.get(profile, 0) for profile in inputs.profiles], dtype=np.int64)

    def groups(self, inputs: FleetInput) -> Indices:
        """The row of the scales of each server: its own, else its profile's, else the default."""
        default_row = self._groups[DEFAULT_GROUP]
        rows = [
            self._groups.get(f"server:{server}", self._groups.get(f"profile:{profile}", default_row))
            for server, profile in zip(inputs.servers, inputs.profiles, strict=True)
        ]
        return np.array(rows, dtype=np.int64)

    def scale(self, values: Floats, groups: Indices) -> Floats:
        """Scale metrics `[S, T, M]` of servers with these groups `[S]`."""
        transformed = self._transform(values)
        transformed -= self._center[groups][:, None]
        transformed /= self._scale[groups][:, None]
        return transformed

    def restore(self, outputs: Floats, values: Floats, groups: Indices) -> Floats:
        """Restore network outputs `[S, M, Q, H]` to the metrics' units, sorted along Q and within the bounds, in place.

        `values` `[S, L, M]`: the windows, in the metrics' units.

        Raises:
            BundleError: (check "finite") one is not finite.
        """
        outputs *= self._scale[groups][:, :, None, None]
        if self._manifest.anchors:
            outputs += anchor_forecast(self._transform(values), self._manifest.anchors, outputs.shape[-1])[:, :, None]
        else:
            outputs += self._center[groups][:, :, None, None]
        if not np.isfinite(outputs).all():
            raise BundleError(_NOT_FINITE, check="finite")
        sort_quantiles(outputs)
        self._transform.invert(outputs)
        return outputs

    def check(self, inputs: FleetInput) -> None:
        """Refuse an input that does not fit this bundle. Raises DataError."""
        manifest = self._manifest
        count = len(inputs.servers)
        expected_shape = count, manifest.encoder_length, len(manifest.metrics)
        if inputs.step != manifest.step:
            raise DataError(
                f"The windows have a step of {inputs.step} s, but the model was trained on {manifest.step} s. "
                "Run it with that step, or train a model with this one."
            )
        if inputs.values.shape != expected_shape or len(inputs.profiles) != count or inputs.lengths.shape != (count,):
            raise DataError(f"The windows must have shape {expected_shape}, not {inputs.values.shape}.")
        if len(set(inputs.servers)) != count:
            raise DataError("A server is twice among the windows.")
        if count and not (
            manifest.encoder_minimum <= inputs.lengths.min() <= inputs.lengths.max() <= expected_shape[1]
        ):
            raise DataError(f"A window must have {manifest.encoder_minimum} to {expected_shape[1]} steps.")


def calendar(cycles: tuple[str, ...], step: int, ticks: Indices) -> Floats:
    """Sine and cosine `[..., 2 * cycles]` of the position of the ticks in each cycle, in UTC."""
    seconds = ticks * step
    waves = [
        wave(2 * np.pi * ((seconds % CYCLE_SECONDS[cycle]) / CYCLE_SECONDS[cycle]))
        for cycle in cycles
        for wave in (np.sin, np.cos)
    ]
    if not waves:
        return np.zeros((*ticks.shape, 0), dtype=np.float32)
    return np.stack(waves, axis=-1).astype(np.float32)


def sort_quantiles(outputs: Floats) -> None:
    """Sort `[S, M, Q, H]` along Q in place.

    Crossed quantiles are rearranged by sorting, which never moves them further from the true ones (Chernozhukov,
    Fernandez-Val and Galichon 2010, https://doi.org/10.3982/ECTA7880). This is an odd-even sort that exchanges whole
    rows, which is many times faster than sorting millions of tiny lists.
    """
    levels = outputs.shape[2]
    for step in range(levels):
        exchanged = False
        for level in range(step % 2, levels - 1, 2):
            lower, upper = outputs[:, :, level], outputs[:, :, level + 1]
            if (lower > upper).any():
                exchanged = True
                low = np.minimum(lower, upper)
                np.maximum(lower, upper, out=upper)
                lower[...] = low
        if not exchanged and step:
            break
