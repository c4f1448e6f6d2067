"""What every test stands on: no network beyond loopback (pyproject), no environment of the machine's, no home."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from forecastd.settings import Settings

SETTING_PREFIXES = (*(name.upper() for name in Settings.model_fields), "XDG")

# How long an example takes says nothing on a machine that is busy.
settings.register_profile("forecastd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("forecastd")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # what a shell starts in the background cannot be interrupted
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No setting of the machine's user reaches a test, and none of a test's files reaches the user's home."""
    for name in list(os.environ):
        if name.upper().startswith(SETTING_PREFIXES):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_candles(root: Path) -> Path:
    """A user's real download, where it is at hand; tests that ask for it skip elsewhere."""
    path = root.parent / "shared" / "data" / "coinbase_btcusd_1h_2017-07_2019-10.csv"
    if not path.is_file():
        pytest.skip("the real candles are not here")
    return path
