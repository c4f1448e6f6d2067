"""Forecasting models: bundles, engines, training, evaluation. Never imports the product."""
