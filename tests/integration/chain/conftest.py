"""Fixtures of the chain tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from forecastd.chain.wallet import Wallet, open_wallet
from forecastd.settings import Settings


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as exit_stack:
        yield exit_stack


@pytest.fixture
def wallet(tmp_path: Path) -> Wallet:
    return open_wallet(Settings(state_dir=tmp_path / "wallet", _env_file=None))  # type: ignore[call-arg]
