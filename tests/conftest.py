"""What every test gets: no network beyond loopback (pyproject.toml), a clean environment, and an empty home."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from forecastd.settings import DEFAULTS

SETTING_PREFIXES = (*DEFAULTS, "XDG")

# On a busy machine the duration of an example has no meaning.
settings.register_profile("forecastd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("forecastd")

# The tests run in several processes: one that computes with a thread per processor only slows the others down.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a background job of a shell ignores SIGINT
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the user's settings out of the tests, and the files of the tests out of the user's home."""
    for name in list(os.environ):
        if name.upper().startswith(SETTING_PREFIXES):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="session")
def root() -> Path:
    """The root directory of the project."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_candles(root: Path) -> Path:
    """A real download of candles; tests that need it are skipped where it is missing."""
    path = root.parent / "shared" / "data" / "coinbase_btcusd_1h_2017-07_2019-10.csv"
    if not path.is_file():
        pytest.skip("the real candles are not here")
    return path


@pytest.fixture
def unused_url() -> Iterator[str]:
    """A URL of this machine whose port is reserved, so that no server listens there."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{reserved.getsockname()[1]}"
