"""The event listener on real websockets: the local node's, and servers that misbehave."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from forecastd.chain import events
from forecastd.chain.events import EventListener
from forecastd.clock import SystemClock
from forecastd.localnet.embedded import open_embedded
from forecastd.localnet.topics import TopicSpec
from tests.support.waiting import wait_until

TOPIC = TopicSpec(67, epoch_length=20, worker_submission_window=10)
TIMEOUT_SECONDS = 60.0


@dataclass
class ReceivedEvents:
    """What a listener reported."""

    blocks: list[int] = field(default_factory=list)
    openings: list[tuple[int, int]] = field(default_factory=list)
    connected: list[bool] = field(default_factory=list)


@pytest.fixture(autouse=True)
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MIN_RECONNECT_SECONDS", 0.02)
    monkeypatch.setattr(events, "MAX_RECONNECT_SECONDS", 0.05)
    monkeypatch.setattr(events, "RECEIVE_TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(events, "WRONG_CHAIN_RECONNECT_SECONDS", 0.05)


@contextmanager
def running_listener(
    url: str, received: ReceivedEvents, *, chain_id: str = "localnet", silence: float = TIMEOUT_SECONDS
) -> Iterator[EventListener]:
    listener = EventListener(
        url, [67], chain_id=chain_id, clock=SystemClock(), on_block=received.blocks.append,
        on_opening=lambda topic, nonce: received.openings.append((topic, nonce)),
        on_connected=lambda: received.connected.append(True), silence=silence,
    )  # fmt: skip
    wake = threading.Event()
    thread = threading.Thread(target=listener.run, args=(wake,))
    thread.start()
    try:
        yield listener
    finally:
        listener.stop()
        wake.set()
        thread.join(TIMEOUT_SECONDS)
        assert not thread.is_alive()


@contextmanager
def websocket_server(behavior: Callable[[ServerConnection], None]) -> Iterator[str]:
    """A websocket server that runs `behavior` for each connection. Yields its URL."""

    def handle(connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            behavior(connection)

    with serve(handle, "127.0.0.1", 0, compression=None) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        port = running.socket.getsockname()[1]
        yield f"ws://127.0.0.1:{port}/websocket"
        running.shutdown()
        thread.join()


def acknowledge_requests(connection: ServerConnection) -> list[Any]:
    """Receive the requests and confirm the subscriptions. Returns the requests."""
    requests = []
    for _ in range(4):
        request = json.loads(connection.recv())
        requests.append(request)
        if request["method"] == "subscribe":
            connection.send(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": {}}))
    return requests


@pytest.mark.parametrize("version", ["v9", "v10"])
def test_listener_receives_blocks_and_opened_windows(tmp_path: Path, version: Any) -> None:
    received = ReceivedEvents()
    with open_embedded(tmp_path, SystemClock(), topics=(TOPIC,), version=version, block_time=None, events=True) as node:
        assert node.websocket is not None
        with running_listener(node.websocket, received) as listener:
            wait_until(lambda: received.connected != [])
            assert listener.report().connected
            node.advance(45)
            wait_until(lambda: 46 in received.blocks)  # the height comes with the status, the headers and the events
            assert received.openings == [(67, 21), (67, 41)]
            assert received.blocks == sorted(received.blocks)
            assert set(range(2, 47)) <= set(received.blocks)


def test_listener_reconnects_after_a_node_restart(tmp_path: Path) -> None:
    received = ReceivedEvents()
    with open_embedded(tmp_path, SystemClock(), topics=(TOPIC,), block_time=None, events=True) as node:
        assert node.websocket is not None
        with running_listener(node.websocket, received) as listener:
            wait_until(lambda: len(received.connected) == 1)
            node.restart(3600)
            wait_until(lambda: not listener.report().connected)
            node.restart(0.01)  # shortens the down time
            wait_until(lambda: len(received.connected) == 2)
            node.advance(30)
            wait_until(lambda: (67, 21) in received.openings)


def test_listener_new_topics_are_subscribed(tmp_path: Path) -> None:
    received, other_topic = ReceivedEvents(), TopicSpec(69, epoch_length=30, worker_submission_window=10)
    with open_embedded(tmp_path, SystemClock(), topics=(TOPIC, other_topic), block_time=None, events=True) as node:
        assert node.websocket is not None
        with running_listener(node.websocket, received) as listener:
            wait_until(lambda: len(received.connected) == 1)
            listener.listen_for([69])
            wait_until(lambda: len(received.connected) == 2)
            node.advance(35)
            wait_until(lambda: (69, 31) in received.openings)
            assert (67, 21) not in received.openings


def test_listener_wrong_chain_is_reported_and_ignored(tmp_path: Path) -> None:
    received = ReceivedEvents()
    with open_embedded(tmp_path, SystemClock(), topics=(TOPIC,), block_time=None, events=True) as node:
        assert node.websocket is not None
        with running_listener(node.websocket, received, chain_id="allora-testnet-1") as listener:
            wait_until(lambda: "localnet" in listener.report().error)
            node.advance(30)
            assert received == ReceivedEvents()


def test_listener_silent_connection_is_replaced() -> None:
    received, connections = ReceivedEvents(), list[int]()

    def silent(connection: ServerConnection) -> None:
        connections.append(1)
        acknowledge_requests(connection)
        for _ in connection:
            pass

    # It confirms a subscription to blocks but sends none: as silent as a broken connection.
    with websocket_server(silent) as url, running_listener(url, received, silence=0.2) as listener:
        wait_until(lambda: len(connections) > 2)
        wait_until(lambda: "no message for" in listener.report().error or listener.report().connected)


def disconnect(connection: ServerConnection) -> None:
    connection.close()


def send_garbage(connection: ServerConnection) -> None:
    acknowledge_requests(connection)
    for text in (
        "",
        "null",
        "[]",
        "{",
        '{"result": {"data": {"value": {"events": [1, null, {}]}}}}',
        "\x00",
        "9" * 5000,
    ):
        connection.send(text)
    connection.send(b"\xff\xfe")
    connection.send("[" * 100_000)
    connection.close()


def send_oversized(connection: ServerConnection) -> None:
    acknowledge_requests(connection)
    connection.send("x" * (events.MAX_MESSAGE_BYTES + 1))


def decline_subscriptions(connection: ServerConnection) -> None:
    for request in connection:
        name = json.loads(request)["id"]
        connection.send(json.dumps({"jsonrpc": "2.0", "id": name, "error": {"code": -32603, "message": "no"}}))


@pytest.mark.parametrize(
    "behavior",
    [disconnect, send_garbage, send_oversized, decline_subscriptions],
    ids=["disconnect", "garbage", "oversized", "declined"],
)
def test_listener_misbehaving_server_is_retried_until_it_works(
    behavior: Callable[[ServerConnection], None],
) -> None:
    received, connections = ReceivedEvents(), list[int]()
    opening = {"type": events.WINDOW_OPENED_EVENTS[0], "attributes": [
        {"key": "topic_id", "value": '"67"'}, {"key": "nonce_block_height", "value": '"21"'}]}  # fmt: skip
    window_event = {"id": "opened-0", "result": {"data": {"value": {"height": "21", "events": [opening]}}}}

    def badly_at_first(connection: ServerConnection) -> None:
        connections.append(1)
        if len(connections) < 3:
            behavior(connection)
            return
        acknowledge_requests(connection)
        connection.send(json.dumps(window_event))
        for _ in connection:
            pass

    with websocket_server(badly_at_first) as url, running_listener(url, received) as listener:
        wait_until(lambda: received.openings == [(67, 21)])
        assert listener.report().last_message_at is not None


def test_listener_unreachable_address_is_retried() -> None:
    received = ReceivedEvents()
    with running_listener("ws://127.0.0.1:9/websocket", received) as listener:
        wait_until(lambda: listener.report().error != "")
        assert not listener.report().connected
