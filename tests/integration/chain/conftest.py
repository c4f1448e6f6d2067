"""Fixtures of the chain tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from forecastd.chain.wallet import Wallet, open_wallet
from forecastd.settings import load_settings


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as exit_stack:
        yield exit_stack


@pytest.fixture
def wallet(tmp_path: Path) -> Wallet:
    return open_wallet(load_settings(state_dir=tmp_path / "wallet"))
