"""The fleet: a rolling window per server, quantile forecasts of every metric each tick, risk and alerts, over HTTP."""
