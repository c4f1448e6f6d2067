"""`fleet serve`, as a user starts and ends it: made-up servers, a real model's process, keys, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import httpx
import numpy as np
import psutil
import pytest

from forecastd.fleet.contract import METRICS
from models.fleet.bundle import FleetBundle, FleetCanary, canary_input, write_fleet_bundle
from models.fleet.folded import Fused
from models.fleet.manifest import FleetManifest, Metric, fleet_reals
from models.manifest import Network
from models.records import Interval, Training
from models.shapes import expected_shapes

WAIT = 120.0
KEY = "a-key-of-good-length"


class Running:
    """A `fleet serve` that was started, and what it says."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.said = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line

    @property
    def url(self) -> str:
        """Where it serves, as it says itself."""
        found = self.until(lambda: re.search(r"http://127\.0\.0\.1:\d+", self.said))
        return str(found.group())

    def until(self, condition: Callable[[], Any]) -> Any:
        """What the condition gives as soon as that is true."""
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            if found := condition():
                return found
            if self.process.poll() is not None:
                self._reader.join(WAIT)
                if found := condition():
                    return found
                break
            threading.Event().wait(0.02)
        raise AssertionError(f"what was waited for did not come; it said:\n{self.said}")

    def get(self, path: str, status: int = 200) -> Any:
        """What it answers, once it answers with this status."""
        with httpx.Client(base_url=self.url, trust_env=False, timeout=WAIT) as client:

            def answered() -> httpx.Response | None:
                try:
                    answer = client.get(path)
                except httpx.TransportError:
                    return None
                return answer if answer.status_code == status else None

            return self.until(answered).json()

    def end(self, number: signal.Signals) -> int:
        """Send a signal and wait for the end; the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(WAIT)
        self._reader.join(WAIT)
        return code


class Start(Protocol):
    def __call__(self, *arguments: str, **environment: str) -> Running: ...


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of a network that nobody trained: it forecasts, and what it says means nothing."""
    return make_bundle(tmp_path / "untrained")


def make_bundle(path: Path, *, step: int = 5, name: str = "untrained") -> Path:
    chance = np.random.default_rng(0)
    metrics = tuple(Metric(one.name, one.unit, one.low, one.high, one.transform) for one in METRICS)
    encoder, decoder = fleet_reals(tuple(one.name for one in metrics), ("day",))
    network = Network(
        hidden_size=8, hidden_continuous_size=4, attention_heads=2, lstm_layers=1, encoder_reals=encoder,
        decoder_reals=decoder, outputs=3, targets=len(metrics), profiles=2, embedding_size=2,
    )  # fmt: skip
    parts = {"train": Interval(0, 600, 1), "validation": Interval(600, 800, 1), "test": Interval(800, 1000, 1)}
    manifest = FleetManifest(
        name=name, metrics=metrics, cycles=("day",), profiles=("other", "web"), groups=("default", "profile:web"),
        step=step, encoder_length=32, encoder_minimum=8, horizon=12, levels=(0.1, 0.5, 0.9), network=network,
        training=Training(0, 1000, 100, "0" * 64, "test", True, 1000, parts, {}), versions={}, scores={}, files={},
    )  # fmt: skip
    weights = {
        part: (0.2 * chance.normal(size=shape)).astype(np.float32) for part, shape in expected_shapes(network).items()
    }
    center = np.array([[5.0 if one.transform == "none" else 1.0 for one in metrics]] * 2, np.float32)
    values = np.clip(chance.normal(40, 10, (2, 32, len(metrics))), 2, 90).astype(np.float32)
    canary = FleetCanary(
        1000, values, np.array([0, 1]), np.array([0, 1]), np.zeros((2, len(metrics), 3, 12), np.float32)
    )
    made = FleetBundle(path, manifest, weights, center, np.ones_like(center), canary)
    canary = replace(canary, quantiles=Fused(made).forecast(canary_input(made)))
    write_fleet_bundle(path, replace(made, canary=canary))
    return path


@pytest.fixture
def start(root: Path, tmp_path: Path, environment: dict[str, str], bundle: Path) -> Iterator[Start]:
    """Start `fleet serve` on a free port, with the untrained bundle and a state of its own."""
    running: list[Running] = []

    def run(*arguments: str, **more: str) -> Running:
        command = [sys.executable, str(root / "submit_prediction.py"), "fleet", "serve", *arguments]
        process = subprocess.Popen(
            command, cwd=tmp_path, env={**environment, "FLEET_PORT": "0", "FLEET_MODEL": str(bundle), **more},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        running.append(Running(process))
        return running[-1]

    yield run
    for one in running:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait(WAIT)
        assert one.process.stderr is not None
        one.process.stderr.close()


def children(pid: int) -> list[int]:
    """The processes that this one has started."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(one) for one in listed.split()]


def judged(status: Any) -> Any:
    """A status once its servers were judged, which comes a moment after their first forecast."""
    return status if status["servers"]["ready"] else None


def test_a_demo_forecasts_at_once_and_leaves_nothing_behind(start: Start, tmp_path: Path) -> None:
    running = start("--demo", "--servers", "5")
    told = running.get("/forecast")
    assert told["count"] == 5
    assert {one["model"] for one in told["forecasts"]} == {"tft"}
    status = running.until(lambda: judged(running.get("/status")))
    assert status["synthetic"] is True
    assert status["servers"] == {"total": 5, "ready": 5, "warming": 0, "silent": 0}
    assert running.get("/healthz")["ok"] is True
    assert running.get("/servers")["count"] == 5
    assert "made up" in running.said
    running.process.send_signal(signal.SIGUSR1)
    running.until(lambda: "the stacks of all threads" in running.said)
    started = psutil.Process(running.process.pid).children(recursive=True)
    assert running.end(signal.SIGTERM) == 0
    assert "Traceback" not in running.said
    assert "serves a fleet" in (tmp_path / "logs" / "fleet.log").read_text()
    assert not (tmp_path / "state" / "fleet").exists()
    assert psutil.wait_procs(started, timeout=WAIT)[1] == []


def test_ctrl_c_ends_it_with_130_also_while_the_model_hangs(start: Start) -> None:
    running = start("--demo")
    running.get("/forecast")
    for child in children(running.process.pid):
        os.kill(child, signal.SIGSTOP)
    assert running.end(signal.SIGINT) == 130


def test_it_can_be_ended_before_it_has_begun(start: Start) -> None:
    running = start("--demo")
    running.until(lambda: "serves a fleet" in running.said)
    assert running.end(signal.SIGTERM) == 0


def test_what_was_sent_is_there_after_a_kill_in_a_rehearsal_that_goes_on(start: Start, tmp_path: Path) -> None:
    rehearsal = ("--speed", "20", "--since", datetime.now(UTC).isoformat())
    running = start(*rehearsal)
    with httpx.Client(base_url=running.url, trust_env=False, timeout=WAIT) as client:

        def is_ready() -> bool:
            now = client.get("/status").json()["tick"]["newest"] * 5 + 5
            metrics = {metric.name: 20.0 for metric in METRICS}
            record = {"server": "web-01", "time": now, "profile": "web", "metrics": metrics}
            assert client.post("/feed", json={"version": 1, "records": [record]}).status_code == 200
            return bool(client.get("/servers?state=ready").json()["count"])

        running.until(is_ready)
        before = client.get("/status").json()
    running.process.kill()
    running.process.wait(WAIT)
    again = start(*rehearsal)
    after = again.get("/status")
    assert after["now"] > before["now"]
    assert after["window"]["ticks"] >= before["window"]["ticks"]
    assert after["window"]["damaged"] == 0
    assert "the window: " in again.said
    assert again.end(signal.SIGTERM) == 0
    assert (tmp_path / "state" / "rehearsal" / "fleet" / "window.sqlite").exists()
    assert not (tmp_path / "state" / "fleet").exists()


def test_another_model_is_loaded_by_name_while_it_runs(start: Start, tmp_path: Path) -> None:
    make_bundle(tmp_path / "models" / "second", name="second")
    make_bundle(tmp_path / "models" / "slow", step=10, name="slow")
    torn = make_bundle(tmp_path / "models" / "torn", name="torn")
    weights = torn / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    running = start("--demo", FLEET_MODELS_DIR=str(tmp_path / "models"))
    assert running.get("/forecast")["forecasts"][0]["bundle"] == "untrained"
    with httpx.Client(base_url=running.url, trust_env=False, timeout=WAIT) as client:
        for name, reason in (("slow", "10 s"), ("torn", "weights"), ("missing", "no model")):
            answer = client.post("/admin/reload-model", json={"name": name})
            assert answer.status_code == 422, answer.text
            assert reason in answer.json()["error"]
        assert client.get("/status").json()["model"]["name"] == "untrained"
        answer = client.post("/admin/reload-model", json={"name": "second"})
        assert answer.status_code == 200, answer.text
        assert answer.json()["old"]["name"] == "untrained"
        running.until(lambda: client.get("/forecast/web-01").json()["bundle"] == "second")
    assert running.end(signal.SIGTERM) == 0


def test_beyond_this_machine_it_starts_with_keys_only_and_asks_for_them(start: Start, tmp_path: Path) -> None:
    refused = start("--host", "0.0.0.0")  # noqa: S104
    assert refused.process.wait(WAIT) == 5
    refused.until(lambda: "FLEET_API_KEYS_FILE" in refused.said)
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    keys.chmod(0o644)
    readable = start("--host", "0.0.0.0", FLEET_API_KEYS_FILE=str(keys))  # noqa: S104
    assert readable.process.wait(WAIT) == 5
    readable.until(lambda: "chmod 600" in readable.said)
    keys.chmod(0o600)
    running = start("--demo", FLEET_API_KEYS_FILE=str(keys), LOG_FORMAT="json")
    running.get("/healthz")
    assert set(running.get("/forecast", 401)) == {"error", "fix"}
    answer = httpx.get(f"{running.url}/status", headers={"X-API-Key": KEY}, trust_env=False, timeout=WAIT)
    assert answer.status_code == 200
    assert running.end(signal.SIGTERM) == 0
    assert KEY not in running.said
    assert all(json.loads(line) for line in running.said.splitlines())


def test_a_port_that_is_taken_is_told(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        running = start("--demo", "--port", str(taken.getsockname()[1]))
        assert running.process.wait(WAIT) == 5
        running.until(lambda: "Choose another --port" in running.said)


def test_a_second_fleet_on_the_same_state_is_told(start: Start) -> None:
    first = start()
    first.get("/status")
    second = start()
    assert second.process.wait(WAIT) == 5
    second.until(lambda: "Another forecastd fleet" in second.said)
    assert first.end(signal.SIGTERM) == 0


def test_a_model_of_another_step_is_told(start: Start) -> None:
    running = start("--demo", "--step", "7")
    assert running.process.wait(WAIT) == 5
    running.until(lambda: "7 s" in running.said)
    assert "Traceback" not in running.said


def test_a_state_that_cannot_be_written_is_told(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    running = start(STATE_DIR=str(tmp_path / "file"), LOG_DIR=str(tmp_path / "logs"))
    assert running.process.wait(WAIT) == 5
    running.until(lambda: "STATE_DIR" in running.said)


def test_a_service_manager_hears_that_it_is_ready_lives_and_ends(
    start: Start, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("sd") / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(WAIT)
        running = start("--demo", NOTIFY_SOCKET=str(path), WATCHDOG_USEC="1000000")
        heard = ""
        while "WATCHDOG=1" not in heard:
            heard += manager.recv(4096).decode() + "\n"
        assert "READY=1" in heard
        assert running.end(signal.SIGTERM) == 0
        while "STOPPING=1" not in heard:
            heard += manager.recv(4096).decode() + "\n"
