"""Senders and readers for the ingest benchmark: `python -m benchmarks.fleet.load ROLE PLAN`; prints JSON.

The bodies of a sender are built in advance; only the times of the records are set when they are sent.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

from forecastd.fleet.contract import METRICS

ALL_INTERVAL, ONE_INTERVAL = 0.2, 0.02  # seconds between two reads of all servers, and of one
TIME_PLACEHOLDER = b"1000000000.000"  # replaced by a record's time
TIMEOUT_SECONDS = 60.0


@dataclass
class LoadConnection:
    """A persistent connection and its results."""

    port: int
    latencies: list[float] = field(default_factory=list)
    failures: int = 0
    first_failure: str = ""
    _http: http.client.HTTPConnection | None = None

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """The body of the response; empty after a failure, which is counted."""
        started = time.perf_counter()
        try:
            if self._http is None:
                self._http = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_SECONDS)
            self._http.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            response = self._http.getresponse()
            text, status = response.read(), str(response.status)
        except (OSError, http.client.HTTPException) as error:
            text, status, self._http = b"", repr(error), None
        self.latencies.append(time.perf_counter() - started)
        if status != "200":
            self.failures, self.first_failure = (
                self.failures + 1,
                self.first_failure or f"{status}: {text[:200].decode()}",
            )
            return b""
        return text


def send(plan: dict[str, Any]) -> dict[str, Any]:
    """Send feeds over some connections, at a rate or as fast as possible."""
    count, senders = plan["records"], plan["senders"]
    pause = senders * count / plan["rate"] if plan["rate"] else 0.0

    def sender(index: int) -> tuple[LoadConnection, int]:
        connection, accepted = LoadConnection(plan["port"]), 0
        template = feed_template(plan["servers"], plan["profiles"], count, index)

        def once() -> None:
            nonlocal accepted
            stamp = b"%.3f" % (time.time() - 0.01)
            answer = connection.request("POST", "/feed", template.replace(TIME_PLACEHOLDER, stamp))
            accepted += json.loads(answer)["accepted"] if answer else 0

        repeat(once, plan["seconds"], pause, pause * index / senders)
        return connection, accepted

    started = time.perf_counter()
    with ThreadPoolExecutor(senders) as pool:
        results = list(pool.map(sender, range(senders)))
    seconds = time.perf_counter() - started
    latencies = [latency for connection, _ in results for latency in connection.latencies]
    return {
        **failure_summary([connection for connection, _ in results]), "seconds": seconds, "feeds": len(latencies),
        "records": count * len(latencies), "accepted": sum(accepted for _, accepted in results), "latencies": latencies,
    }  # fmt: skip


def read(plan: dict[str, Any]) -> dict[str, Any]:
    """Read the forecast of all servers occasionally, and of one server often."""
    all_servers, single_server = LoadConnection(plan["port"]), LoadConnection(plan["port"])
    sizes: list[int] = []
    paths = cycle(f"/forecast/{server}" for server in plan["servers"])

    def read_all() -> None:
        sizes.append(len(all_servers.request("GET", "/forecast")))

    def read_one() -> None:
        single_server.request("GET", next(paths))

    with ThreadPoolExecutor(2) as pool:
        readers = [
            pool.submit(repeat, work, plan["seconds"], pause)
            for work, pause in ((read_all, ALL_INTERVAL), (read_one, ONE_INTERVAL))
        ]
    for reader in readers:
        reader.result()
    return {
        **failure_summary([all_servers, single_server]),
        "all": all_servers.latencies,
        "one": single_server.latencies,
        "megabytes": max(sizes) / 1e6,
    }


def repeat(work: Callable[[], object], seconds: float, pause: float, delay: float = 0.0) -> None:
    """Call `work` for `seconds`, at most every `pause` seconds, after `delay`."""
    idle = threading.Event()
    begin = time.perf_counter() + delay
    end, next_time = begin + seconds, begin
    while (now := time.perf_counter()) < end:
        if now < next_time:
            idle.wait(min(next_time, end) - now)
            continue
        work()
        next_time = max(next_time + pause, now) if pause else now


def feed_template(servers: list[str], profiles: list[str], count: int, sender: int) -> bytes:
    """A feed of `count` records with placeholders for their times.

    The last digits of a time identify sender and server. Each sender starts with another server.
    """
    records = []
    for row in range(count):
        index = (sender * count + row) % len(servers)
        metrics = {
            metric.name: round(20 + (7 * row + 3 * column) % 50 + 0.123 * sender, 3)
            for column, metric in enumerate(METRICS)
        }
        name, profile = servers[index].encode(), profiles[index].encode()
        stamp = b"%s%d%d" % (TIME_PLACEHOLDER, sender, row // len(servers))
        records.append(
            b'{"server":"%s","time":%s,"profile":"%s","metrics":%s}'
            % (name, stamp, profile, json.dumps(metrics).encode())
        )
    return b'{"version":1,"records":[' + b",".join(records) + b"]}"


def failure_summary(connections: list[LoadConnection]) -> dict[str, Any]:
    """The number of failed requests, and the first failure."""
    return {
        "failures": sum(connection.failures for connection in connections),
        "first": next((connection.first_failure for connection in connections if connection.first_failure), ""),
    }


if __name__ == "__main__":
    role, plan_text = sys.argv[1:]
    print(json.dumps({"send": send, "read": read}[role](json.loads(plan_text))))
