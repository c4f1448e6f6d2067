"""Ingest throughput over HTTP, and response times under load, with a forecast at each tick.

The window is full from the start, so every tick has a model forecast of all servers. Senders and readers are separate
processes on the same machine; their cost is part of the measurement.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Figure, PremiseCount
from benchmarks.fleet.randombundle import bundle_m
from benchmarks.fleet.serving import ServiceProcess, StoredHistory, serve
from benchmarks.processes import ROOT, python

SERVERS = 200
RECORDS_PER_FEED = 500
SENDERS = 3  # persistent connections
CALM_RATE = 2000.0  # records per second, a moderate load: 10,000 servers that report every 5 s


def run(*, quick: bool, seed: int) -> Iterator[Figure | PremiseCount]:
    """The maximum rate, then a moderate load; quick: for a few seconds each."""
    seconds = 6.0 if quick else 40.0
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        path = directory / "state" / "fleet" / "window.sqlite"
        path.parent.mkdir(parents=True)
        history = StoredHistory(path, SERVERS, 360, seed)
        history.catch_up()
        with serve(directory, bundle_m()) as service:
            service.wait_for("/forecast?limit=1")
            for label, rate in (("maximum rate", 0.0), (f"{CALM_RATE:,.0f} records/s", CALM_RATE)):
                yield measure_load(service, history, seconds, label, rate)


def measure_load(
    service: ServiceProcess, history: StoredHistory, seconds: float, label: str, rate: float
) -> PremiseCount:
    """The results of senders and readers in so many seconds. `rate`: records per second in total, 0 for the maximum."""
    before = service.status()
    plan = {"port": service.port, "seconds": seconds, "rate": rate, "servers": history.simulator.names,
            "profiles": history.simulator.profiles, "records": RECORDS_PER_FEED, "senders": SENDERS}  # fmt: skip
    children = [start_client(role, plan) for role in ("send", "read")]
    send_result, read_result = (client_result(process) for process in children)
    after = service.status()
    ticks = after["tick"]["newest"] - before["tick"]["newest"]
    accepted = after["ingest"]["accepted"] - before["ingest"]["accepted"]
    forecasts = ticks - (after["forecast"]["skipped_ticks"] - before["forecast"]["skipped_ticks"])
    failures = [
        f"{process['failures']} requests failed, the first with {process['first']}"
        for process in (send_result, read_result)
        if process["failures"]
    ]
    if accepted != send_result["accepted"] or send_result["accepted"] != send_result["records"]:
        failures.append(
            f"{send_result['records']} records were sent, {send_result['accepted']} acknowledged and {accepted} stored"
        )
    if not ticks or after["forecast"]["tft"] < SERVERS:
        failures.append(f"after {ticks} ticks {after['forecast']['tft']} servers had a forecast by the model")
    return PremiseCount(
        f"{SERVERS} servers, feeds of {RECORDS_PER_FEED} over {SENDERS} connections, {label}, {seconds:g} s",
        {
            "records per second": round(send_result["records"] / send_result["seconds"]),
            "feeds": send_result["feeds"], **percentiles("POST /feed", send_result["latencies"]),
            **percentiles("GET /forecast, all servers", read_result["all"]),
            **percentiles("GET /forecast/{server}", read_result["one"]),
            "MB of GET /forecast": round(read_result["megabytes"], 1), "ticks": ticks, "forecasts of all servers": forecasts,
            "duration of the last forecast, s": after["forecast"]["seconds"],
        },
        "no request fails, every record is accepted, and all servers have a model forecast",
        tuple(failures),
    )  # fmt: skip


def start_client(role: str, plan: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Start a sender or reader process."""
    line = python("-m", "benchmarks.fleet.load", role, json.dumps(plan))
    return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=sys.stderr)


def client_result(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The result that the process printed."""
    out, _ = process.communicate()
    assert process.returncode == 0, "a sender or reader failed"
    result: dict[str, Any] = json.loads(out)
    return result


def percentiles(label: str, seconds: list[float]) -> dict[str, float]:
    """Median and 99th percentile of latencies, in ms."""
    return {
        f"{label}, p{percentile}, ms": round(1e3 * float(np.percentile(seconds, percentile)), 2)
        for percentile in (50, 99)
    }
