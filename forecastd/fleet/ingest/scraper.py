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
        name, equals, url = (part.strip() for part in text.partition("="))
        parts = split_http_url(url)
        if not equals or SERVER_PATTERN.fullmatch(name) is None:
            raise NeedsHuman(
                f"FLEET_SCRAPE: {name[:80]!r} is not a server name; write NAME=URL, such as web-01=http://10.0.0.7:9100."
            )
        if parts is None:
            raise NeedsHuman(f"FLEET_SCRAPE: the page of {name} is not an http or https URL.")
        if "@" in parts.netloc:
            raise NeedsHuman(
                f"FLEET_SCRAPE: the address of {name} contains a user or password, which is not supported."
            )
        profile = parts.fragment or DEFAULT_PROFILE
        if PROFILE_PATTERN.fullmatch(profile) is None:
            raise NeedsHuman(
                f"FLEET_SCRAPE: {profile[:40]!r} is not a profile: use up to 32 lower-case letters, digits, _ and -."
            )
        page = urlunsplit(parts._replace(path=parts.path or "/metrics", fragment=""))
        if any((target.server, target.url) == (name, page) for target in targets):
            raise NeedsHuman(f"FLEET_SCRAPE: {name} lists the same page twice.")
        targets.append(ScrapeTarget(name, page, profile))
    return tuple(targets)


class Scraper:
    """Scrapes these targets once per tick of `step` seconds, between `start` and `close`."""

    def __init__(
        self, targets: tuple[ScrapeTarget, ...], step: int, clock: Clock, *, timeout: float | None = None
    ) -> None:
        """`timeout`: seconds for a page; by default slightly less than a tick."""
        self._pages, self._step, self._clock = [_ScrapedPage(target) for target in targets], step, clock
        self._timeout = timeout or min(MAX_TIMEOUT_SECONDS, 0.8 * step)
        self._stop = threading.Event()
        self._queue: queue.SimpleQueue[_ScrapedPage | None] = queue.SimpleQueue()  # None ends a worker
        self._ingest: Ingest | None = None

    def start(self, ingest: Ingest) -> None:
        """Start the threads. `ingest` takes a feed's body and content type and returns its response, like
        `Fleet.ingest`.
        """
        if not self._pages:
            return
        self._ingest = ingest
        for number in range(min(THREADS, len(self._pages))):
            threading.Thread(target=self._run_worker, name=f"pull-{number}", daemon=True).start()
        threading.Thread(target=self._schedule, name="pull-ticks", daemon=True).start()

    def close(self) -> None:
        """Request no more pages. A fetch in progress ends by itself and is not ingested."""
        self._stop.set()
        for _ in range(THREADS):
            self._queue.put(None)

    def statuses(self) -> tuple[ScrapeStatus, ...]:
        """The state of each target, in the order of the targets."""
        return tuple(page.status for page in self._pages)

    def _schedule(self) -> None:
        tick = int(self._clock.now() // self._step)
        while not self._stop.is_set():
            for page in self._pages:
                if not page.in_progress:  # otherwise the previous fetch is still within its timeout
                    page.in_progress = True
                    self._queue.put(page)
            tick = max(tick + 1, int(self._clock.now() // self._step))
            while not self._stop.is_set() and (remaining := seconds_until(self._clock, tick * self._step)) > 0:
                self._stop.wait(min(remaining, 1.0))  # notices within a second that the clock was set

    def _run_worker(self) -> None:
        while (page := self._queue.get()) is not None and not self._stop.is_set():
            try:
                self._scrape(page)
            finally:
                page.in_progress = False

    def _scrape(self, page: _ScrapedPage) -> None:
        old, time, requested_at = page.status, self._clock.now(), self._clock.monotonic()
        try:
            values = self._fetch(page, requested_at)
            if not values:  # the first page had only counters, which give rates from the next tick on
                return
            self._ingest_values(page.target, time, values)
        except (RetryLater, MetricsPageError) as error:
            new = page.status = old.with_error(str(error).rstrip("."))
            if new.error != old.error:
                log.warning("Scraping %s (%s) failed: %s.", new.server, new.page, new.error)
            return
        page.status = old.with_row(len(values), to_iso(time))
        if old.error is not None:
            log.info("Scraping %s (%s) works again.", old.server, old.page)

    def _fetch(self, page: _ScrapedPage, requested_at: float) -> dict[str, float]:
        response = fetch_url(page.target.url, {}, {"Accept": ACCEPT}, self._timeout, max_bytes=MAX_PAGE_BYTES)
        if response.status != 200:
            raise MetricsPageError(f"it returned HTTP status {response.status}")
        content, previous = parse_page(response.body.decode("utf-8", "replace")), page.previous
        page.previous = (content, requested_at)
        if previous is None or (elapsed := requested_at - previous[1]) > MAX_PREVIOUS_AGE_TICKS * self._step:
            return contract_metrics(content, None, 0.0)
        values = contract_metrics(content, previous[0], elapsed)
        if not values:
            raise MetricsPageError(
                "it has no usable metrics, or all its counters were reset; docs/fleet-feed.md lists the names"
            )
        return values

    def _ingest_values(self, target: ScrapeTarget, time: float, values: dict[str, float]) -> None:
        record = {"server": target.server, "time": time, "profile": target.profile, "status": "ok", "metrics": values}
        if self._stop.is_set() or self._ingest is None:
            raise RetryLater("The scraper is stopped.")
        feed = orjson.dumps({"version": CONTRACT_VERSION, "records": [record]})
        response = self._ingest(feed, "application/json")
        if response.refused:
            reason = f": {response.reasons[0].reason}" if response.reasons else ""
            raise MetricsPageError(f"its row was refused{reason}")


class _ScrapedPage:
    """A target with its state. One thread at a time scrapes it: the one that takes it from the queue."""

    def __init__(self, target: ScrapeTarget) -> None:
        self.target = target
        self.status = ScrapeStatus(target.server, _display_url(target.url))
        self.previous: tuple[MetricsPage, float] | None = None  # the last page and when it was requested
        self.in_progress = False


def _display_url(url: str) -> str:
    """The URL of a page without its query, which may contain a secret."""
    return f"{host_and_port(url)}{urlsplit(url).path}"
