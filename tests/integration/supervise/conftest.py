"""The demo bundle and an event log, for tests of supervision with real children."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.market.bundle import MarketBundle, load_market_bundle
from tests.support.supervision import EventLog


@pytest.fixture(scope="module")
def demo(root: Path) -> Path:
    return root / "models" / "demo"


@pytest.fixture(scope="module")
def bundle(demo: Path) -> MarketBundle:
    return load_market_bundle(demo)


@pytest.fixture
def event_log() -> EventLog:
    return EventLog()
