"""`forecastd fleet simulate` as a user types it: against a running fleet, and where there is none."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests


@pytest.fixture
def fleet(root: Path, environment: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """The address of a fleet that runs with the embedded model, 30 times as fast as time goes."""
    words = ["fleet", "serve", "--port", "0", "--speed", "30"]
    with (tmp_path / "said").open("w") as said:
        running = subprocess.Popen(
            [sys.executable, str(root / "submit_prediction.py"), *words],
            cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
        )  # fmt: skip
        try:
            yield wait_for(lambda: re.search(r"http://[\d.]+:\d+(?= )", (tmp_path / "said").read_text()), running)[0]
        finally:
            running.terminate()
            assert running.wait(60) == 0, (tmp_path / "said").read_text()


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[Any]) -> Any:
    never = threading.Event()
    for _ in range(1_200):
        result = condition()
        if result:
            return result
        assert process.poll() is None, "it has ended"
        never.wait(0.1)
    return pytest.fail("not within two minutes")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--url", "127.0.0.1:8080"), 5, "not a fleet URL"),
        (("--bad", "2"), 2, "--bad"),
        (("--scenario", "calm"), 2, "calm"),
        (("--servers", "0"), 2, "--servers"),
        (("--speed", "0"), 2, "--speed"),
        (("--format", "xml"), 2, "xml"),
    ],
)
def test_simulate_invalid_input_prints_one_line(
    command: Any, arguments: tuple[str, ...], code: int, message: str
) -> None:
    done = command("fleet", "simulate", *arguments)
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert "Traceback" not in done.err


def test_simulate_no_listener_exits_with_6(command: Any, unused_url: str) -> None:
    done = command("fleet", "simulate", "--url", unused_url, "--patience", "0.2")
    assert done.code == 6
    assert "Connection refused" in done.err
    assert "Gave up after 0.2 s" in done.err
    finished = command("fleet", "simulate", "--url", unused_url, "--patience", "0.2", "--json")
    assert (finished.code, finished.document["exit_code"]) == (6, 6)


def test_simulate_bad_rows_are_refused_as_expected(command: Any, fleet: str) -> None:
    # Half of the window: a busy machine has the other half before the rows are too old.
    done = command("fleet", "simulate", "--url", fleet, "--backfill", "14", "--duration", "0", "--bad", "0.1", "--json")
    assert done.code == 0, done.err
    assert done.document["as_expected"]
    assert done.document["ticks"] == 14 * 12
    assert done.document["accepted"] + done.document["before_window"] == 20 * 14 * 12
    assert len(done.document["bad"]) > 10
    again = command("fleet", "simulate", "--url", fleet, "--backfill", "1", "--duration", "2", "--format", "ndjson")
    assert again.code == 0, again.err
    assert "as expected" in again.out
    refused = command("fleet", "simulate", "--url", fleet, "--speed", "1")
    assert refused.code == 5
    assert "runs at speed 30" in refused.err


def test_simulate_ctrl_c_prints_result(root: Path, environment: dict[str, str], tmp_path: Path, fleet: str) -> None:
    words = ["fleet", "simulate", "--url", fleet, "--scenario", "cascade", "--join-leave", "5", "--json"]
    running = subprocess.Popen(
        [sys.executable, str(root / "submit_prediction.py"), *words],
        cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(lambda: rows_taken(fleet), running)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    document = json.loads(out)
    assert document["as_expected"]
    assert document["rows"] > 0


def rows_taken(url: str) -> int:
    return int(requests.get(f"{url}/status", timeout=30).json()["ingest"]["accepted"])
