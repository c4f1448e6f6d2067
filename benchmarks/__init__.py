"""Figures measured beside a named peer in one run: `python -m benchmarks [NAME ...] [--quick] [--json]`."""
