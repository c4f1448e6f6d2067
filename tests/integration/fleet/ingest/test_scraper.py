"""The scraper over loopback sockets: valid pages become rows, and an invalid page affects only its own target."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from forecastd.clock import ScaledClock
from forecastd.errors import NeedsHuman
from forecastd.fleet.contract import METRIC_INDEX, FeedResponse
from forecastd.fleet.documents import ScrapeStatus
from forecastd.fleet.ingest.feed import parse_feed
from forecastd.fleet.ingest.scraper import MAX_PAGE_BYTES, Scraper, ScrapeTarget, parse_targets
from forecastd.fleet.window.window import FleetWindow
from tests.support.waiting import wait_until


class PageServer(ThreadingHTTPServer):
    """Serves `pages` by path: a text, a function that returns a text, or an HTTP status."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), PageHandler)
        self.pages: dict[str, str | int | Callable[[], str]] = {}
        self.requested: list[str] = []
        self.release = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class PageHandler(BaseHTTPRequestHandler):
    server: PageServer

    def do_GET(self) -> None:
        self.server.requested.append(self.path)
        page = self.server.pages.get(self.path, 404)
        if callable(page):
            page = page()
        if page == "hang":
            self.server.release.wait(60)
        code, text = (page, "") if isinstance(page, int) else (200, page)
        self.send_response(code)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def exporter() -> Iterator[PageServer]:
    with PageServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.release.set()
        server.shutdown()
        thread.join()


class RecordingClock(ScaledClock):
    """Runs 20 times faster than real time. `last_read`: the monotonic second of the last read."""

    last_read = 0.0

    def __init__(self) -> None:
        super().__init__(20.0)

    def monotonic(self) -> float:
        self.last_read = super().monotonic()
        return self.last_read


class IngestTarget:
    """A window with an `ingest` like that of `Fleet`."""

    def __init__(self) -> None:
        self.clock = RecordingClock()
        self.window = FleetWindow(5, 100, 10)
        self.feeds = 0

    def ingest(self, body: bytes, content_type: str) -> FeedResponse:
        self.window.advance(int(self.clock.now() // 5) - 1)
        response = self.window.ingest(parse_feed(body, content_type, step=5), now=self.clock.now(), max_skew=30.0)
        self.feeds += 1
        return response


@pytest.fixture
def closed_port_url() -> Iterator[str]:
    """A URL with a port that is bound but not listening."""
    with socket.socket() as bound_socket:
        bound_socket.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound_socket.getsockname()[1]}"


@pytest.fixture
def start_scraper() -> Iterator[Callable[..., tuple[Scraper, IngestTarget]]]:
    """Start a scraper for these targets at 20 times the speed: four scrapes per second."""
    started: list[Scraper] = []

    def start(*targets: str, fleet: IngestTarget | None = None, **options: Any) -> tuple[Scraper, IngestTarget]:
        fleet = fleet or IngestTarget()
        scraper = Scraper(parse_targets(targets), 5, fleet.clock, **({"timeout": 20.0} | options))
        scraper.start(fleet.ingest)
        started.append(scraper)
        return scraper, fleet

    yield start
    for scraper in started:
        scraper.close()


def target_status(scraper: Scraper, server: str) -> ScrapeStatus:
    return next(target_report for target_report in scraper.statuses() if target_report.server == server)


def growing_page(seconds: float) -> str:
    """The page of an exporter whose network counter grows by 10 MB/s and whose CPU is 25 % busy."""
    return (
        f'node_network_receive_bytes_total{{device="eth0"}} {1e9 + 10e6 * seconds!r}\n'
        f'node_cpu_seconds_total{{cpu="0",mode="idle"}} {75 * seconds!r}\n'
        f'node_cpu_seconds_total{{cpu="0",mode="user"}} {25 * seconds!r}\nnode_load1 0.5\n'
    )


def test_scraper_turns_counters_into_rates(exporter: PageServer, start_scraper: Any) -> None:
    fleet = IngestTarget()
    exporter.pages["/metrics"] = lambda: growing_page(
        fleet.clock.last_read
    )  # the delay of the second page depends on the machine
    scraper, _ = start_scraper(f"db-01={exporter.url}#database", fleet=fleet)
    wait_until(lambda: target_status(scraper, "db-01").rows >= 3)
    assert fleet.window.servers() == ("db-01",)
    assert fleet.window.profile("db-01") == "database"
    values = fleet.window.block(fleet.window.newest + 1, 50).values[0]
    seen = {
        name: values[:, METRIC_INDEX[name]][~(values[:, METRIC_INDEX[name]] != values[:, METRIC_INDEX[name]])]
        for name in METRIC_INDEX
    }
    assert len(seen["load_per_core"]) >= 2
    assert set(seen["load_per_core"].tolist()) == {0.5}
    assert seen["cpu_percent"] == pytest.approx(25.0, abs=0.1)
    assert len(seen["network_in_mb_s"])
    assert seen["network_in_mb_s"] == pytest.approx(10.0, abs=0.01)
    status = target_status(scraper, "db-01")
    assert (status.ok, status.error, status.metrics) == (True, None, 4)


def test_scraper_failing_page_is_reported_and_isolated(
    exporter: PageServer, closed_port_url: str, start_scraper: Any
) -> None:
    exporter.pages |= {
        "/good": "cpu_percent 12\nmemory_percent 50\n", "/html": "<html>It works!</html>", "/torn": "cpu_percent 1e",
        "/error": 500, "/moved": 302, "/huge": "# comment\n" * (MAX_PAGE_BYTES // 10 + 1), "/wrong": "memory_percent 0.5\n",
        "/counters": 'http_requests_total{code="200"} 7\n',
    }  # fmt: skip
    names = ["good", "html", "torn", "error", "moved", "huge", "wrong", "counters"]
    scraper, fleet = start_scraper(*(f"{name}={exporter.url}/{name}" for name in names), f"nobody={closed_port_url}/")
    expected = {
        "html": "no metrics of node_exporter", "torn": "text format", "error": "HTTP status 500", "moved": "HTTP status 302",
        "huge": "more than 8 MB", "wrong": "its row was refused: memory_percent 0.5 is below", "nobody": "reach",
    }  # fmt: skip
    wait_until(
        lambda: (
            all(target_status(scraper, name).error for name in expected) and target_status(scraper, "good").rows >= 2
        )
    )
    for name, failure in expected.items():
        assert failure in str(target_status(scraper, name).error), name
        assert target_status(scraper, name).rows == 0
        assert not target_status(scraper, name).ok
    assert target_status(scraper, "good").error is None
    wait_until(lambda: target_status(scraper, "counters").rows >= 1)
    assert set(fleet.window.servers()) == {"good", "counters"}


def test_scraper_recovers_failed_page(
    exporter: PageServer, start_scraper: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "forecastd.fleet.ingest.scraper")
    exporter.pages["/metrics"] = 503
    scraper, _ = start_scraper(f"web-01={exporter.url}")
    wait_until(lambda: target_status(scraper, "web-01").failures >= 2)
    exporter.pages["/metrics"] = "cpu_percent 7\n"
    wait_until(lambda: target_status(scraper, "web-01").rows >= 2)
    assert target_status(scraper, "web-01").error is None
    messages = [record.message for record in caplog.records]
    assert len([line for line in messages if "HTTP status 503" in line]) == 1  # an outage is one line
    assert len([line for line in messages if "works again" in line]) == 1


def test_scraper_hanging_page_blocks_no_other(exporter: PageServer, start_scraper: Any) -> None:
    exporter.pages |= {"/hang": "hang", "/good": "cpu_percent 7\n"}
    scraper, _ = start_scraper(f"slow={exporter.url}/hang", f"good={exporter.url}/good")
    wait_until(lambda: target_status(scraper, "good").rows >= 5 and "/hang" in exporter.requested)
    assert exporter.requested.count("/hang") == 1
    scraper, _ = start_scraper(f"slow={exporter.url}/hang", timeout=0.05)
    wait_until(lambda: "within" in str(target_status(scraper, "slow").error))


def test_scraper_ingests_nothing_after_close(exporter: PageServer, start_scraper: Any) -> None:
    exporter.pages["/metrics"] = "cpu_percent 7\n"
    scraper, fleet = start_scraper(f"web-01={exporter.url}")
    wait_until(lambda: fleet.feeds >= 1)
    scraper.close()
    wait_until(lambda: not any(thread.name.startswith("pull-") for thread in threading.enumerate()))
    assert target_status(scraper, "web-01").rows >= 1


def test_scraper_without_targets_does_nothing() -> None:
    fleet = IngestTarget()
    scraper = Scraper((), 5, fleet.clock)
    scraper.start(fleet.ingest)
    assert scraper.statuses() == ()
    scraper.close()


def test_scrape_targets_are_parsed_from_setting() -> None:
    assert parse_targets(["web-01=http://10.0.0.7:9100", " db=https://h/m?x=1#database "]) == (
        ScrapeTarget("web-01", "http://10.0.0.7:9100/metrics", "generic"),
        ScrapeTarget("db", "https://h/m?x=1", "database"),
    )
    both = parse_targets(["a=http://h/node", "a=http://h/app"])  # two pages of one server
    assert [target.server for target in both] == ["a", "a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("http://10.0.0.7:9100", "is not a server name"),
        ("=http://10.0.0.7", "is not a server name"),
        ("a b=http://10.0.0.7", "is not a server name"),
        ("web-01=10.0.0.7:9100", "not an http or https"),
        ("web-01=file:///etc/passwd", "not an http or https"),
        ("web-01=http://user:secret@10.0.0.7", "password"),
        ("web-01=http://10.0.0.7#Web Server", "not a profile"),
    ],
)
def test_scrape_target_malformed_is_refused(text: str, message: str) -> None:
    with pytest.raises(NeedsHuman, match=message) as raised:
        parse_targets([text])
    assert "secret" not in str(raised.value)


def test_scrape_target_duplicate_page_is_refused() -> None:
    with pytest.raises(NeedsHuman, match="twice"):
        parse_targets(["a=http://h", "a=http://h/metrics"])
