"""The child's side of the channel: whole messages, sent from any thread of the child, and a heartbeat."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from threading import Event, Lock, Thread
from typing import Any

from numpy.typing import NDArray

from forecastd.supervise.detector import Phase
from forecastd.supervise.protocol import ChannelClosed, ChildMessage, receive, send

HEARTBEAT_SECONDS = 1.0  # while the child works


class ChildChannel:
    """Exchanges messages with the parent, and sends it a heartbeat from a thread of its own.

    `launch_id`: the id that every message carries.
    """

    def __init__(self, channel: socket.socket, launch_id: str) -> None:
        self.launch_id = launch_id
        self._channel = channel
        self._lock = Lock()
        self._busy, self._idle_seconds = Event(), HEARTBEAT_SECONDS
        self._busy.set()
        Thread(target=self._send_heartbeats, name="heartbeat", daemon=True).start()

    def receive(self) -> ChildMessage:
        """Wait for a message. Raises ChannelClosed, InvalidMessage."""
        return receive(self._channel)

    def send(self, kind: str, fields: dict[str, Any], arrays: dict[str, NDArray[Any]] | None = None) -> None:
        """Send one message. Raises ChannelClosed."""
        with self._lock:
            send(self._channel, ChildMessage(kind, self.launch_id, fields, arrays or {}))

    def report_progress(
        self, job: str | None, phase: Phase, done: float, total: float, detail: Mapping[str, Any] | None = None
    ) -> None:
        """Report how far the work is. Called by the work itself, never by a timer. Raises ChannelClosed."""
        fields = {"job": job, "phase": phase.value, "done": done, "total": total, "detail": dict(detail or {})}
        self.send("progress", fields)

    def set_idle(self, heartbeat_seconds: float | None = None) -> None:
        """The child waits for a job: a heartbeat each `heartbeat_seconds` (unchanged without) is enough."""
        self._idle_seconds = heartbeat_seconds or self._idle_seconds
        self._busy.clear()

    def set_busy(self) -> None:
        """The child works again: a heartbeat each second."""
        self._busy.set()

    def send_raw(self, data: bytes) -> None:
        """Send bytes as they are. Raises ChannelClosed."""
        try:
            with self._lock:
                self._channel.sendall(data)
        except OSError as error:
            raise ChannelClosed from error

    def _send_heartbeats(self) -> None:
        never = Event()
        while True:
            if self._busy.wait(self._idle_seconds):
                never.wait(HEARTBEAT_SECONDS)
            try:
                self.send("heartbeat", {})
            except ChannelClosed:
                return
