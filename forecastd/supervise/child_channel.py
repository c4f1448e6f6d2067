"""Everything a child says to its parent, from whichever of its threads: one whole message at a time."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from threading import Event, Lock, Thread
from typing import Any

from forecastd.supervise.detector import Phase
from forecastd.supervise.protocol import ChannelClosed, ChildMessage, send

HEARTBEAT_SECONDS = 1.0


class ChildChannel:
    """The child's side of the channel, for writing."""

    def __init__(self, channel: socket.socket, launch: str) -> None:
        self.launch = launch
        self._channel = channel
        self._lock = Lock()

    def start_heartbeat(self) -> None:
        """From now on say every second that the process lives, from a thread of its own."""
        Thread(target=self._send_heartbeats, name="alive", daemon=True).start()

    def send(self, message: ChildMessage) -> None:
        """Raises ChannelClosed."""
        with self._lock:
            send(self._channel, message)

    def report_progress(
        self, job: str | None, phase: Phase, done: float, total: float, detail: Mapping[str, Any] | None = None
    ) -> None:
        """The work has got this far. Called by the work itself, never by a timer."""
        fields: dict[str, Any] = {"job": job, "phase": phase.value, "done": done, "total": total}
        fields["detail"] = dict(detail or {})
        self.send(ChildMessage("progress", self.launch, fields))

    def report_stale_progress(self, job: str | None, phase: Phase) -> None:
        """Progress as a launch before this one would report it."""
        fields = {"job": job, "phase": phase.value, "done": 1.0, "total": 1.0}
        self.send(ChildMessage("progress", "an-earlier-launch", fields))

    def send_raw(self, data: bytes) -> None:
        """Write bytes as they are. Raises ChannelClosed."""
        try:
            with self._lock:
                self._channel.sendall(data)
        except OSError as error:
            raise ChannelClosed from error

    def _send_heartbeats(self) -> None:
        never = Event()
        while not never.wait(HEARTBEAT_SECONDS):
            try:
                self.send(ChildMessage("alive", self.launch))
            except ChannelClosed:
                return
