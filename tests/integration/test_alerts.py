"""Alerts that reach a real receiver: a web server that is slow, broken or redirects, and commands that fail or hang."""

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

from forecastd.alerts import Alerts
from forecastd.alerts.alerts import MOST_WAITING
from forecastd.alerts.sinks import Command, Webhook
from forecastd.errors import NeedsHuman, RetryLater

SECRET = "/services/T0123456/B0123456/abcdefghijklmnop"
PATIENCE = 90.0  # seconds that a busy machine may take
Wait = Callable[[Callable[[], bool]], None]


class SetClock:
    """A clock that stands where it is put."""

    def __init__(self) -> None:
        self.time = 1_790_000_000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def until() -> Wait:
    """Wait for a condition, for as long as a busy machine may need."""

    def wait(condition: Callable[[], bool]) -> None:
        never = threading.Event()
        for _ in range(int(PATIENCE / 0.02)):
            if condition():
                return
            never.wait(0.02)
        pytest.fail("it did not come about")

    return wait


@pytest.fixture
def received(httpserver: HTTPServer) -> list[dict[str, Any]]:
    """What the webhook got, in order."""
    bodies: list[dict[str, Any]] = []

    def take(request: Request) -> Response:
        bodies.append(json.loads(request.get_data()))
        return Response(status=200)

    httpserver.expect_request(SECRET, method="POST").respond_with_handler(take)
    return bodies


@pytest.fixture
def alerts(httpserver: HTTPServer, tmp_path: Path, clock: SetClock) -> Callable[..., Alerts]:
    def make(webhook: str | None = httpserver.url_for(SECRET), command: str | None = None) -> Alerts:
        return Alerts(
            webhook, command, interval=3600.0, clock=clock, state_dir=tmp_path, network="testnet", pauses=(0.01, 0.01)
        )

    return make


def test_a_missed_epoch_is_told_and_its_end_too(
    alerts: Callable[..., Alerts], received: list[dict[str, Any]], clock: SetClock
) -> None:
    with alerts() as ours:
        ours.served(67, 720, wallet="allo1abc")
        ours.missed(67, 1440, "no node answered.", wallet="allo1abc")
        ours.served(67, 2160, wallet="allo1abc")
        ours.close(PATIENCE)
    alarm, recovery = received
    assert alarm == {
        "version": 1,
        "event": "alarm",
        "kind": "missed_epoch",
        "key": "topic 67, allo1abc",
        "text": "Topic 67 missed epoch 1440: no node answered.",
        "at": "2026-09-21T14:13:20Z",
        "since": "2026-09-21T14:13:20Z",
        "held_back": 0,
        "network": "testnet",
        "host": socket.gethostname(),
        "program": alarm["program"],
        "topic_id": 67,
        "nonce": 1440,
        "wallet": "allo1abc",
    }
    assert (recovery["event"], recovery["nonce"]) == ("recovery", 2160)
    assert recovery["text"] == "Topic 67 is served again: epoch 2160 was submitted."


def test_a_restart_does_not_tell_it_again_and_a_later_one_ends_it(
    alerts: Callable[..., Alerts], received: list[dict[str, Any]], tmp_path: Path, clock: SetClock
) -> None:
    for _ in range(3):
        with alerts() as ours:
            ours.missed(67, 1440, "the process was down")
            ours.close(PATIENCE)
        clock.time += 7200
    assert len(received) == 1
    assert stat.S_IMODE((tmp_path / "alerts.json").stat().st_mode) == 0o600
    with alerts() as ours:
        ours.served(67, 2160)
        ours.close(PATIENCE)
    assert [one["event"] for one in received] == ["alarm", "recovery"]


def test_what_was_held_back_is_told_when_the_interval_is_over(
    alerts: Callable[..., Alerts], received: list[dict[str, Any]], clock: SetClock
) -> None:
    with alerts() as ours:
        ours.raise_alarm("needs_human", "topic 67", "The model is too old.")
        ours.raise_alarm("needs_human", "topic 67", "The model is too old.")
        ours.raise_alarm("needs_human", "topic 67", "The model is too old.")
        ours.close(PATIENCE)
    clock.time += 3600
    with alerts() as ours:
        ours.close(PATIENCE)
    assert [one["held_back"] for one in received] == [0, 1]
    assert received[1]["text"] == "The model is too old. (1 alarm was held back since the last message.)"


def test_a_webhook_that_hangs_delays_nobody_and_loses_nothing(
    httpserver: HTTPServer, tmp_path: Path, clock: SetClock, until: Wait
) -> None:
    release, asked, bodies = threading.Event(), threading.Event(), list[dict[str, Any]]()

    def hang(request: Request) -> Response:
        bodies.append(json.loads(request.get_data()))
        asked.set()
        release.wait(PATIENCE)
        return Response(status=200)

    httpserver.expect_request(SECRET).respond_with_handler(hang)
    with Alerts(httpserver.url_for(SECRET), None, interval=3600.0, clock=clock, state_dir=tmp_path) as ours:
        ours.missed(1, 720, "first")
        assert asked.wait(PATIENCE)
        for topic in range(2, MOST_WAITING + 50):  # more than may wait: none of these calls may block
            ours.missed(topic, 720, "another")
        release.set()
        until(lambda: len(bodies) == MOST_WAITING)
        ours.close(PATIENCE)
    clock.time += 300
    with Alerts(httpserver.url_for(SECRET), None, interval=3600.0, clock=clock, state_dir=tmp_path) as ours:
        ours.close(PATIENCE)
    assert {body["topic_id"] for body in bodies} == set(range(1, MOST_WAITING + 50))


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_failure_is_tried_again(alerts: Callable[..., Alerts], httpserver: HTTPServer, status: int) -> None:
    answers = iter([status, status, 204])
    httpserver.expect_request(SECRET).respond_with_handler(lambda _: Response(status=next(answers)))
    with alerts() as ours:
        ours.missed(67, 720, "no data")
        ours.close(PATIENCE)
    assert len(httpserver.log) == 3


def test_what_cannot_be_delivered_is_told_by_the_next_daemon(
    alerts: Callable[..., Alerts], httpserver: HTTPServer, clock: SetClock
) -> None:
    status, bodies = [404], list[dict[str, Any]]()

    def answer(request: Request) -> Response:
        bodies.append(json.loads(request.get_data()))
        return Response(status=status[0])

    httpserver.expect_request(SECRET).respond_with_handler(answer)
    with alerts() as ours:
        ours.missed(67, 720, "no data")
        ours.close(PATIENCE)
    status[0], clock.time = 200, clock.time + 300
    with alerts() as ours:
        ours.missed(67, 720, "no data")
        ours.close(PATIENCE)
    assert [(body["event"], body["nonce"]) for body in bodies] == [("alarm", 720)] * 2
    assert "404" not in bodies[1]["text"]


def test_a_redirect_is_not_followed(alerts: Callable[..., Alerts], httpserver: HTTPServer) -> None:
    httpserver.expect_request(SECRET).respond_with_data(
        "", status=307, headers={"Location": httpserver.url_for("/elsewhere")}
    )
    with alerts() as ours:
        ours.missed(67, 720, "no data")
        ours.close(PATIENCE)
    assert [request.path for request, _ in httpserver.log] == [SECRET]


@contextmanager
def raw_server(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """An address at which every connection is handed to `answer`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = threading.Event()

        def serve() -> None:
            while not closed.is_set():
                with listener.accept()[0] as connection, suppress(OSError):  # who called may have hung up
                    connection.recv(65_536)
                    answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}{SECRET}"
        closed.set()
        with socket.create_connection(listener.getsockname()) as last:
            last.sendall(b"end")
        thread.join(PATIENCE)


def test_a_webhook_that_drips_is_left_alone_at_its_limit() -> None:
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
            Webhook(url, seconds=0.3).send(b"{}")
        released.set()


def test_of_an_endless_answer_only_the_beginning_is_read() -> None:
    def pour(connection: socket.socket) -> None:
        try:
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
            while True:
                connection.sendall(b"x" * 65_536)
        except OSError:
            return

    with raw_server(pour) as url:
        Webhook(url, seconds=PATIENCE).send(b"{}")


def test_the_address_is_in_no_log_whatever_fails(
    alerts: Callable[..., Alerts], httpserver: HTTPServer, caplog: pytest.LogCaptureFixture
) -> None:
    def spoil(connection: socket.socket) -> None:
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nno header at all\r\nAnd: another\r\n\r\n"
        )  # urllib3 warns, with the address

    caplog.set_level(logging.DEBUG)
    httpserver.expect_request(SECRET).respond_with_data("", status=500)
    with raw_server(spoil) as url, alerts(webhook=url) as ours:
        ours.missed(67, 720, "no data")
        ours.close(PATIENCE)
    with alerts(webhook="http://127.0.0.1:1" + SECRET) as ours:
        ours.missed(68, 720, "no data")
        ours.close(PATIENCE)
    with alerts() as ours:
        ours.missed(69, 720, "no data")
        ours.close(PATIENCE)
    assert "was not delivered" in caplog.text
    told = [record for record in caplog.records if not record.name.startswith("werkzeug")]
    assert not [record for record in told if "abcdefghijklmnop" in record.getMessage()]


def runs(pid: int) -> bool:
    """Whether there is a process of that number that has not ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    """A command that runs this Python, with the test's directory as its first argument."""

    def make(text: str) -> str:
        path = tmp_path / "command.py"
        path.write_text(text, encoding="utf-8")
        return f"{sys.executable} -I {path} {tmp_path} 'two words'"

    return make


def test_a_command_gets_the_message_and_nothing_of_the_environment(
    alerts: Callable[..., Alerts], script: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNEMONIC", "never to be seen")
    line = script(
        "import json, os, pathlib, sys\n"
        "told = dict(os.environ), sys.argv[2:], json.load(sys.stdin)\n"
        "pathlib.Path(sys.argv[1], 'got.json').write_text(json.dumps(told))\n"
    )
    with alerts(webhook=None, command=line) as ours:
        ours.missed(67, 720, "no data")
        ours.close(PATIENCE)
    environment, arguments, message = json.loads((tmp_path / "got.json").read_text())
    assert set(environment) <= {"PATH", "LANG", "HOME", "USER", "LOGNAME", "LC_CTYPE"}
    assert arguments == ["two words"]
    assert (message["event"], message["nonce"]) == ("alarm", 720)


def test_a_command_that_hangs_is_ended_with_everything_it_started(
    script: Callable[[str], str], tmp_path: Path, until: Wait
) -> None:
    line = script(
        "import os, pathlib, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['/bin/sleep', '600'])\n"
        "draft = pathlib.Path(sys.argv[1], 'draft')\n"
        "draft.write_text(f'{os.getpid()} {child.pid}')\n"
        "draft.rename(pathlib.Path(sys.argv[1], 'pids'))\n"
        "time.sleep(600)\n"
    )
    pids = tmp_path / "pids"
    for seconds in (1.0, 5.0, PATIENCE):  # as long as it takes to start on a busy machine
        with pytest.raises(RetryLater, match="was ended after"):
            Command(line, seconds=seconds).send(b"{}")
        if pids.exists():
            break
    until(lambda: not any(runs(int(pid)) for pid in pids.read_text().split()))


def test_closing_ends_a_command_that_hangs(
    alerts: Callable[..., Alerts], script: Callable[[str], str], tmp_path: Path, until: Wait
) -> None:
    line = script(
        "import os, pathlib, sys, time\n"
        "draft = pathlib.Path(sys.argv[1], 'draft')\n"
        "draft.write_text(str(os.getpid()))\n"
        "draft.rename(pathlib.Path(sys.argv[1], 'pid'))\n"
        "time.sleep(600)\n"
    )
    with alerts(webhook=None, command=line) as ours:
        ours.missed(67, 720, "no data")
        until((tmp_path / "pid").exists)
        ours.close(0.05)
    pid = int((tmp_path / "pid").read_text())
    until(lambda: not runs(pid))
    kept = json.loads((tmp_path / "alerts.json").read_text())["conditions"]
    assert [(one["told"], one["untold"], one["nonces"]) for one in kept] == [(False, 1, [720])]


@pytest.mark.parametrize(
    ("line", "told"),
    [("/no/such/program", "cannot be run: No such file"), ("false", "failed with exit code 1"), ("/", "cannot be run")],
)
def test_a_command_that_does_not_work_is_told(line: str, told: str) -> None:
    with pytest.raises((NeedsHuman, RetryLater), match=told):
        Command(line).send(b"{}" * 100_000)


def test_one_way_that_works_is_enough(
    alerts: Callable[..., Alerts], received: list[dict[str, Any]], clock: SetClock
) -> None:
    with alerts(command="false") as ours:
        ours.missed(67, 720, "no data")
        ours.close(PATIENCE)
    clock.time += 7200
    with alerts(command="false") as ours:
        ours.close(PATIENCE)
    assert len(received) == 1


@pytest.mark.parametrize(
    ("webhook", "command"),
    [("hooks.example", None), ("ftp://hooks.example/x", None), ("https://[", None), ("https://h:99999/", None),
     (None, "echo 'open"), (None, " ")],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused_without_showing_the_address(
    alerts: Callable[..., Alerts], webhook: str | None, command: str | None
) -> None:
    with pytest.raises(NeedsHuman, match=r"ALERT_(WEBHOOK|COMMAND)") as caught:
        alerts(webhook=webhook, command=command)
    assert "example" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', '{"version": 9, "conditions": []}', "[" * 100_000])
def test_a_damaged_record_is_written_anew(
    alerts: Callable[..., Alerts], received: list[dict[str, Any]], tmp_path: Path, text: str
) -> None:
    (tmp_path / "alerts.json").write_text(text)
    with alerts() as ours:
        ours.missed(67, 720, "no data")
        ours.close(PATIENCE)
    assert len(received) == 1
    assert json.loads((tmp_path / "alerts.json").read_text())["version"] == 1


def test_a_record_that_cannot_be_written_costs_nothing_but_a_line(
    httpserver: HTTPServer, received: list[dict[str, Any]], clock: SetClock, caplog: pytest.LogCaptureFixture
) -> None:
    with Alerts(
        httpserver.url_for(SECRET), None, interval=3600.0, clock=clock, state_dir=Path(os.devnull) / "state"
    ) as ours:
        ours.missed(67, 720, "no data")
        ours.missed(68, 720, "no data")
        ours.close(PATIENCE)
    assert len(received) == 2
    assert caplog.text.count("A restart would tell alarms again") == 1


def test_without_a_receiver_the_log_tells(alerts: Callable[..., Alerts], caplog: pytest.LogCaptureFixture) -> None:
    with alerts(webhook=None) as ours:
        ours.missed(67, 720, "no data")
        ours.close(PATIENCE)
    assert "alarm: Topic 67 missed epoch 720: no data" in caplog.text


def test_a_text_of_any_kind_is_told_and_remembered(
    alerts: Callable[..., Alerts], received: list[dict[str, Any]], tmp_path: Path
) -> None:
    for _ in range(2):
        with alerts() as ours:
            ours.missed(67, 720, "cannot read \udcff.csv: " + "x" * 100_000)
            ours.close(PATIENCE)
    assert [len(one["text"]) <= 2000 for one in received] == [True]
    assert "cannot read ?.csv" in received[0]["text"]
