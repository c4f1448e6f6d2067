"""The child's side of the channel, for writing: whole messages, from any thread of the child."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from threading import Event, Lock, Thread
from typing import Any

from forecastd.supervise.detector import Phase
from forecastd.supervise.protocol import ChannelClosed, ChildMessage, send

HEARTBEAT_SECONDS = 1.0


class ChildChannel:
    """Sends a child's messages to its parent. `launch_id`: the id that every message carries."""

    def __init__(self, channel: socket.socket, launch_id: str) -> None:
        self.launch_id = launch_id
        self._channel = channel
        self._lock = Lock()

    def start_heartbeat(self) -> None:
        """Send a heartbeat every second from now on, from a thread of its own."""
        Thread(target=self._send_heartbeats, name="heartbeat", daemon=True).start()

    def send(self, message: ChildMessage) -> None:
        """Send one message. Raises ChannelClosed."""
        with self._lock:
            send(self._channel, message)

    def report_progress(
        self, job: str | None, phase: Phase, done: float, total: float, detail: Mapping[str, Any] | None = None
    ) -> None:
        """Report how far the work is. Called by the work itself, never by a timer. Raises ChannelClosed."""
        fields: dict[str, Any] = {"job": job, "phase": phase.value, "done": done, "total": total}
        fields["detail"] = dict(detail or {})
        self.send(ChildMessage("progress", self.launch_id, fields))

    def report_stale_progress(self, job: str | None, phase: Phase) -> None:
        """Report progress as an earlier launch would. Raises ChannelClosed."""
        fields = {"job": job, "phase": phase.value, "done": 1.0, "total": 1.0}
        self.send(ChildMessage("progress", "an-earlier-launch", fields))

    def send_raw(self, data: bytes) -> None:
        """Send bytes as they are. Raises ChannelClosed."""
        try:
            with self._lock:
                self._channel.sendall(data)
        except OSError as error:
            raise ChannelClosed from error

    def _send_heartbeats(self) -> None:
        never = Event()
        while not never.wait(HEARTBEAT_SECONDS):
            try:
                self.send(ChildMessage("heartbeat", self.launch_id))
            except ChannelClosed:
                return
