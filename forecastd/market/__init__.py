"""Market data: candles, the rolling window, sources, features, guards."""
