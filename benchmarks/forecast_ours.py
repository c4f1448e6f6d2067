"""The forecast benchmark's process for our way: load and check the bundle, predict, print."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from models.market.bundle import load_market_bundle, market_canary_input
from models.market.engine import MarketEngine


def main() -> None:
    bundle = load_market_bundle(Path(sys.argv[1]))
    forecast = MarketEngine(bundle).predict(market_canary_input(bundle))
    heavy = {"torch", "lightning", "pytorch_forecasting", "pandas"} & set(sys.modules)
    assert not heavy, f"imported {heavy}"
    print(json.dumps({"quantiles": forecast.quantiles.tolist()}))


if __name__ == "__main__":
    main()
