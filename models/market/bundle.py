"""The bundle of a market model: its canary is the input of one forecast, and the quantiles `[H, Q]` for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.base import FloatArray, ModelInput
from models.bundle.bundle import Bundle, load_bundle
from models.market.manifest import MarketManifest
from models.tft.parameters import parameter_shapes

MarketBundle = Bundle[MarketManifest]


def load_market_bundle(path: Path) -> MarketBundle:
    """The bundle at `path`; every hash, name, shape and number is checked. `verify_market_canary` runs the canary.

    Raises:
        BundleError: a check failed; the error names it.
    """
    manifest = MarketManifest.read(path)
    length, horizon = manifest.encoder_length, manifest.horizon
    canary = {
        "end": (1,),
        "target": (length,),
        "past": (length, len(manifest.past)),
        "known": (length + horizon, len(manifest.known)),
        "quantiles": (horizon, len(manifest.levels)),
    }
    return load_bundle(path, manifest, parameter_shapes(manifest.network), canary)


def make_market_canary(inputs: ModelInput, quantiles: FloatArray) -> dict[str, FloatArray]:
    """The canary of a bundle: an input, and the quantiles `[H, Q]` that the trained network gave for it."""
    end = np.array([inputs.end], dtype=np.float64)
    return {"end": end, "target": inputs.target, "past": inputs.past, "known": inputs.known, "quantiles": quantiles}


def market_canary_input(bundle: MarketBundle) -> ModelInput:
    """The input of the canary."""
    canary = bundle.canary
    return ModelInput(int(canary["end"][0]), bundle.manifest.step, canary["target"], canary["past"], canary["known"])
