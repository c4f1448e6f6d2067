"""The market engine checks the outputs of the network, not the floating-point flags."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.errors import BundleError
from models.market.bundle import load_market_bundle, market_canary_input
from models.market.engine import MarketEngine


def test_market_engine_overflow_raises_bundle_error(root: Path) -> None:
    bundle = load_market_bundle(root / "models" / "demo")
    wild = {name: np.full_like(weight, 1e30) for name, weight in bundle.weights.items()}
    with pytest.raises(BundleError) as error_info:
        MarketEngine(replace(bundle, weights=wild)).predict(market_canary_input(bundle))
    assert error_info.value.check == "finite"
