"""Forecasting many metrics of many servers at once: bundle, engines, training."""
