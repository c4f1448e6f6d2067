"""Measurements next to a named peer in one run: `python -m benchmarks [NAME ...] [--quick] [--json]`."""
