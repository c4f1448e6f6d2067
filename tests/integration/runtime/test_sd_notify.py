"""The sd_notify protocol on a real datagram socket, read like systemd."""

from __future__ import annotations

import logging
import secrets
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from forecastd.runtime.sd_notify import SystemdNotifier

LIMIT = 30.0  # seconds until a test gives up
BUFFER = 4096  # systemd's NOTIFY_BUFFER_MAX


class FakeServiceManager:
    """The service manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(LIMIT)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def received(self) -> list[str]:
        """The lines of the next message."""
        return self._socket.recv(BUFFER + 1).decode("utf-8").split("\n")

    def empty(self) -> bool:
        """Whether no message is queued."""
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
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FakeServiceManager]:
    address = f"{tmp_path}/notify" if request.param == "path" else f"@forecastd-test-{secrets.token_hex(8)}"
    service_manager = FakeServiceManager(address)
    yield service_manager
    service_manager.close()


def test_sd_notify_messages_follow_the_protocol(manager: FakeServiceManager) -> None:
    notifier = SystemdNotifier(manager.address)
    notifier.ready("serves topic 67")
    assert manager.received() == ["READY=1", "STATUS=serves topic 67"]
    notifier.status("epoch 720 submitted")
    assert manager.received() == ["STATUS=epoch 720 submitted"]
    notifier.watchdog()
    assert manager.received() == ["WATCHDOG=1"]
    notifier.reloading(123_456_789)
    assert manager.received() == ["RELOADING=1", "MONOTONIC_USEC=123456789"]
    notifier.stopping("stopped by SIGTERM")
    assert manager.received() == ["STOPPING=1", "STATUS=stopped by SIGTERM"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("two\nlines\r\nWATCHDOG=1", "two lines WATCHDOG=1"),
        ("a\0NUL \x1b[31mred", "a NUL [31mred"),
        ("", ""),
        ("Überfällig: 中文", "Überfällig: 中文"),
        ("half a \ud83d character", "half a character"),
        ("x" * 5000, "x" * 500),
    ],
)
def test_sd_notify_status_is_a_single_line(manager: FakeServiceManager, text: str, line: str) -> None:
    SystemdNotifier(manager.address).status(text)
    assert manager.received() == [f"STATUS={line}"]


def test_sd_notify_longest_message_fits_the_buffer(manager: FakeServiceManager) -> None:
    notifier = SystemdNotifier(f"{manager.address}-not-there-yet")
    for send in (notifier.ready, notifier.stopping):
        send("𝄞" * 5000)
    notifier.reloading(2**63)
    notifier.watchdog()
    later = FakeServiceManager(f"{manager.address}-not-there-yet")
    notifier.status("𝄞" * 5000)
    lines = later.received()
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


def test_sd_notify_full_queue_sends_pending_with_the_next(manager: FakeServiceManager) -> None:
    notifier = SystemdNotifier(manager.address)
    pings = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text(encoding="ascii")) + 2
    for _ in range(pings):
        notifier.watchdog()  # would block here if it waited
    notifier.ready("serves topic 67")
    while not manager.empty():
        pass
    notifier.status("later")
    assert manager.received() == ["WATCHDOG=1", "READY=1", "STATUS=later"]
    notifier.watchdog()
    assert manager.received() == ["WATCHDOG=1"]


def test_sd_notify_last_of_ready_and_reloading_wins(tmp_path: Path) -> None:
    notifier = SystemdNotifier(f"{tmp_path}/notify")
    notifier.ready("first")
    notifier.reloading(5)
    notifier.ready("second")
    manager = FakeServiceManager(f"{tmp_path}/notify")
    notifier.watchdog()
    assert manager.received() == ["RELOADING=1", "MONOTONIC_USEC=5", "READY=1", "STATUS=second", "WATCHDOG=1"]
    manager.close()


def test_sd_notify_restarted_manager_gets_pending_messages(tmp_path: Path) -> None:
    first = FakeServiceManager(f"{tmp_path}/notify")
    notifier = SystemdNotifier(first.address)
    notifier.ready("up")
    first.received()
    first.close()
    notifier.watchdog()
    Path(first.address).unlink()
    second = FakeServiceManager(first.address)
    notifier.watchdog()
    assert second.received() == ["WATCHDOG=1"]
    second.close()


def test_sd_notify_is_thread_safe_and_keeps_no_descriptor(manager: FakeServiceManager) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    notifier = SystemdNotifier(manager.address)
    threads = [threading.Thread(target=notifier.watchdog) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    for _ in threads:
        assert manager.received() == ["WATCHDOG=1"]
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


@pytest.mark.parametrize(
    ("address", "warnings"),
    [(None, 0), ("", 0), ("/nowhere/notify", 0), ("@", 0), ("@nobody-listens-here", 0), ("/" + "x" * 300, 0),
     ("@" + "x" * 300, 0), ("vsock:2:1234", 1), ("relative/notify", 1)],
)  # fmt: skip
def test_sd_notify_without_listener_does_nothing(
    address: str | None, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        notifier = SystemdNotifier(address)
        notifier.ready("serves topic 67")
        notifier.status("waits")
        notifier.watchdog()
        notifier.reloading(1)
        notifier.stopping("stopped by SIGTERM")
    assert len(caplog.records) == warnings
