"""The notify protocol on a real datagram socket, read as systemd reads it."""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from forecastd.notify import Notifier

LIMIT = 30.0  # seconds until a test gives up; nothing waits that long
BUFFER = 4096  # systemd's NOTIFY_BUFFER_MAX


class Manager:
    """The manager's end."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(LIMIT)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def heard(self) -> list[str]:
        """The lines of the next message."""
        return self._socket.recv(BUFFER + 1).decode("utf-8").split("\n")

    def empty(self) -> bool:
        """Whether nothing more has come."""
        self._socket.setblocking(False)
        try:
            self._socket.recv(BUFFER)
        except BlockingIOError:
            return True
        finally:
            self._socket.settimeout(LIMIT)
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    address = f"{tmp_path}/notify" if request.param == "path" else f"@forecastd-test-{secrets.token_hex(8)}"
    listening = Manager(address)
    yield listening
    listening.close()


def test_each_message_is_what_sd_notify_defines(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    notifier.ready("serves topic 67")
    assert manager.heard() == ["READY=1", "STATUS=serves topic 67"]
    notifier.status("epoch 720 submitted")
    assert manager.heard() == ["STATUS=epoch 720 submitted"]
    notifier.watchdog()
    assert manager.heard() == ["WATCHDOG=1"]
    notifier.reloading(123_456_789)
    assert manager.heard() == ["RELOADING=1", "MONOTONIC_USEC=123456789"]
    notifier.stopping("stopped by SIGTERM")
    assert manager.heard() == ["STOPPING=1", "STATUS=stopped by SIGTERM"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("two\nlines\r\nWATCHDOG=1", "two lines WATCHDOG=1"),
        ("a\0NUL \x1b[31mred", "a NUL [31mred"),
        ("", ""),
        ("Überfällig: 中文", "Überfällig: 中文"),
        ("half a \ud83d character", "half a character"),
        ("x" * 5000, "x" * 500),
    ],
)
def test_a_status_is_one_line_that_a_manager_takes(manager: Manager, text: str, told: str) -> None:
    Notifier(manager.address).status(text)
    assert manager.heard() == [f"STATUS={told}"]


def test_the_longest_message_fits_the_managers_buffer(manager: Manager) -> None:
    notifier = Notifier(f"{manager.address}-not-there-yet")
    for tell in (notifier.ready, notifier.stopping):
        tell("𝄞" * 5000)
    notifier.reloading(2**63)
    notifier.watchdog()
    later = Manager(f"{manager.address}-not-there-yet")
    notifier.status("𝄞" * 5000)
    lines = later.heard()
    later.close()
    assert {line.partition("=")[0] for line in lines} == {
        "READY",
        "STOPPING",
        "STATUS",
        "RELOADING",
        "MONOTONIC_USEC",
        "WATCHDOG",
    }
    assert len("\n".join(lines).encode()) <= BUFFER


def test_what_a_full_queue_refuses_comes_with_the_next_message_and_nobody_waits(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    pings = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text(encoding="ascii")) + 2
    for _ in range(pings):
        notifier.watchdog()  # would hang here if it waited
    notifier.ready("serves topic 67")
    while not manager.empty():
        pass
    notifier.status("later")
    assert manager.heard() == ["WATCHDOG=1", "READY=1", "STATUS=later"]
    notifier.watchdog()
    assert manager.heard() == ["WATCHDOG=1"]


def test_of_ready_and_reloading_the_later_one_stands_last(tmp_path: Path) -> None:
    notifier = Notifier(f"{tmp_path}/notify")
    notifier.ready("first")
    notifier.reloading(5)
    notifier.ready("second")
    manager = Manager(f"{tmp_path}/notify")
    notifier.watchdog()
    assert manager.heard() == ["RELOADING=1", "MONOTONIC_USEC=5", "READY=1", "STATUS=second", "WATCHDOG=1"]
    manager.close()


def test_a_manager_that_comes_back_is_told_again(tmp_path: Path) -> None:
    first = Manager(f"{tmp_path}/notify")
    notifier = Notifier(first.address)
    notifier.ready("up")
    first.heard()
    first.close()
    notifier.watchdog()
    Path(first.address).unlink()
    second = Manager(first.address)
    notifier.watchdog()
    assert second.heard() == ["WATCHDOG=1"]
    second.close()


def test_no_descriptor_is_kept_and_threads_may_share_one(manager: Manager) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    notifier = Notifier(manager.address)
    threads = [threading.Thread(target=notifier.watchdog) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    for _ in threads:
        assert manager.heard() == ["WATCHDOG=1"]
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
