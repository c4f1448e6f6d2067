"""Pulls metrics: at each tick every target's /metrics page is fetched, read and put in as a row, as if it had been posted.

The one thing to know before changing it: a target's trouble is its own. Each fetch is bounded in time and bytes and runs in a
small pool of threads beside the ticker; what is wrong is told for its target (`report`) and keeps no other one back.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from forecastd.clock import Clock, iso, seconds_until
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.fleet.contract import CONTRACT_VERSION, DEFAULT_PROFILE, PROFILE, SERVER, FeedAnswer
from forecastd.fleet.metricspage import Page, PageError, measured, read_page
from forecastd.sources.http import address, get

log = logging.getLogger(__name__)
Put = Callable[[bytes, str], FeedAnswer]

MOST_BYTES = 8 << 20  # of a page
MOST_SECONDS = 10.0  # for a page, where a tick is longer than that
THREADS = 8
OLDEST = 10  # ticks after which the page before is too old to tell a rate by
ACCEPT = "text/plain; version=0.0.4"


@dataclass(frozen=True)
class Target:
    """A page that is pulled, and the server that it speaks of. Two pages may speak of one."""

    server: str
    url: str
    profile: str = DEFAULT_PROFILE


@dataclass(frozen=True)
class TargetReport:
    """How it goes with a target. `metrics`: how many the last row had. `error`: why there was none, None after a good one."""

    server: str
    page: str
    rows: int = 0
    failures: int = 0
    metrics: int = 0
    last_row: float | None = None
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """For `GET /status`."""
        return {
            "server": self.server,
            "page": self.page,
            "ok": self.error is None and self.rows > 0,
            "rows": self.rows,
            "failures": self.failures,
            "metrics": self.metrics,
            "last_row": None if self.last_row is None else iso(self.last_row),
            "error": self.error,
        }


def parse_targets(texts: Iterable[str]) -> tuple[Target, ...]:
    """The targets of `FLEET_SCRAPE`: each `NAME=URL`, with `#PROFILE` behind it where one is to be named.

    Raises:
        NeedsHuman: one is none, or is there twice.
    """
    found: list[Target] = []
    for text in texts:
        name, equals, url = text.partition("=")
        parts = urlsplit(url.strip())
        if not equals or SERVER.fullmatch(name.strip()) is None:
            raise NeedsHuman(
                f"FLEET_SCRAPE: {name[:80]!r} names no server; write NAME=URL, such as web-01=http://10.0.0.7:9100."
            )
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise NeedsHuman(f"FLEET_SCRAPE: the page of {name.strip()} is no http or https address.")
        if "@" in parts.netloc:
            raise NeedsHuman(
                f"FLEET_SCRAPE: the address of {name.strip()} has a password in it, which is not supported."
            )
        profile = parts.fragment or DEFAULT_PROFILE
        if PROFILE.fullmatch(profile) is None:
            raise NeedsHuman(
                f"FLEET_SCRAPE: {profile[:40]!r} is no profile: up to 32 lower-case letters, digits, _ and -."
            )
        page = urlunsplit(parts._replace(path=parts.path or "/metrics", fragment=""))
        found.append(Target(name.strip(), page, profile))
    pages = [(target.server, target.url) for target in found]
    for page_of in pages:
        if pages.count(page_of) > 1:
            raise NeedsHuman(f"FLEET_SCRAPE: {page_of[0]} has the same page twice.")
    return tuple(found)


class Puller:
    """Pulls these targets once a tick of `step` seconds, between `start` and `close`."""

    def __init__(self, targets: tuple[Target, ...], step: int, clock: Clock, *, timeout: float | None = None) -> None:
        """`timeout`: seconds for a page; a little less than a tick when not given."""
        self._targets, self._step, self._clock = targets, step, clock
        self._timeout = timeout or min(MOST_SECONDS, 0.8 * step)
        self._reports = [TargetReport(target.server, _shown(target.url)) for target in targets]
        self._before: list[tuple[Page, float] | None] = [None] * len(targets)
        self._under_way: set[int] = set()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._due: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._put: Put | None = None

    def start(self, put: Put) -> None:
        """Begin. `put` takes a feed's body and content type and gives its answer, as `Fleet.feed` does."""
        if not self._targets:
            return
        self._put = put
        for number in range(min(THREADS, len(self._targets))):
            threading.Thread(target=self._work, name=f"pull-{number}", daemon=True).start()
        threading.Thread(target=self._tick, name="pull-ticks", daemon=True).start()

    def close(self) -> None:
        """No page is asked for any more. What is under way ends by itself and is not put in."""
        self._stop.set()
        for _ in range(THREADS):
            self._due.put(-1)

    def report(self) -> tuple[TargetReport, ...]:
        """How it goes with each target, in the order in which they were given."""
        with self._lock:
            return tuple(self._reports)

    def _tick(self) -> None:
        tick = int(self._clock.now() // self._step)
        while not self._stop.is_set():
            for number in range(len(self._targets)):
                with self._lock:
                    waiting = number in self._under_way
                    self._under_way.add(number)
                if not waiting:  # else it is slow: its time is not up yet
                    self._due.put(number)
            tick = max(tick + 1, int(self._clock.now() // self._step))
            while not self._stop.is_set() and (left := seconds_until(self._clock, tick * self._step)) > 0:
                self._stop.wait(min(left, 1.0))  # a clock that is set is seen within a second

    def _work(self) -> None:
        while (number := self._due.get()) >= 0 and not self._stop.is_set():
            try:
                self._pull(number)
            finally:
                with self._lock:
                    self._under_way.discard(number)

    def _pull(self, number: int) -> None:
        target = self._targets[number]
        moment, asked = self._clock.now(), self._clock.monotonic()
        try:
            values = self._fetched(number, asked)
            if not values:  # counters alone, the first time: their rates are known at the next tick
                return
            answer = self._handed_in(target, moment, values)
        except (RetryLater, PageError) as error:
            self._note(number, str(error).rstrip("."))
            return
        if answer.refused:
            self._note(
                number, f"its row was refused: {answer.reasons[0].reason}" if answer.reasons else "its row was refused"
            )
            return
        self._note(number, None, metrics=len(values), moment=moment)

    def _fetched(self, number: int, asked: float) -> dict[str, float]:
        target, before = self._targets[number], self._before[number]
        answer = get(target.url, {}, {"Accept": ACCEPT}, self._timeout, most=MOST_BYTES)
        if answer.status != 200:
            raise PageError(f"it answers {answer.status}")
        page = read_page(answer.body.decode("utf-8", "replace"))
        self._before[number] = (page, asked)
        if before is None or (elapsed := asked - before[1]) > OLDEST * self._step:
            return measured(page, None, 0.0)
        values = measured(page, before[0], elapsed)
        if not values:
            raise PageError(
                "nothing that it has is of use, or its counters were all reset; docs/fleet.md lists the names"
            )
        return values

    def _handed_in(self, target: Target, moment: float, values: dict[str, float]) -> FeedAnswer:
        import orjson

        record = {"server": target.server, "time": moment, "profile": target.profile, "status": "ok", "metrics": values}
        if self._stop.is_set() or self._put is None:
            raise RetryLater("It is stopped.")
        return self._put(orjson.dumps({"version": CONTRACT_VERSION, "records": [record]}), "application/json")

    def _note(self, number: int, error: str | None, *, metrics: int = 0, moment: float | None = None) -> None:
        with self._lock:
            old = self._reports[number]
            new = (
                replace(old, rows=old.rows + 1, metrics=metrics, last_row=moment, error=None)
                if error is None
                else replace(old, failures=old.failures + 1, error=error)
            )
            self._reports[number] = new
        if error is not None and error != old.error:
            log.warning("The page of %s (%s) gives no row: %s.", old.server, old.page, error)
        elif error is None and old.error is not None:
            log.info("The page of %s (%s) gives rows again.", old.server, old.page)


def _shown(url: str) -> str:
    """A page's address for people: without what may be a secret in its query."""
    return f"{address(url)}{urlsplit(url).path}"
