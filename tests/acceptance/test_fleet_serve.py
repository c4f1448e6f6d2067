"""`fleet serve` as a user starts and stops it: simulated servers, a real model process, keys, and refusals."""

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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import httpx
import psutil
import pytest

from forecastd.fleet.contract import METRICS
from models.bundle.bundle import write_bundle
from tests.support.bundles import model_metrics, random_fleet_bundle

WAIT = 120.0
KEY = "a-key-of-good-length"


class ServeProcess:
    """A running `fleet serve` and its output."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.output = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.output += line

    @property
    def url(self) -> str:
        """The URL from its log."""
        match = self.wait_for(lambda: re.search(r"http://127\.0\.0\.1:\d+", self.output))
        return str(match.group())

    def wait_for(self, condition: Callable[[], Any]) -> Any:
        """The result of the condition as soon as it is true."""
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            if result := condition():
                return result
            if self.process.poll() is not None:
                self._reader.join(WAIT)
                if result := condition():
                    return result
                break
            threading.Event().wait(0.02)
        raise AssertionError(f"the condition did not become true; output:\n{self.output}")

    def get(self, path: str, status: int = 200) -> Any:
        """The JSON body of the first response with this status."""
        with httpx.Client(base_url=self.url, trust_env=False, timeout=WAIT) as client:

            def answered() -> httpx.Response | None:
                try:
                    answer = client.get(path)
                except httpx.TransportError:
                    return None
                return answer if answer.status_code == status else None

            return self.wait_for(answered).json()

    def stop(self, number: signal.Signals) -> int:
        """Send a signal and wait for the end; returns the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(WAIT)
        self._reader.join(WAIT)
        return code


class StartServe(Protocol):
    def __call__(self, *arguments: str, **environment: str) -> ServeProcess: ...


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of an untrained network: its forecasts mean nothing."""
    return make_bundle(tmp_path / "untrained")


def make_bundle(path: Path, *, step: int = 5, name: str = "untrained") -> Path:
    bundle = random_fleet_bundle(model_metrics(METRICS), encoder_length=32, horizon=12, name=name, step=step)
    write_bundle(path, bundle)
    return path


@pytest.fixture
def start(root: Path, tmp_path: Path, environment: dict[str, str], bundle: Path) -> Iterator[StartServe]:
    """Start `fleet serve` on a free port, with the untrained bundle and a state directory of its own."""
    running: list[ServeProcess] = []

    def run(*arguments: str, **more: str) -> ServeProcess:
        command = [sys.executable, str(root / "submit_prediction.py"), "fleet", "serve", *arguments]
        process = subprocess.Popen(
            command, cwd=tmp_path, env={**environment, "FLEET_PORT": "0", "FLEET_MODEL": str(bundle), **more},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        running.append(ServeProcess(process))
        return running[-1]

    yield run
    for running_process in running:
        if running_process.process.poll() is None:
            running_process.process.kill()
            running_process.process.wait(WAIT)
        assert running_process.process.stderr is not None
        running_process.process.stderr.close()


def child_pids(pid: int) -> list[int]:
    """The child processes of this one."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(process) for process in listed.split()]


def evaluated(status: Any) -> Any:
    """The status once its servers are evaluated, shortly after the first forecast."""
    return status if status["servers"]["ready"] else None


def test_serve_demo_forecasts_and_leaves_no_files(start: StartServe, tmp_path: Path) -> None:
    running = start("--demo", "--servers", "5")
    forecast = running.get("/forecast")
    assert forecast["count"] == 5
    assert {pid["model"] for pid in forecast["forecasts"]} == {"tft"}
    status = running.wait_for(lambda: evaluated(running.get("/status")))
    assert status["synthetic"] is True
    assert status["servers"] == {"total": 5, "ready": 5, "warming": 0, "silent": 0}
    assert running.get("/healthz")["ok"] is True
    assert running.get("/servers")["count"] == 5
    assert "simulated" in running.output
    running.process.send_signal(signal.SIGUSR1)
    running.wait_for(lambda: "stacks of all threads" in running.output)
    started = psutil.Process(running.process.pid).children(recursive=True)
    assert running.stop(signal.SIGTERM) == 0
    assert "Traceback" not in running.output
    assert "serves a fleet" in (tmp_path / "logs" / "fleet.log").read_text()
    assert not (tmp_path / "state" / "fleet").exists()
    assert psutil.wait_procs(started, timeout=WAIT)[1] == []


def test_serve_ctrl_c_exits_130_with_hung_model(start: StartServe) -> None:
    running = start("--demo")
    running.get("/forecast")
    for child in child_pids(running.process.pid):
        os.kill(child, signal.SIGSTOP)
    assert running.stop(signal.SIGINT) == 130


def test_serve_can_be_stopped_during_start(start: StartServe) -> None:
    running = start("--demo")
    running.wait_for(lambda: "serves a fleet" in running.output)
    assert running.stop(signal.SIGTERM) == 0


def test_serve_rehearsal_keeps_rows_after_kill(start: StartServe, tmp_path: Path) -> None:
    rehearsal = ("--speed", "20", "--since", datetime.now(UTC).isoformat())
    running = start(*rehearsal)
    with httpx.Client(base_url=running.url, trust_env=False, timeout=WAIT) as client:

        def is_ready() -> bool:
            now = client.get("/status").json()["tick"]["newest"] * 5 + 5
            metrics = {metric.name: 20.0 for metric in METRICS}
            record = {"server": "web-01", "time": now, "profile": "web", "metrics": metrics}
            assert client.post("/feed", json={"version": 1, "records": [record]}).status_code == 200
            return bool(client.get("/servers?state=ready").json()["count"])

        running.wait_for(is_ready)
        before = client.get("/status").json()
    running.process.kill()
    running.process.wait(WAIT)
    again = start(*rehearsal)
    after = again.get("/status")
    assert after["now"] > before["now"]
    assert after["window"]["ticks"] >= before["window"]["ticks"]
    assert after["window"]["damaged"] == 0
    assert "loaded the window: " in again.output
    assert again.stop(signal.SIGTERM) == 0
    assert (tmp_path / "state" / "rehearsal" / "fleet" / "window.sqlite").exists()
    assert not (tmp_path / "state" / "fleet").exists()


def test_serve_reloads_model_by_name(start: StartServe, tmp_path: Path) -> None:
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
        running.wait_for(lambda: client.get("/forecast/web-01").json()["bundle"] == "second")
    assert running.stop(signal.SIGTERM) == 0


def test_serve_public_address_requires_keys(start: StartServe, tmp_path: Path) -> None:
    refused = start("--host", "0.0.0.0")  # noqa: S104
    assert refused.process.wait(WAIT) == 5
    refused.wait_for(lambda: "FLEET_API_KEYS_FILE" in refused.output)
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    keys.chmod(0o644)
    readable = start("--host", "0.0.0.0", FLEET_API_KEYS_FILE=str(keys))  # noqa: S104
    assert readable.process.wait(WAIT) == 5
    readable.wait_for(lambda: "chmod 600" in readable.output)
    keys.chmod(0o600)
    running = start("--demo", FLEET_API_KEYS_FILE=str(keys), LOG_FORMAT="json")
    running.get("/healthz")
    assert set(running.get("/forecast", 401)) == {"error", "fix"}
    answer = httpx.get(f"{running.url}/status", headers={"X-API-Key": KEY}, trust_env=False, timeout=WAIT)
    assert answer.status_code == 200
    assert running.stop(signal.SIGTERM) == 0
    assert KEY not in running.output
    assert all(json.loads(line) for line in running.output.splitlines())


def test_serve_port_in_use_is_reported(start: StartServe) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound_socket:
        running = start("--demo", "--port", str(bound_socket.getsockname()[1]))
        assert running.process.wait(WAIT) == 5
        running.wait_for(lambda: "Choose another --port" in running.output)


def test_serve_locked_state_is_reported(start: StartServe) -> None:
    first = start()
    first.get("/status")
    second = start()
    assert second.process.wait(WAIT) == 5
    second.wait_for(lambda: "Another forecastd fleet" in second.output)
    assert first.stop(signal.SIGTERM) == 0


def test_serve_model_of_other_step_is_reported(start: StartServe) -> None:
    running = start("--demo", "--step", "7")
    assert running.process.wait(WAIT) == 5
    running.wait_for(lambda: "7 s" in running.output)
    assert "Traceback" not in running.output


def test_serve_unwritable_state_is_reported(start: StartServe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    running = start(STATE_DIR=str(tmp_path / "file"), LOG_DIR=str(tmp_path / "logs"))
    assert running.process.wait(WAIT) == 5
    running.wait_for(lambda: "STATE_DIR" in running.output)


def test_serve_notifies_service_manager(start: StartServe, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("sd") / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(WAIT)
        running = start("--demo", NOTIFY_SOCKET=str(path), WATCHDOG_USEC="1000000")
        messages = ""
        while "WATCHDOG=1" not in messages:
            messages += manager.recv(4096).decode() + "\n"
        assert "READY=1" in messages
        assert running.stop(signal.SIGTERM) == 0
        while "STOPPING=1" not in messages:
            messages += manager.recv(4096).decode() + "\n"
