"""Forecasting models: what a bundle is, how it is run, how it is trained and judged. Never imports the product."""
