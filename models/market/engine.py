"""Run a market bundle: from a `ModelInput` to quantiles of the log-return.

Invariant: an engine changes no global state, reads no file and no clock, and may be shared by threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

import numpy as np
from numpy.typing import NDArray

from models.base import FloatArray, Forecast, ModelInput
from models.bundle.canary import check_canary, range_difference
from models.errors import BundleError, DataError
from models.market.bundle import MarketBundle, market_canary_input
from models.market.manifest import MarketManifest
from models.tft.forward import PROGRESS_STEPS, Tft

TOLERANCE = 1e-4  # of the quantile range: the largest difference between an engine and its network
MIN_SCALE = 1e-6  # of the target; below it the price is constant and cannot be standardized
ProgressCallback = Callable[[int, int], None]  # steps done, total steps
_CHUNK_SIZE = 16  # series at a time: the attention of more does not fit the cache


class MarketEngine:
    """Runs one market bundle."""

    def __init__(self, bundle: MarketBundle) -> None:
        self.manifest = bundle.manifest
        self._scaling = MarketScaling(bundle.manifest)
        self._network = Tft(bundle.manifest.network, bundle.weights, bundle.manifest.horizon)

    def predict(self, inputs: ModelInput, progress: ProgressCallback = lambda done, total: None) -> Forecast:
        """The forecast of one series. `progress` is called after every step of the work.

        Raises:
            DataError: the input has another shape or step than the bundle, is not finite, or is constant.
            BundleError: (check "finite") the network gave a number that is not finite.
        """
        return self.predict_batch([inputs], progress)[0]

    def predict_batch(
        self, inputs: Sequence[ModelInput], progress: ProgressCallback = lambda done, total: None
    ) -> list[Forecast]:
        """The forecasts of several series, equal to those of `predict` up to rounding."""
        starts = range(0, len(inputs), _CHUNK_SIZE)
        steps = count(1)

        def advance() -> None:
            progress(next(steps), PROGRESS_STEPS * len(starts))

        return [forecast for start in starts for forecast in self._chunk(inputs[start : start + _CHUNK_SIZE], advance)]

    def _chunk(self, inputs: Sequence[ModelInput], advance: Callable[[], None]) -> list[Forecast]:
        past, future, scales = zip(*(self._scaling.apply(item) for item in inputs), strict=True)
        outputs = self._network(np.stack(past), np.stack(future), advance).astype(np.float64)
        if not np.isfinite(outputs).all():
            raise BundleError(
                "The model gave a number that is not finite. Check its input, or use another model.", check="finite"
            )
        levels, sha256 = self.manifest.levels, self.manifest.sha256
        forecasts = []
        for item, output, scale in zip(inputs, outputs, scales, strict=True):
            quantiles = to_quantiles(output, scale)
            value = float(quantiles[-1, levels.index(0.5)])
            forecasts.append(Forecast(item.end, item.step, levels, quantiles, value, item.sha256(), sha256))
        return forecasts


class MarketScaling:
    """From a `ModelInput` to the scaled variables of the network: what a prediction needs of the library's data set."""

    def __init__(self, manifest: MarketManifest) -> None:
        self._manifest = manifest
        scalers = manifest.scalers
        self._past, self._known = (
            np.array([[scalers[name].center, scalers[name].scale] for name in names]).reshape(-1, 2).T
            for names in (manifest.past, manifest.known)
        )
        length, horizon = manifest.encoder_length, manifest.horizon
        self._relative_time = np.arange(-length, horizon, dtype=np.float64)[:, None] / length

    def apply(self, inputs: ModelInput) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
        """Encoder variables `[L, ...]`, decoder variables `[H, ...]` and the scale of the target.

        Raises:
            DataError: the input does not fit.
        """
        self._check(inputs)
        length = self._manifest.encoder_length
        scale = float(target_scale(inputs.target, self._manifest.horizon))
        if scale < MIN_SCALE:
            raise DataError(
                f"The price does not move in any of the {length} steps of the encoder, so there is nothing to forecast from. "
                "Check the source."
            )
        target = (inputs.target - inputs.target[-1]) / scale
        known = np.concatenate([(inputs.known - self._known[0]) / self._known[1], self._relative_time], axis=1)
        past = (inputs.past - self._past[0]) / self._past[1]
        encoder = np.concatenate([known[:length], past, target[:, None]], axis=1)
        return encoder.astype(np.float32), known[length:].astype(np.float32), scale

    def _check(self, inputs: ModelInput) -> None:
        manifest = self._manifest
        length, horizon = manifest.encoder_length, manifest.horizon
        if inputs.step != manifest.step:
            raise DataError(
                f"The candles are {inputs.step} s apart, but the model was trained on steps of {manifest.step} s. "
                "Choose another source, or train a model on this one."
            )
        for name, array, shape in (
            ("target", inputs.target, (length,)),
            ("past", inputs.past, (length, len(manifest.past))),
            ("known", inputs.known, (length + horizon, len(manifest.known))),
        ):
            if array.shape != shape:
                raise DataError(
                    f"The model's input {name!r} must have shape {shape}, not {array.shape}. "
                    "Use the features and the lengths in its manifest."
                )
            if not np.isfinite(array).all():
                raise DataError(f"The model's input {name!r} contains a number that is not finite. Check the source.")


def target_scale(target: FloatArray, horizon: int) -> FloatArray:
    """The scale `[...]` of log-prices `target` `[..., L]`: standard deviation of one-step differences * sqrt(horizon).

    It is the standard deviation of the log-return over `horizon` steps if the price is a random walk.
    """
    return np.asarray(np.diff(target, axis=-1).std(axis=-1) * np.sqrt(horizon))


def to_quantiles(outputs: FloatArray, scale: float) -> FloatArray:
    """Network outputs `[H, Q]` as quantiles of the log-return from the origin, non-decreasing along Q.

    Crossed quantiles are rearranged by sorting, which never moves them further from the true ones (Chernozhukov,
    Fernandez-Val and Galichon 2010, https://doi.org/10.3982/ECTA7880).
    """
    return np.sort(outputs * scale, axis=-1)


def canary_difference(
    bundle: MarketBundle, engine: MarketEngine, progress: ProgressCallback = lambda done, total: None
) -> float:
    """Run the bundle's canary; returns the largest difference from the trained network, as a share of the quantile range."""
    quantiles = engine.predict(market_canary_input(bundle), progress).quantiles
    return range_difference(quantiles.T, bundle.canary["quantiles"].T)


def verify_market_canary(
    bundle: MarketBundle, engine: MarketEngine, progress: ProgressCallback = lambda done, total: None
) -> float:
    """Check that the engine reproduces the bundle's canary; returns the difference.

    Raises:
        BundleError: (check "canary") the difference is above the tolerance, or the canary does not run at all.
    """
    return check_canary(bundle.path, lambda: canary_difference(bundle, engine, progress), TOLERANCE)
