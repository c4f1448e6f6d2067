"""How much a running service takes in over HTTP, and how soon it answers meanwhile, with a forecast made at each tick.

The window is full from the start, so every tick has a true forecast of all servers. Senders and readers are processes of
their own on the same machine; what they cost is part of what is measured.
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

from benchmarks.figures import Count, Figure
from benchmarks.fleet.randombundle import bundle_m
from benchmarks.fleet.serving import History, Service, serve
from benchmarks.processes import ROOT, python

SERVERS = 200
RECORDS = 500  # of a feed
SENDERS = 3  # connections that are kept
CALM = 2000.0  # records a second of a load that is far from the limit: 10,000 servers that report every 5 s


def run(*, quick: bool, seed: int) -> Iterator[Figure | Count]:
    """As much as goes in, then a calm load; quick: for some seconds each."""
    seconds = 6.0 if quick else 40.0
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        path = place / "state" / "fleet" / "window.sqlite"
        path.parent.mkdir(parents=True)
        history = History(path, SERVERS, 360, seed)
        history.catch_up()
        with serve(place, bundle_m()) as service:
            service.wait_for("/forecast?limit=1")
            for what, rate in (("as much as goes in", 0.0), (f"{CALM:,.0f} records a second", CALM)):
                yield loaded(service, history, seconds, what, rate)


def loaded(service: Service, history: History, seconds: float, what: str, rate: float) -> Count:
    """What senders and readers saw in so many seconds. `rate`: records a second in all, 0 for as many as are taken."""
    before = service.status()
    plan = {"port": service.port, "seconds": seconds, "rate": rate, "servers": history.simulator.names,
            "profiles": history.simulator.profiles, "records": RECORDS, "senders": SENDERS}  # fmt: skip
    children = [child(role, plan) for role in ("send", "read")]
    sent, read = (told(one) for one in children)
    after = service.status()
    ticks = after["tick"]["newest"] - before["tick"]["newest"]
    taken = after["ingest"]["accepted"] - before["ingest"]["accepted"]
    forecasts = ticks - (after["forecast"]["skipped_ticks"] - before["forecast"]["skipped_ticks"])
    broken = [
        f"{one['failures']} requests failed, the first with {one['first']}" for one in (sent, read) if one["failures"]
    ]
    if taken != sent["accepted"] or sent["accepted"] != sent["records"]:
        broken.append(f"{sent['records']} records were sent, {sent['accepted']} answered for and {taken} taken")
    if not ticks or after["forecast"]["tft"] < SERVERS:
        broken.append(f"after {ticks} ticks {after['forecast']['tft']} servers had a forecast by the model")
    return Count(
        f"{SERVERS} servers, feeds of {RECORDS} over {SENDERS} kept connections, {what}, {seconds:g} s",
        {
            "records taken a second": round(sent["records"] / sent["seconds"]),
            "feeds": sent["feeds"], **percentiles("POST /feed", sent["latencies"]),
            **percentiles("GET /forecast, all servers", read["all"]), **percentiles("GET /forecast/{server}", read["one"]),
            "MB of GET /forecast": round(read["megabytes"], 1), "ticks": ticks, "forecasts of all servers": forecasts,
            "the last forecast took, s": after["forecast"]["seconds"],
        },
        "no request fails, every record is taken, and all servers have a true forecast",
        tuple(broken),
    )  # fmt: skip


def child(role: str, plan: dict[str, Any]) -> subprocess.Popen[bytes]:
    """A process that sends, or one that reads."""
    line = python("-m", "benchmarks.fleet.load", role, json.dumps(plan))
    return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=sys.stderr)


def told(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """What it saw."""
    out, _ = process.communicate()
    assert process.returncode == 0, "a process that sends or reads ended with an error"
    found: dict[str, Any] = json.loads(out)
    return found


def percentiles(what: str, seconds: list[float]) -> dict[str, float]:
    """Median and 99th percentile of some latencies, in ms."""
    return {f"{what}, p{at}, ms": round(1e3 * float(np.percentile(seconds, at)), 2) for at in (50, 99)}
