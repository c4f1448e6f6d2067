"""Pages pulled over real loopback sockets: good ones become rows, and whatever is wrong with one is told for it alone."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from forecastd.clock import ScaledClock
from forecastd.errors import NeedsHuman
from forecastd.fleet.contract import INDEX, FeedAnswer
from forecastd.fleet.grid import FleetWindow
from forecastd.fleet.intake import parse_feed
from forecastd.fleet.pulling import MOST_BYTES, Puller, Target, TargetReport, parse_targets


class Pages(ThreadingHTTPServer):
    """Serves what is in `pages` by path: a text, a text that a function makes, or a number, which is an answer's status."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, str | int | Callable[[], str]] = {}
        self.asked: list[str] = []
        self.hold = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Pages

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        page = self.server.pages.get(self.path, 404)
        if callable(page):
            page = page()
        if page == "hang":
            self.server.hold.wait(60)
        code, text = (page, "") if isinstance(page, int) else (200, page)
        self.send_response(code)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def exporter() -> Iterator[Pages]:
    with Pages() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.hold.set()
        server.shutdown()
        thread.join()


class Asking(ScaledClock):
    """20 times as fast as time goes. `asked`: the second at which a page was asked for last."""

    asked = 0.0

    def __init__(self) -> None:
        super().__init__(20.0)

    def monotonic(self) -> float:
        self.asked = super().monotonic()
        return self.asked


class Fleet:
    """A fleet's intake and window, fed as `Fleet.feed` is."""

    def __init__(self) -> None:
        self.clock = Asking()
        self.window = FleetWindow(5, 100, 10)
        self.fed = 0

    def feed(self, body: bytes, content_type: str) -> FeedAnswer:
        self.window.advance(int(self.clock.now() // 5) - 1)
        answer = self.window.take(parse_feed(body, content_type, step=5), now=self.clock.now(), max_skew=30.0)
        self.fed += 1
        return answer


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address that is taken, and at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def pulled() -> Iterator[Callable[..., tuple[Puller, Fleet]]]:
    """Start pulling these targets, 20 times as fast as time goes: four times a second."""
    started: list[Puller] = []

    def start(*targets: str, fleet: Fleet | None = None, **more: Any) -> tuple[Puller, Fleet]:
        fleet = fleet or Fleet()
        puller = Puller(parse_targets(targets), 5, fleet.clock, **({"timeout": 20.0} | more))
        puller.start(fleet.feed)
        started.append(puller)
        return puller, fleet

    yield start
    for puller in started:
        puller.close()


def until(condition: Callable[[], bool]) -> None:
    never = threading.Event()
    for _ in range(1_200):
        if condition():
            return
        never.wait(0.05)
    pytest.fail("not within a minute")


def report(puller: Puller, server: str) -> TargetReport:
    return next(one for one in puller.report() if one.server == server)


def growing(seconds: float) -> str:
    """The page of an exporter whose network counter grows by 10 MB a second, and whose CPU is 25 % busy."""
    return (
        f'node_network_receive_bytes_total{{device="eth0"}} {1e9 + 10e6 * seconds!r}\n'
        f'node_cpu_seconds_total{{cpu="0",mode="idle"}} {75 * seconds!r}\n'
        f'node_cpu_seconds_total{{cpu="0",mode="user"}} {25 * seconds!r}\nnode_load1 0.5\n'
    )


def test_counters_become_rates_and_rows_of_their_server(exporter: Pages, pulled: Any) -> None:
    fleet = Fleet()
    exporter.pages["/metrics"] = lambda: growing(fleet.clock.asked)  # how much later it is made, the machine decides
    puller, _ = pulled(f"db-01={exporter.url}#database", fleet=fleet)
    until(lambda: report(puller, "db-01").rows >= 3)
    assert fleet.window.servers() == ("db-01",)
    assert fleet.window.profile("db-01") == "database"
    values = fleet.window.block(fleet.window.newest + 1, 50).values[0]
    seen = {name: values[:, INDEX[name]][~(values[:, INDEX[name]] != values[:, INDEX[name]])] for name in INDEX}
    assert len(seen["load_per_core"]) >= 2
    assert set(seen["load_per_core"].tolist()) == {0.5}
    assert seen["cpu_percent"] == pytest.approx(25.0, abs=0.1)
    assert len(seen["network_in_mb_s"])
    assert seen["network_in_mb_s"] == pytest.approx(10.0, abs=0.01)
    told = report(puller, "db-01").as_json()
    assert (told["ok"], told["error"], told["metrics"]) == (True, None, 4)


def test_what_is_wrong_with_one_page_is_told_for_it_and_stops_no_other(
    exporter: Pages, nobody: str, pulled: Any
) -> None:
    exporter.pages |= {
        "/good": "cpu_percent 12\nmemory_percent 50\n", "/html": "<html>It works!</html>", "/torn": "cpu_percent 1e",
        "/error": 500, "/moved": 302, "/huge": "# comment\n" * (MOST_BYTES // 10 + 1), "/wrong": "memory_percent 0.5\n",
        "/counters": 'http_requests_total{code="200"} 7\n',
    }  # fmt: skip
    names = ["good", "html", "torn", "error", "moved", "huge", "wrong", "counters"]
    puller, fleet = pulled(*(f"{name}={exporter.url}/{name}" for name in names), f"nobody={nobody}/")
    expected = {
        "html": "neither node_exporter's metrics nor", "torn": "text format", "error": "answers 500", "moved": "answers 302",
        "huge": "more than 8 MB", "wrong": "its row was refused: memory_percent 0.5 is below", "nobody": "cannot be reached",
    }  # fmt: skip
    until(lambda: all(report(puller, name).error for name in expected) and report(puller, "good").rows >= 2)
    for name, told in expected.items():
        assert told in str(report(puller, name).error), name
        assert report(puller, name).rows == 0
        assert not report(puller, name).as_json()["ok"]
    assert report(puller, "good").error is None
    until(lambda: report(puller, "counters").rows >= 1)
    assert set(fleet.window.servers()) == {"good", "counters"}


def test_a_page_that_comes_right_is_taken_again(exporter: Pages, pulled: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "forecastd.fleet.pulling")
    exporter.pages["/metrics"] = 503
    puller, _ = pulled(f"web-01={exporter.url}")
    until(lambda: report(puller, "web-01").failures >= 2)
    exporter.pages["/metrics"] = "cpu_percent 7\n"
    until(lambda: report(puller, "web-01").rows >= 2)
    assert report(puller, "web-01").error is None
    told = [record.message for record in caplog.records]
    assert len([one for one in told if "answers 503" in one]) == 1  # an outage is one line
    assert len([one for one in told if "gives rows again" in one]) == 1


def test_one_that_hangs_keeps_nobody_waiting_and_is_not_asked_twice_at_once(exporter: Pages, pulled: Any) -> None:
    exporter.pages |= {"/hang": "hang", "/good": "cpu_percent 7\n"}
    puller, _ = pulled(f"slow={exporter.url}/hang", f"good={exporter.url}/good")
    until(lambda: report(puller, "good").rows >= 5 and "/hang" in exporter.asked)
    assert exporter.asked.count("/hang") == 1
    puller, _ = pulled(f"slow={exporter.url}/hang", timeout=0.05)
    until(lambda: "within" in str(report(puller, "slow").error))


def test_nothing_is_put_in_after_the_end(exporter: Pages, pulled: Any) -> None:
    exporter.pages["/metrics"] = "cpu_percent 7\n"
    puller, fleet = pulled(f"web-01={exporter.url}")
    until(lambda: fleet.fed >= 1)
    puller.close()
    until(lambda: not any(one.name.startswith("pull-") for one in threading.enumerate()))
    assert report(puller, "web-01").rows >= 1


def test_without_targets_there_is_nothing_to_do() -> None:
    fleet = Fleet()
    puller = Puller((), 5, fleet.clock)
    puller.start(fleet.feed)
    assert puller.report() == ()
    puller.close()


def test_targets_are_read_from_the_setting() -> None:
    assert parse_targets(["web-01=http://10.0.0.7:9100", " db=https://h/m?x=1#database "]) == (
        Target("web-01", "http://10.0.0.7:9100/metrics", "generic"),
        Target("db", "https://h/m?x=1", "database"),
    )
    both = parse_targets(["a=http://h/node", "a=http://h/app"])  # two pages of one server
    assert [target.server for target in both] == ["a", "a"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("http://10.0.0.7:9100", "names no server"),
        ("=http://10.0.0.7", "names no server"),
        ("a b=http://10.0.0.7", "names no server"),
        ("web-01=10.0.0.7:9100", "no http or https"),
        ("web-01=file:///etc/passwd", "no http or https"),
        ("web-01=http://user:secret@10.0.0.7", "password"),
        ("web-01=http://10.0.0.7#Web Server", "no profile"),
    ],
)
def test_a_target_that_is_none_is_refused(text: str, told: str) -> None:
    with pytest.raises(NeedsHuman, match=told) as raised:
        parse_targets([text])
    assert "secret" not in str(raised.value)


def test_the_same_page_twice_is_refused() -> None:
    with pytest.raises(NeedsHuman, match="twice"):
        parse_targets(["a=http://h", "a=http://h/metrics"])
