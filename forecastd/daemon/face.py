"""What the daemon shows: its pulse, in a file and to whoever asks, its heartbeat, and what the service manager is told."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

from forecastd.clock import Clock
from forecastd.connect import chain_of
from forecastd.daemon import memory, pulses, telling
from forecastd.daemon.beats import Beats
from forecastd.daemon.book import Book
from forecastd.daemon.crew import Crew
from forecastd.daemon.reports import Desk
from forecastd.daemon.workshop import Workshop
from forecastd.logs import FILE_NAME
from forecastd.notify import Notifier, watchdog_seconds
from forecastd.pulse import HeartbeatPulse, Mode, Pulse, State, WatchdogPulse
from forecastd.pulsefile import PulseFile
from forecastd.schedule import beats_due
from forecastd.settings import Settings

log = logging.getLogger(__name__)

PULSE_EVERY = 15.0  # seconds between two writings of the file while nothing happens
MOST_FEED = 2.0  # seconds between two feedings of the watchdog, or fewer where it is impatient


@dataclass(frozen=True)
class Body:
    """What there is to tell of: the parts of the daemon that know something."""

    beats: Beats
    book: Book
    crew: Crew
    shop: Workshop
    desk: Desk


class Face:
    """`pulse` may be called from any thread, everything else in the main loop."""

    def __init__(self, common: Settings, mode: Mode, clock: Clock, body: Body) -> None:
        self.common = common
        self.state: State = "starting"
        self.health_port: int | None = None
        self.notify = Notifier(common.notify_socket)
        self._mode, self._clock, self._body = mode, clock, body
        every = watchdog_seconds(common.watchdog_usec, common.watchdog_pid, os.getpid())
        self.feed_every = None if every is None else min(MOST_FEED, every)
        self._limit = None if every is None else 2 * every
        self._file, self._log = PulseFile(common.state), str(common.logs / FILE_NAME)
        self._versions: Mapping[str, str] = pulses.versions()
        self._started, self._started_at = clock.monotonic(), clock.now()
        self._beat, self._beat_at = 0, (self._started, self._started_at)
        self._fed_at: tuple[float, float] | None = None
        self._written = float("-inf")
        self._since: dict[str, float] = {}
        self._late: frozenset[str] = frozenset()
        self._status = ""
        self._shown: tuple[State, int] | None = None

    def tick(self) -> None:
        """Show what is due now. The watchdog is fed last: whatever goes wrong before that is worth a new start."""
        mono = self._clock.monotonic()
        self._look_for_late()
        due = beats_due(self._started, self._beat, mono, self.common.heartbeat_interval)
        if due > self._beat:
            self._beat, self._beat_at = due, (mono, self._clock.now())
            log.info("%s", telling.heartbeat(self.pulse()), extra={"action": "heartbeat"})
        if mono - self._written >= PULSE_EVERY or self._shown != (self.state, self._body.book.changes):
            self.write()
        fed = self._fed_at
        if self.feed_every is not None and not self._late and (fed is None or mono - fed[0] >= self.feed_every / 2):
            self.notify.watchdog()
            self._fed_at = (mono, self._clock.now())

    def write(self, *, always: bool = False) -> None:
        """Put the pulse into its file, and tell the service manager what is new.

        Without the leases the file may be that of another daemon, which is left alone unless `always` is set.
        """
        self._shown = (self.state, self._body.book.changes)
        pulse = self.pulse()
        self._written = self._clock.monotonic()
        if always or self._body.shop.holds_leases:
            self._file.write(pulse)
        status = telling.status(pulse)
        if status != self._status:
            self._status = status
            self.notify.status(status)

    def pulse(self) -> Pulse:
        """Everything that is known now."""
        mono, wall, common, body = self._clock.monotonic(), self._clock.now(), self.common, self._body
        kits = list(body.shop.outfit.kits.values())
        way = body.shop.outfit.way
        for kit in kits:
            self._since.setdefault(kit.forecaster.manifest.sha256, wall)
        fed = self._fed_at
        deadline = common.submission_deadline
        supervision = pulses.supervision(kits, body.shop.quarantined)
        return Pulse(
            pid=os.getpid(),
            started=self._started_at,
            written=wall,
            up=mono - self._started,
            mode=self._mode,
            state=self.state,
            network=common.allora_network,
            every=PULSE_EVERY,
            chain_id=chain_of(common),
            deadline=None if deadline is None else deadline.timestamp(),
            interval=float(common.submission_interval),
            trouble=body.desk.trouble,
            topics=body.book.topics(body.crew.views(), mono),
            endpoints=() if way is None else pulses.endpoints(way.chain),
            streams=pulses.streams(body.crew.streams()),
            models=pulses.models(kits, self._since),
            supervision=supervision,
            heartbeat=HeartbeatPulse(self._beat_at[1], mono - self._beat_at[0], common.heartbeat_interval),
            watchdog=WatchdogPulse(
                fed and fed[1], None if fed is None else mono - fed[0], self._limit, would_fire=bool(body.beats.late())
            ),
            memory_bytes=memory.resident(),
            children_memory_bytes=sum(child.memory_bytes or 0 for child in supervision.children),
            open_files=memory.open_files(),
            health_port=self.health_port,
            log=self._log,
            versions=self._versions,
        )

    def _look_for_late(self) -> None:
        """Loops without progress keep the watchdog from being fed; each is told once, with every stack."""
        late = self._body.beats.late()
        names = frozenset(one.name for one in late)
        for one in late:
            if one.name not in self._late:
                log.error(
                    "%s has made no progress for %.0f s; the watchdog is not fed any more.", one.name, one.age,
                    extra={"action": "late"},
                )  # fmt: skip
        if names - self._late:
            log.error("the stacks of all threads:\n%s", telling.stacks(), extra={"action": "stacks"})
        if self._late and not names:
            log.warning("every loop makes progress again", extra={"action": "late"})
        self._late = names
