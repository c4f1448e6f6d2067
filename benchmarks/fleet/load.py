"""Senders and readers of the benchmark of ingest: `python -m benchmarks.fleet.load ROLE PLAN`, both as JSON on stdout.

A sender's bodies are made beforehand but for their records' times, which are of the moment they are sent.
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

EVERY_ALL, EVERY_ONE = 0.2, 0.02  # seconds between two readings of all servers, and of one
MARK = b"1000000000.000"  # where a record's time stands in a body
TIMEOUT = 60.0


@dataclass
class Connection:
    """One connection that is kept, and what came over it."""

    port: int
    latencies: list[float] = field(default_factory=list)
    failures: int = 0
    first: str = ""
    _http: http.client.HTTPConnection | None = None

    def ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """The body of the answer; empty when it failed, which is counted."""
        began = time.perf_counter()
        try:
            if self._http is None:
                self._http = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
            self._http.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            answer = self._http.getresponse()
            text, status = answer.read(), str(answer.status)
        except (OSError, http.client.HTTPException) as error:
            text, status, self._http = b"", repr(error), None
        self.latencies.append(time.perf_counter() - began)
        if status != "200":
            self.failures, self.first = self.failures + 1, self.first or f"{status}: {text[:200].decode()}"
            return b""
        return text


def send(plan: dict[str, Any]) -> dict[str, Any]:
    """Feeds over some connections, at a rate or as fast as they are answered."""
    count, senders = plan["records"], plan["senders"]
    pause = senders * count / plan["rate"] if plan["rate"] else 0.0

    def sender(at: int) -> tuple[Connection, int]:
        connection, accepted = Connection(plan["port"]), 0
        template = body(plan["servers"], plan["profiles"], count, at)

        def once() -> None:
            nonlocal accepted
            stamp = b"%.3f" % (time.time() - 0.01)
            answer = connection.ask("POST", "/feed", template.replace(MARK, stamp))
            accepted += json.loads(answer)["accepted"] if answer else 0

        repeat(once, plan["seconds"], pause, pause * at / senders)
        return connection, accepted

    began = time.perf_counter()
    with ThreadPoolExecutor(senders) as pool:
        found = list(pool.map(sender, range(senders)))
    seconds = time.perf_counter() - began
    latencies = [one for connection, _ in found for one in connection.latencies]
    return {
        **troubles([connection for connection, _ in found]), "seconds": seconds, "feeds": len(latencies),
        "records": count * len(latencies), "accepted": sum(accepted for _, accepted in found), "latencies": latencies,
    }  # fmt: skip


def read(plan: dict[str, Any]) -> dict[str, Any]:
    """Every server's forecast now and then, and one server's often."""
    every, one = Connection(plan["port"]), Connection(plan["port"])
    sizes: list[int] = []
    paths = cycle(f"/forecast/{server}" for server in plan["servers"])

    def read_all() -> None:
        sizes.append(len(every.ask("GET", "/forecast")))

    def read_one() -> None:
        one.ask("GET", next(paths))

    with ThreadPoolExecutor(2) as pool:
        readers = [
            pool.submit(repeat, work, plan["seconds"], pause)
            for work, pause in ((read_all, EVERY_ALL), (read_one, EVERY_ONE))
        ]
    for reader in readers:
        reader.result()
    return {**troubles([every, one]), "all": every.latencies, "one": one.latencies, "megabytes": max(sizes) / 1e6}


def repeat(work: Callable[[], object], seconds: float, pause: float, later: float = 0.0) -> None:
    """Work for so many seconds, every `pause` of them where it is that quick."""
    never = threading.Event()
    begin = time.perf_counter() + later
    end, due = begin + seconds, begin
    while (now := time.perf_counter()) < end:
        if now < due:
            never.wait(min(due, end) - now)
            continue
        work()
        due = max(due + pause, now) if pause else now


def body(servers: list[str], profiles: list[str], count: int, at: int) -> bytes:
    """A feed of `count` records with marks for their times, whose last digits are the sender's and a server's own: servers in
    turns, beginning elsewhere for each sender."""
    records = []
    for row in range(count):
        place = (at * count + row) % len(servers)
        told = {
            metric.name: round(20 + (7 * row + 3 * column) % 50 + 0.123 * at, 3)
            for column, metric in enumerate(METRICS)
        }
        who, kind = servers[place].encode(), profiles[place].encode()
        when = b"%s%d%d" % (MARK, at, row // len(servers))
        records.append(
            b'{"server":"%s","time":%s,"profile":"%s","metrics":%s}' % (who, when, kind, json.dumps(told).encode())
        )
    return b'{"version":1,"records":[' + b",".join(records) + b"]}"


def troubles(connections: list[Connection]) -> dict[str, Any]:
    """How many requests failed, and how the first one did."""
    return {
        "failures": sum(one.failures for one in connections),
        "first": next((one.first for one in connections if one.first), ""),
    }


if __name__ == "__main__":
    role, given = sys.argv[1:]
    print(json.dumps({"send": send, "read": read}[role](json.loads(given))))
