"""Alerts to real receivers: a web server that is slow, broken or redirects, and commands that fail or hang."""

from __future__ import annotations

import json
import logging
import os
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from forecastd.alerts import AlertDispatcher
from forecastd.alerts.channels import CommandChannel, WebhookChannel
from forecastd.alerts.dispatcher import MAX_QUEUED_MESSAGES
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.settings import AlertSettings
from forecastd.testing import ManualClock
from tests.support.waiting import wait_until

SECRET = "/services/T0123456/B0123456/abcdefghijklmnop"
TIMEOUT_SECONDS = 90.0  # enough for a busy machine


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(wall=1_790_000_000.0)


@pytest.fixture
def received(httpserver: HTTPServer) -> list[dict[str, Any]]:
    """The messages that the webhook got, in order."""
    bodies: list[dict[str, Any]] = []

    def take(request: Request) -> Response:
        bodies.append(json.loads(request.get_data()))
        return Response(status=200)

    httpserver.expect_request(SECRET, method="POST").respond_with_handler(take)
    return bodies


def alert_settings(webhook: str | None = None, command: str | None = None) -> AlertSettings:
    """Settings with these receivers, and the default interval of an hour."""
    return AlertSettings.model_validate({"alert_webhook": webhook, "alert_command": command})


@pytest.fixture
def make_alerts(httpserver: HTTPServer, tmp_path: Path, clock: ManualClock) -> Callable[..., AlertDispatcher]:
    def make(webhook: str | None = httpserver.url_for(SECRET), command: str | None = None) -> AlertDispatcher:
        return AlertDispatcher(
            alert_settings(webhook, command), tmp_path, clock, network="testnet", pauses=(0.01, 0.01)
        )

    return make


def test_missed_epoch_fires_and_resolves(
    make_alerts: Callable[..., AlertDispatcher], received: list[dict[str, Any]], clock: ManualClock
) -> None:
    with make_alerts() as dispatcher:
        dispatcher.epoch_served(67, 720, wallet="allo1abc")
        dispatcher.epoch_missed(67, 1440, "no node answered.", wallet="allo1abc")
        dispatcher.epoch_served(67, 2160, wallet="allo1abc")
        dispatcher.close(TIMEOUT_SECONDS)
    firing, resolved = received
    assert firing == {
        "version": 2,
        "event": "firing",
        "kind": "missed_epoch",
        "key": "topic 67, allo1abc",
        "text": "Topic 67 missed epoch 1440: no node answered.",
        "sent_at": "2026-09-21T14:13:20Z",
        "since": "2026-09-21T14:13:20Z",
        "suppressed": 0,
        "network": "testnet",
        "host": socket.gethostname(),
        "program": firing["program"],
        "topic_id": 67,
        "nonce": 1440,
        "wallet": "allo1abc",
    }
    assert (resolved["event"], resolved["nonce"]) == ("resolved", 2160)
    assert resolved["text"] == "Topic 67 is served again: epoch 2160 was submitted."


def test_restart_does_not_repeat_an_alert_and_can_resolve_it(
    make_alerts: Callable[..., AlertDispatcher], received: list[dict[str, Any]], tmp_path: Path, clock: ManualClock
) -> None:
    for _ in range(3):
        with make_alerts() as dispatcher:
            dispatcher.epoch_missed(67, 1440, "the process was down")
            dispatcher.close(TIMEOUT_SECONDS)
        clock.advance(7200)
    assert len(received) == 1
    assert stat.S_IMODE((tmp_path / "alerts.json").stat().st_mode) == 0o600
    with make_alerts() as dispatcher:
        dispatcher.epoch_served(67, 2160)
        dispatcher.close(TIMEOUT_SECONDS)
    assert [message["event"] for message in received] == ["firing", "resolved"]


def test_suppressed_alerts_are_sent_after_the_interval(
    make_alerts: Callable[..., AlertDispatcher], received: list[dict[str, Any]], clock: ManualClock
) -> None:
    with make_alerts() as dispatcher:
        dispatcher.fire("needs_human", "topic 67", "The model is too old.")
        dispatcher.fire("needs_human", "topic 67", "The model is too old.")
        dispatcher.fire("needs_human", "topic 67", "The model is too old.")
        dispatcher.close(TIMEOUT_SECONDS)
    clock.advance(3600)
    with make_alerts() as dispatcher:
        dispatcher.close(TIMEOUT_SECONDS)
    assert [message["suppressed"] for message in received] == [0, 1]
    assert received[1]["text"] == "The model is too old. (1 alert was suppressed since the last message.)"


def test_hanging_webhook_delays_no_caller_and_loses_no_message(
    httpserver: HTTPServer, tmp_path: Path, clock: ManualClock
) -> None:
    release, requests_received, bodies = threading.Event(), threading.Event(), list[dict[str, Any]]()

    def hang(request: Request) -> Response:
        bodies.append(json.loads(request.get_data()))
        requests_received.set()
        release.wait(TIMEOUT_SECONDS)
        return Response(status=200)

    httpserver.expect_request(SECRET).respond_with_handler(hang)
    with AlertDispatcher(alert_settings(httpserver.url_for(SECRET)), tmp_path, clock) as dispatcher:
        dispatcher.epoch_missed(1, 720, "first")
        assert requests_received.wait(TIMEOUT_SECONDS)
        for topic in range(2, MAX_QUEUED_MESSAGES + 50):  # more than the queue holds: none of these calls may block
            dispatcher.epoch_missed(topic, 720, "another")
        release.set()
        wait_until(lambda: len(bodies) == MAX_QUEUED_MESSAGES)
        dispatcher.close(TIMEOUT_SECONDS)
    clock.advance(300)
    with AlertDispatcher(alert_settings(httpserver.url_for(SECRET)), tmp_path, clock) as dispatcher:
        dispatcher.close(TIMEOUT_SECONDS)
    assert {body["topic_id"] for body in bodies} == set(range(1, MAX_QUEUED_MESSAGES + 50))


@pytest.mark.parametrize("status", [429, 500, 503])
def test_temporary_failure_is_retried(
    make_alerts: Callable[..., AlertDispatcher], httpserver: HTTPServer, status: int
) -> None:
    answers = iter([status, status, 204])
    httpserver.expect_request(SECRET).respond_with_handler(lambda _: Response(status=next(answers)))
    with make_alerts() as dispatcher:
        dispatcher.epoch_missed(67, 720, "no data")
        dispatcher.close(TIMEOUT_SECONDS)
    assert len(httpserver.log) == 3


def test_undelivered_message_is_sent_by_the_next_daemon(
    make_alerts: Callable[..., AlertDispatcher], httpserver: HTTPServer, clock: ManualClock
) -> None:
    status, bodies = [404], list[dict[str, Any]]()

    def answer(request: Request) -> Response:
        bodies.append(json.loads(request.get_data()))
        return Response(status=status[0])

    httpserver.expect_request(SECRET).respond_with_handler(answer)
    with make_alerts() as dispatcher:
        dispatcher.epoch_missed(67, 720, "no data")
        dispatcher.close(TIMEOUT_SECONDS)
    status[0] = 200
    clock.advance(300)
    with make_alerts() as dispatcher:
        dispatcher.epoch_missed(67, 720, "no data")
        dispatcher.close(TIMEOUT_SECONDS)
    assert [(body["event"], body["nonce"]) for body in bodies] == [("firing", 720)] * 2
    assert "404" not in bodies[1]["text"]


def test_redirect_is_not_followed(make_alerts: Callable[..., AlertDispatcher], httpserver: HTTPServer) -> None:
    httpserver.expect_request(SECRET).respond_with_data(
        "", status=307, headers={"Location": httpserver.url_for("/elsewhere")}
    )
    with make_alerts() as dispatcher:
        dispatcher.epoch_missed(67, 720, "no data")
        dispatcher.close(TIMEOUT_SECONDS)
    assert [request.path for request, _ in httpserver.log] == [SECRET]


@contextmanager
def raw_server(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """The URL of a server that passes every connection to `answer`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = threading.Event()

        def serve() -> None:
            while not closed.is_set():
                with listener.accept()[0] as connection, suppress(OSError):  # the client may have closed the connection
                    connection.recv(65_536)
                    answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}{SECRET}"
        closed.set()
        with socket.create_connection(listener.getsockname()) as last:
            last.sendall(b"end")
        thread.join(TIMEOUT_SECONDS)


def test_slow_webhook_response_is_abandoned_at_the_timeout() -> None:
    released = threading.Event()

    def drip(connection: socket.socket) -> None:
        for _ in range(10_000):
            try:
                connection.sendall(b"H")
            except OSError:
                return
            if released.wait(0.02):
                return

    with raw_server(drip) as url:
        with pytest.raises(RetryLater, match="did not answer in full within"):
            WebhookChannel(url, timeout=0.3).send(b"{}")
        released.set()


def test_endless_webhook_response_is_read_up_to_the_limit() -> None:
    def pour(connection: socket.socket) -> None:
        try:
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
            while True:
                connection.sendall(b"x" * 65_536)
        except OSError:
            return

    with raw_server(pour) as url:
        WebhookChannel(url, timeout=TIMEOUT_SECONDS).send(b"{}")


def test_webhook_url_never_reaches_the_log(
    make_alerts: Callable[..., AlertDispatcher], httpserver: HTTPServer, caplog: pytest.LogCaptureFixture
) -> None:
    def spoil(connection: socket.socket) -> None:
        # urllib3 warns about the invalid header, with the URL.
        connection.sendall(b"HTTP/1.1 200 OK\r\nno header at all\r\nAnd: another\r\n\r\n")

    caplog.set_level(logging.DEBUG)
    httpserver.expect_request(SECRET).respond_with_data("", status=500)
    with raw_server(spoil) as url, make_alerts(webhook=url) as dispatcher:
        dispatcher.epoch_missed(67, 720, "no data")
        dispatcher.close(TIMEOUT_SECONDS)
    with make_alerts(webhook="http://127.0.0.1:1" + SECRET) as dispatcher:
        dispatcher.epoch_missed(68, 720, "no data")
        dispatcher.close(TIMEOUT_SECONDS)
    with make_alerts() as dispatcher:
        dispatcher.epoch_missed(69, 720, "no data")
        dispatcher.close(TIMEOUT_SECONDS)
    assert "was not delivered" in caplog.text
    records = [record for record in caplog.records if not record.name.startswith("werkzeug")]
    assert not [record for record in records if "abcdefghijklmnop" in record.getMessage()]


def is_running(pid: int) -> bool:
    """Whether a process with this pid is running."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def make_script(tmp_path: Path) -> Callable[[str], str]:
    """A command that runs this Python, with the test's directory as its first argument."""

    def make(text: str) -> str:
        path = tmp_path / "command.py"
        path.write_text(text, encoding="utf-8")
        return f"{sys.executable} -I {path} {tmp_path} 'two words'"

    return make


def test_command_gets_the_message_and_a_clean_environment(
    make_alerts: Callable[..., AlertDispatcher],
    make_script: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MNEMONIC", "never to be seen")
    command = make_script(
        "import json, os, pathlib, sys\n"
        "received = dict(os.environ), sys.argv[2:], json.load(sys.stdin)\n"
        "pathlib.Path(sys.argv[1], 'got.json').write_text(json.dumps(received))\n"
    )
    with make_alerts(webhook=None, command=command) as dispatcher:
        dispatcher.epoch_missed(67, 720, "no data")
        dispatcher.close(TIMEOUT_SECONDS)
    environment, arguments, message = json.loads((tmp_path / "got.json").read_text())
    assert set(environment) <= {"PATH", "LANG", "HOME", "USER", "LOGNAME", "LC_CTYPE"}
    assert arguments == ["two words"]
    assert (message["event"], message["nonce"]) == ("firing", 720)


def test_hanging_command_is_killed_with_its_children(make_script: Callable[[str], str], tmp_path: Path) -> None:
    command = make_script(
        "import os, pathlib, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['/bin/sleep', '600'])\n"
        "draft = pathlib.Path(sys.argv[1], 'draft')\n"
        "draft.write_text(f'{os.getpid()} {child.pid}')\n"
        "draft.rename(pathlib.Path(sys.argv[1], 'pids'))\n"
        "time.sleep(600)\n"
    )
    pids = tmp_path / "pids"
    for seconds in (1.0, 5.0, TIMEOUT_SECONDS):  # the command needs longer to start on a busy machine
        with pytest.raises(RetryLater, match="was killed after"):
            CommandChannel(command, timeout=seconds).send(b"{}")
        if pids.exists():
            break
    wait_until(lambda: not any(is_running(int(pid)) for pid in pids.read_text().split()))


def test_close_kills_a_hanging_command(
    make_alerts: Callable[..., AlertDispatcher], make_script: Callable[[str], str], tmp_path: Path
) -> None:
    command = make_script(
        "import os, pathlib, sys, time\n"
        "draft = pathlib.Path(sys.argv[1], 'draft')\n"
        "draft.write_text(str(os.getpid()))\n"
        "draft.rename(pathlib.Path(sys.argv[1], 'pid'))\n"
        "time.sleep(600)\n"
    )
    with make_alerts(webhook=None, command=command) as dispatcher:
        dispatcher.epoch_missed(67, 720, "no data")
        wait_until((tmp_path / "pid").exists)
        dispatcher.close(0.05)
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not is_running(pid))
    saved_conditions = json.loads((tmp_path / "alerts.json").read_text())["conditions"]
    assert [
        (condition["notified"], condition["suppressed"], condition["nonces"]) for condition in saved_conditions
    ] == [(False, 1, [720])]


@pytest.mark.parametrize(
    ("command", "reason"),
    [("/no/such/program", "cannot be run: No such file"), ("false", "failed with exit code 1"), ("/", "cannot be run")],
)
def test_failing_command_is_reported(command: str, reason: str) -> None:
    with pytest.raises((NeedsHuman, RetryLater), match=reason):
        CommandChannel(command).send(b"{}" * 100_000)


def test_one_working_channel_is_enough(
    make_alerts: Callable[..., AlertDispatcher], received: list[dict[str, Any]], clock: ManualClock
) -> None:
    with make_alerts(command="false") as dispatcher:
        dispatcher.epoch_missed(67, 720, "no data")
        dispatcher.close(TIMEOUT_SECONDS)
    clock.advance(7200)
    with make_alerts(command="false") as dispatcher:
        dispatcher.close(TIMEOUT_SECONDS)
    assert len(received) == 1


@pytest.mark.parametrize(
    ("webhook", "command"),
    [("hooks.example", None), ("ftp://hooks.example/x", None), ("https://[", None), ("https://h:99999/", None),
     (None, "echo 'open"), (None, " ")],
)  # fmt: skip
def test_invalid_settings_are_rejected_without_showing_the_url(
    make_alerts: Callable[..., AlertDispatcher], webhook: str | None, command: str | None
) -> None:
    with pytest.raises(NeedsHuman, match=r"ALERT_(WEBHOOK|COMMAND)") as caught:
        make_alerts(webhook=webhook, command=command)
    assert "example" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"version": 1}',
        '{"version": 1, "conditions": [1]}',
        '{"version": 9, "conditions": []}',
        "[" * 100_000,
    ],
)
def test_corrupt_alerts_file_is_replaced(
    make_alerts: Callable[..., AlertDispatcher], received: list[dict[str, Any]], tmp_path: Path, text: str
) -> None:
    (tmp_path / "alerts.json").write_text(text)
    with make_alerts() as dispatcher:
        dispatcher.epoch_missed(67, 720, "no data")
        dispatcher.close(TIMEOUT_SECONDS)
    assert len(received) == 1
    assert json.loads((tmp_path / "alerts.json").read_text())["version"] == 2


def test_unwritable_alerts_file_only_logs_a_warning(
    httpserver: HTTPServer, received: list[dict[str, Any]], clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    with AlertDispatcher(alert_settings(httpserver.url_for(SECRET)), Path(os.devnull) / "state", clock) as dispatcher:
        dispatcher.epoch_missed(67, 720, "no data")
        dispatcher.epoch_missed(68, 720, "no data")
        dispatcher.close(TIMEOUT_SECONDS)
    assert len(received) == 2
    assert caplog.text.count("a restart would send them again") == 1


def test_alerts_without_channels_go_to_the_log(
    make_alerts: Callable[..., AlertDispatcher], caplog: pytest.LogCaptureFixture
) -> None:
    with make_alerts(webhook=None) as dispatcher:
        dispatcher.epoch_missed(67, 720, "no data")
        dispatcher.close(TIMEOUT_SECONDS)
    assert "firing: Topic 67 missed epoch 720: no data" in caplog.text


def test_any_text_is_sent_and_stored(
    make_alerts: Callable[..., AlertDispatcher], received: list[dict[str, Any]], tmp_path: Path
) -> None:
    for _ in range(2):
        with make_alerts() as dispatcher:
            dispatcher.epoch_missed(67, 720, "cannot read \udcff.csv: " + "x" * 100_000)
            dispatcher.close(TIMEOUT_SECONDS)
    assert [len(message["text"]) <= 2000 for message in received] == [True]
    assert "cannot read ?.csv" in received[0]["text"]
