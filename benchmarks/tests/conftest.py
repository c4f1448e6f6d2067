"""The environment of the benchmarks' own tests: the same as that of all other tests."""

from __future__ import annotations

from tests.conftest import clean_environment, real_candles, root

__all__ = ["clean_environment", "real_candles", "root"]
