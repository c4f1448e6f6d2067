"""`forecastd fleet status` and `forecastd fleet top` against healthy, unhealthy, protected and missing fleets."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from tests.support.commands import Command
from tests.support.terminal import TerminalReader

PATIENCE = 60.0  # seconds that a busy machine may take
KEY = "0123456789abcdef-first"
STATUS: dict[str, Any] = {
    "version": "0.1.0", "now": "2026-09-21T14:13:20Z", "step_seconds": 5, "health": {"ok": True, "reasons": []},
    "model": {"name": "fleet-demo", "horizon_steps": 96}, "tick": {"newest": 5, "age_seconds": 1.0},
    "forecast": {"made_at": "2026-09-21T14:13:18Z", "age_seconds": 2.0}, "servers": {"total": 2, "ready": 2},
}  # fmt: skip
RISK: dict[str, Any] = {
    "summary": {"servers": 2, "counts": {"critical": 1, "ok": 1}, "incident_probability": 0.9},
    "servers": [{"server": "db-01", "score": 91.0, "level": "critical", "minutes_ahead": 6.0, "quantile_ahead": 0.5,
                 "reasons": ["memory 91 % now"], "current": {"memory_percent": 91.0}}],
}  # fmt: skip
ALERTS: dict[str, Any] = {"open": [{"severity": "critical", "message": "db-01: memory at 96 %"}], "recent": []}
FORECAST: dict[str, Any] = {
    "forecasts": [{"server": "db-01", "metrics": {"memory_percent": {"0.5": [91.0, 96.0], "0.9": [92.0, 98.0]}}}]
}


@pytest.fixture
def fleet(httpserver: HTTPServer) -> HTTPServer:
    """A service that answers as a fleet does."""
    for path, document in {"/status": STATUS, "/risk": RISK, "/alerts": ALERTS, "/forecast": FORECAST}.items():
        httpserver.expect_request(path).respond_with_json(document)
    return httpserver


def url_option(server: HTTPServer) -> list[str]:
    return ["--url", server.url_for("")]


def test_status_prints_screen(command: Command, fleet: HTTPServer) -> None:
    done = command("fleet", "status", *url_option(fleet))
    assert (done.code, done.err) == (0, "")
    assert "health     good" in done.out.splitlines()
    assert "worst       91 db-01 memory 91 % now" in done.out.splitlines()
    assert max(map(len, done.out.splitlines())) <= 80


def test_status_json_is_service_response(command: Command, fleet: HTTPServer) -> None:
    done = command("fleet", "status", "--json", *url_option(fleet))
    assert (done.code, done.err) == (0, "")
    assert done.document == {"status": STATUS, "risk": RISK, "alerts": ALERTS, "exit_code": 0}


@pytest.mark.parametrize("option", [(), ("--json",)])
def test_status_unhealthy_exits_with_6(command: Command, httpserver: HTTPServer, option: tuple[str, ...]) -> None:
    unhealthy = {**STATUS, "health": {"ok": False, "reasons": ["the ticker has stopped"]}}
    httpserver.expect_request("/status").respond_with_json(unhealthy)
    httpserver.expect_request("/risk").respond_with_json(RISK)
    httpserver.expect_request("/alerts").respond_with_json(ALERTS)
    done = command("fleet", "status", *url_option(httpserver), *option)
    assert done.code == 6
    assert "the ticker has stopped" in done.out


@pytest.mark.parametrize("name", ["status", "top"])
def test_no_fleet_exits_with_3(command: Command, unused_url: str, name: str) -> None:
    done = command("fleet", name, "--url", unused_url)
    assert (done.code, done.out) == (3, "")
    assert "No fleet is running at 127.0.0.1" in done.err
    assert "forecastd fleet serve" in done.err
    assert len(done.err.splitlines()) == 1
    if name == "status":
        assert command("fleet", name, "--json", "--url", unused_url).document["exit_code"] == 3


def test_status_default_url_follows_settings(command: Command, fleet: HTTPServer) -> None:
    assert command("fleet", "status", FLEET_PORT=str(fleet.port), FLEET_HOST="::").code == 0
    assert command("fleet", "status", FLEET_PORT=str(fleet.port), TOPIC_ID="none").code == 0


@pytest.fixture
def protected_fleet(httpserver: HTTPServer) -> HTTPServer:
    """A fleet that asks for the key."""

    def answer(request: Request) -> Response:
        document = {"/status": STATUS, "/risk": RISK, "/alerts": ALERTS, "/forecast": FORECAST}[request.path]
        if request.headers.get("X-API-Key") != KEY:
            return Response('{"error": "The API key is unknown.", "fix": "Send one as X-API-Key."}', 401)
        return Response(json.dumps(document), 200, content_type="application/json")

    for path in ("/status", "/risk", "/alerts", "/forecast"):
        httpserver.expect_request(path).respond_with_handler(answer)
    return httpserver


@pytest.mark.parametrize("name", ["status", "top"])
def test_refused_key_exits_with_5_and_is_not_shown(command: Command, protected_fleet: HTTPServer, name: str) -> None:
    done = command("fleet", name, *url_option(protected_fleet), "--api-key", "a-wrong-key-of-somebody")
    assert (done.code, done.out) == (5, "")
    assert "The API key is unknown." in done.err
    assert "wrong-key" not in done.err


def test_valid_key_is_accepted(command: Command, protected_fleet: HTTPServer) -> None:
    assert command("fleet", "status", *url_option(protected_fleet), "--api-key", KEY).code == 0
    assert command("fleet", "top", "--once", *url_option(protected_fleet), FLEET_API_KEYS=KEY).code == 0


def test_top_once_prints_one_screen(command: Command, fleet: HTTPServer) -> None:
    done = command("fleet", "top", "--once", *url_option(fleet), PYTHONUTF8="1")
    assert (done.code, done.err) == (0, "")
    assert "\x1b" not in done.out
    assert "91→98" in done.out
    assert "db-01            91 critical     6m" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    (forecast_request,) = (request for request, _ in fleet.log if request.path == "/forecast")
    assert forecast_request.args["servers"] == "db-01"
    assert "91>98" in command("fleet", "top", "--once", *url_option(fleet), LC_ALL="C", PYTHONIOENCODING="ascii").out


def test_top_without_forecast_is_shown(command: Command, httpserver: HTTPServer) -> None:
    for path, document in {"/status": STATUS, "/risk": RISK, "/alerts": ALERTS}.items():
        httpserver.expect_request(path).respond_with_json(document)
    httpserver.expect_request("/forecast").respond_with_json({"error": "No forecast yet."}, 503)
    done = command("fleet", "top", "--once", *url_option(httpserver))
    assert (done.code, done.err) == (0, "")
    assert "db-01" in done.out


@contextmanager
def live(
    root: Path, environment: dict[str, str], fleet: HTTPServer, **streams: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """`fleet top` in a process of its own."""
    program = [
        sys.executable,
        str(root / "submit_prediction.py"),
        "fleet",
        "top",
        "--interval",
        "0.5",
        *url_option(fleet),
    ]
    with subprocess.Popen(program, cwd=root.parent, env=environment, stderr=subprocess.PIPE, **streams) as process:
        yield process
        process.kill()


def test_top_without_terminal_prints_screens(root: Path, environment: dict[str, str], fleet: HTTPServer) -> None:
    with live(root, environment, fleet, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        seen = 0
        while seen < 2:
            line = process.stdout.readline()
            assert line
            seen += line.startswith(b"db-01")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err.strip()) == (130, b"Interrupted.")


def test_top_on_terminal_shows_errors_until_ctrl_c(root: Path, environment: dict[str, str], fleet: HTTPServer) -> None:
    with ExitStack() as stack:
        ours, theirs = pty.openpty()
        stack.callback(os.close, ours)
        terminal = environment | {"TERM": "xterm", "LINES": "24"}
        process = stack.enter_context(live(root, terminal, fleet, stdin=theirs, stdout=theirs, start_new_session=True))
        os.close(theirs)
        screen = TerminalReader(ours)
        screen.read_until(b"db-01")
        fleet.expect_oneshot_request("/status").respond_with_data("", 503)
        screen.read_until(b"The data below is old")
        screen.read_until(b"db-01")
        os.killpg(process.pid, signal.SIGINT)
        screen.read_until(None)
        assert process.stderr is not None
        assert (process.wait(PATIENCE), process.stderr.read().strip()) == (130, b"Interrupted.")
        assert b"\x1b[?25h" in screen.output  # the cursor is visible again


def test_help_imports_nothing_heavy(root: Path, environment: dict[str, str]) -> None:
    program = (
        "import sys; from cli.main import main\n"
        "codes = [main(['fleet', name, '--help']) for name in ('status', 'top')]\n"
        "heavy = {'numpy', 'rich', 'pydantic', 'requests', 'torch', 'pandas', 'fastapi'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else max(codes))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_status_and_top_import_nothing_heavy(root: Path, environment: dict[str, str], fleet: HTTPServer) -> None:
    program = (
        f"import sys; from cli.main import main; code = main(['fleet', 'top', '--once', '--url', {fleet.url_for('')!r}])\n"
        "heavy = {'torch', 'pandas', 'fastapi', 'grpc', 'onnxruntime', 'google.protobuf'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
