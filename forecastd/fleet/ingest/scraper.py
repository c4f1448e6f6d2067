"""Scrapes metrics: at each tick fetches the /metrics page of every target and ingests it like a posted feed.

Invariant: one target must not affect another. Each fetch is bounded in time and bytes and runs in a small thread pool
while the ticker runs; errors are reported per target (`statuses`).
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

import orjson

from forecastd.clock import Clock, seconds_until, to_iso
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.fleet.contract import CONTRACT_VERSION, DEFAULT_PROFILE, PROFILE_PATTERN, SERVER_PATTERN, FeedResponse
from forecastd.fleet.documents import ScrapeStatus
from forecastd.fleet.ingest.exposition_parser import MetricsPage, MetricsPageError, contract_metrics, parse_page
from forecastd.runtime.http import fetch_url, host_and_port, split_http_url

log = logging.getLogger(__name__)
Ingest = Callable[[bytes, str], FeedResponse]

MAX_PAGE_BYTES = 8 << 20  # size of a page
MAX_TIMEOUT_SECONDS = 10.0  # for a page, if a tick is longer
THREADS = 8
MAX_PREVIOUS_AGE_TICKS = 10  # age at which the previous page is too old for a rate
ACCEPT = "text/plain; version=0.0.4"


@dataclass(frozen=True)
class ScrapeTarget:
    """A page to scrape, and its server. Two pages may belong to one server."""

    server: str
    url: str
    profile: str = DEFAULT_PROFILE


def parse_targets(texts: Iterable[str]) -> tuple[ScrapeTarget, ...]:
    """The targets of `FLEET_SCRAPE`: each is `NAME=URL`, optionally followed by `#PROFILE`.

    Raises:
        NeedsHuman: a target is malformed, or listed twice.
    """
    targets: list[ScrapeTarget] = []
    for text in texts:
        name, equals, url = text.partition("=")
        parts = split_http_url(url.strip())
        if not equals or SERVER_PATTERN.fullmatch(name.strip()) is None:
            raise NeedsHuman(
                f"FLEET_SCRAPE: {name[:80]!r} is not a server name; write NAME=URL, such as web-01=http://10.0.0.7:9100."
            )
        if parts is None:
            raise NeedsHuman(f"FLEET_SCRAPE: the page of {name.strip()} is not an http or https URL.")
        if "@" in parts.netloc:
            raise NeedsHuman(
                f"FLEET_SCRAPE: the address of {name.strip()} contains a user or password, which is not supported."
            )
        profile = parts.fragment or DEFAULT_PROFILE
        if PROFILE_PATTERN.fullmatch(profile) is None:
            raise NeedsHuman(
                f"FLEET_SCRAPE: {profile[:40]!r} is not a profile: use up to 32 lower-case letters, digits, _ and -."
            )
        page = urlunsplit(parts._replace(path=parts.path or "/metrics", fragment=""))
        targets.append(ScrapeTarget(name.strip(), page, profile))
    pages = [(target.server, target.url) for target in targets]
    for page_of in pages:
        if pages.count(page_of) > 1:
            raise NeedsHuman(f"FLEET_SCRAPE: {page_of[0]} lists the same page twice.")
    return tuple(targets)


class Scraper:
    """Scrapes these targets once per tick of `step` seconds, between `start` and `close`."""

    def __init__(
        self, targets: tuple[ScrapeTarget, ...], step: int, clock: Clock, *, timeout: float | None = None
    ) -> None:
        """`timeout`: seconds for a page; by default slightly less than a tick."""
        self._targets, self._step, self._clock = targets, step, clock
        self._timeout = timeout or min(MAX_TIMEOUT_SECONDS, 0.8 * step)
        self._statuses = [ScrapeStatus(target.server, _display_url(target.url)) for target in targets]
        self._previous_pages: list[tuple[MetricsPage, float] | None] = [None] * len(targets)
        self._in_progress: set[int] = set()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._queue: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._ingest: Ingest | None = None

    def start(self, ingest: Ingest) -> None:
        """Start the threads. `ingest` takes a feed's body and content type and returns its response, like
        `Fleet.ingest`.
        """
        if not self._targets:
            return
        self._ingest = ingest
        for number in range(min(THREADS, len(self._targets))):
            threading.Thread(target=self._run_worker, name=f"pull-{number}", daemon=True).start()
        threading.Thread(target=self._schedule, name="pull-ticks", daemon=True).start()

    def close(self) -> None:
        """Request no more pages. A fetch in progress ends by itself and is not ingested."""
        self._stop.set()
        for _ in range(THREADS):
            self._queue.put(-1)

    def statuses(self) -> tuple[ScrapeStatus, ...]:
        """The state of each target, in the order of the targets."""
        with self._lock:
            return tuple(self._statuses)

    def _schedule(self) -> None:
        tick = int(self._clock.now() // self._step)
        while not self._stop.is_set():
            for number in range(len(self._targets)):
                with self._lock:
                    is_running = number in self._in_progress
                    self._in_progress.add(number)
                if not is_running:  # otherwise the previous fetch is still within its timeout
                    self._queue.put(number)
            tick = max(tick + 1, int(self._clock.now() // self._step))
            while not self._stop.is_set() and (remaining := seconds_until(self._clock, tick * self._step)) > 0:
                self._stop.wait(min(remaining, 1.0))  # notices within a second that the clock was set

    def _run_worker(self) -> None:
        while (number := self._queue.get()) >= 0 and not self._stop.is_set():
            try:
                self._scrape(number)
            finally:
                with self._lock:
                    self._in_progress.discard(number)

    def _scrape(self, number: int) -> None:
        target = self._targets[number]
        time, requested_at = self._clock.now(), self._clock.monotonic()
        try:
            values = self._fetch(number, requested_at)
            if not values:  # the first page had only counters, which give rates from the next tick on
                return
            response = self._ingest_values(target, time, values)
        except (RetryLater, MetricsPageError) as error:
            self._record(number, str(error).rstrip("."))
            return
        if response.refused:
            self._record(
                number,
                f"its row was refused: {response.reasons[0].reason}" if response.reasons else "its row was refused",
            )
            return
        self._record(number, None, metrics=len(values), time=time)

    def _fetch(self, number: int, requested_at: float) -> dict[str, float]:
        target, previous = self._targets[number], self._previous_pages[number]
        response = fetch_url(target.url, {}, {"Accept": ACCEPT}, self._timeout, max_bytes=MAX_PAGE_BYTES)
        if response.status != 200:
            raise MetricsPageError(f"it returned HTTP status {response.status}")
        page = parse_page(response.body.decode("utf-8", "replace"))
        self._previous_pages[number] = (page, requested_at)
        if previous is None or (elapsed := requested_at - previous[1]) > MAX_PREVIOUS_AGE_TICKS * self._step:
            return contract_metrics(page, None, 0.0)
        values = contract_metrics(page, previous[0], elapsed)
        if not values:
            raise MetricsPageError(
                "it has no usable metrics, or all its counters were reset; docs/fleet-feed.md lists the names"
            )
        return values

    def _ingest_values(self, target: ScrapeTarget, time: float, values: dict[str, float]) -> FeedResponse:
        record = {"server": target.server, "time": time, "profile": target.profile, "status": "ok", "metrics": values}
        if self._stop.is_set() or self._ingest is None:
            raise RetryLater("The scraper is stopped.")
        return self._ingest(orjson.dumps({"version": CONTRACT_VERSION, "records": [record]}), "application/json")

    def _record(self, number: int, error: str | None, *, metrics: int = 0, time: float = 0.0) -> None:
        with self._lock:
            old = self._statuses[number]
            self._statuses[number] = old.with_error(error) if error is not None else old.with_row(metrics, to_iso(time))
        if error is not None and error != old.error:
            log.warning("Scraping %s (%s) failed: %s.", old.server, old.page, error)
        elif error is None and old.error is not None:
            log.info("Scraping %s (%s) works again.", old.server, old.page)


def _display_url(url: str) -> str:
    """The URL of a page without its query, which may contain a secret."""
    return f"{host_and_port(url)}{urlsplit(url).path}"
