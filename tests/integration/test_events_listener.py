"""The listener on real websockets: the local node's, and servers that are wrong in every way."""

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
from forecastd.chain.events import Listener
from forecastd.clock import SystemClock
from forecastd.localnet.embedded import open_embedded
from forecastd.localnet.topics import TopicSpec

TOPIC = TopicSpec(67, epoch_length=20, worker_submission_window=10)
LONG = 60.0


@dataclass
class Heard:
    """What a listener told."""

    blocks: list[int] = field(default_factory=list)
    openings: list[tuple[int, int]] = field(default_factory=list)
    connected: list[bool] = field(default_factory=list)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "FIRST_REST", 0.02)
    monkeypatch.setattr(events, "LONGEST_REST", 0.05)
    monkeypatch.setattr(events, "LISTEN", 0.05)
    monkeypatch.setattr(events, "WRONG_CHAIN_REST", 0.05)


@contextmanager
def listening(url: str, heard: Heard, *, chain_id: str = "localnet", silence: float = LONG) -> Iterator[Listener]:
    listener = Listener(
        url, [67], chain_id=chain_id, clock=SystemClock(), on_block=heard.blocks.append,
        on_opening=lambda topic, nonce: heard.openings.append((topic, nonce)),
        on_connected=lambda: heard.connected.append(True), silence=silence,
    )  # fmt: skip
    wake = threading.Event()
    thread = threading.Thread(target=listener.run, args=(wake,))
    thread.start()
    try:
        yield listener
    finally:
        listener.stop()
        wake.set()
        thread.join(LONG)
        assert not thread.is_alive()


def wait(true: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(int(LONG / 0.01)):
        if true():
            return
        pause.wait(0.01)
    raise AssertionError("it did not come to be so")


@contextmanager
def server(talk: Callable[[ServerConnection], None]) -> Iterator[str]:
    """A websocket that talks as it is told to; its URL."""

    def handle(connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            talk(connection)

    with serve(handle, "127.0.0.1", 0, compression=None) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        port = running.socket.getsockname()[1]
        yield f"ws://127.0.0.1:{port}/websocket"
        running.shutdown()
        thread.join()


def acknowledge(connection: ServerConnection) -> list[Any]:
    """Take what is asked for and say yes to the subscriptions; the requests."""
    asked = []
    for _ in range(4):
        request = json.loads(connection.recv())
        asked.append(request)
        if request["method"] == "subscribe":
            connection.send(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": {}}))
    return asked


@pytest.mark.parametrize("version", ["v9", "v10"])
def test_blocks_and_openings_of_a_local_node_are_heard(tmp_path: Path, version: Any) -> None:
    heard = Heard()
    with open_embedded(tmp_path, SystemClock(), topics=(TOPIC,), version=version, block_time=None, events=True) as node:
        assert node.websocket is not None
        with listening(node.websocket, heard) as listener:
            wait(lambda: heard.connected != [])
            assert listener.report().connected
            node.advance(45)
            wait(lambda: 46 in heard.blocks)  # its height comes with the status, the headers and the events
            assert heard.openings == [(67, 21), (67, 41)]
            assert heard.blocks == sorted(heard.blocks)
            assert set(range(2, 47)) <= set(heard.blocks)


def test_it_comes_back_after_the_node_went_down_and_says_so(tmp_path: Path) -> None:
    heard = Heard()
    with open_embedded(tmp_path, SystemClock(), topics=(TOPIC,), block_time=None, events=True) as node:
        assert node.websocket is not None
        with listening(node.websocket, heard) as listener:
            wait(lambda: len(heard.connected) == 1)
            node.restart(3600)
            wait(lambda: not listener.report().connected)
            node.restart(0.01)  # it is down, and now comes back soon
            wait(lambda: len(heard.connected) == 2)
            node.advance(30)
            wait(lambda: (67, 21) in heard.openings)


def test_other_topics_are_subscribed_to_when_they_are_wanted(tmp_path: Path) -> None:
    heard, other = Heard(), TopicSpec(69, epoch_length=30, worker_submission_window=10)
    with open_embedded(tmp_path, SystemClock(), topics=(TOPIC, other), block_time=None, events=True) as node:
        assert node.websocket is not None
        with listening(node.websocket, heard) as listener:
            wait(lambda: len(heard.connected) == 1)
            listener.listen_for([69])
            wait(lambda: len(heard.connected) == 2)
            node.advance(35)
            wait(lambda: (69, 31) in heard.openings)
            assert (67, 21) not in heard.openings


def test_a_node_of_another_chain_is_told_by_name_and_never_believed(tmp_path: Path) -> None:
    heard = Heard()
    with open_embedded(tmp_path, SystemClock(), topics=(TOPIC,), block_time=None, events=True) as node:
        assert node.websocket is not None
        with listening(node.websocket, heard, chain_id="allora-testnet-1") as listener:
            wait(lambda: "localnet" in listener.report().error)
            node.advance(30)
            assert heard == Heard()


def test_a_connection_on_which_nothing_is_told_is_made_anew() -> None:
    heard, connections = Heard(), list[int]()

    def silent(connection: ServerConnection) -> None:
        connections.append(1)
        acknowledge(connection)
        for _ in connection:
            pass

    # It acknowledged a subscription to blocks and sends none: as silent as a dead one.
    with server(silent) as url, listening(url, heard, silence=0.2) as listener:
        wait(lambda: len(connections) > 2)
        wait(lambda: "nothing was told" in listener.report().error or listener.report().connected)


def hang_up(connection: ServerConnection) -> None:
    connection.close()


def rubbish(connection: ServerConnection) -> None:
    acknowledge(connection)
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


def huge(connection: ServerConnection) -> None:
    acknowledge(connection)
    connection.send("x" * (events.MOST_BYTES + 1))


def declines(connection: ServerConnection) -> None:
    for request in connection:
        name = json.loads(request)["id"]
        connection.send(json.dumps({"jsonrpc": "2.0", "id": name, "error": {"code": -32603, "message": "no"}}))


@pytest.mark.parametrize("talk", [hang_up, rubbish, huge, declines], ids=lambda one: str(one.__name__))
def test_a_server_that_misbehaves_is_tried_again_and_one_that_has_come_to_reason_is_heard(
    talk: Callable[[ServerConnection], None],
) -> None:
    heard, connections = Heard(), list[int]()
    opening = {"type": events.OPENED[0], "attributes": [
        {"key": "topic_id", "value": '"67"'}, {"key": "nonce_block_height", "value": '"21"'}]}  # fmt: skip
    told = {"id": "opened-0", "result": {"data": {"value": {"height": "21", "events": [opening]}}}}

    def badly_at_first(connection: ServerConnection) -> None:
        connections.append(1)
        if len(connections) < 3:
            talk(connection)
            return
        acknowledge(connection)
        connection.send(json.dumps(told))
        for _ in connection:
            pass

    with server(badly_at_first) as url, listening(url, heard) as listener:
        wait(lambda: heard.openings == [(67, 21)])
        assert listener.report().last_at is not None


def test_an_address_where_nobody_is_costs_nothing_but_tries() -> None:
    heard = Heard()
    with listening("ws://127.0.0.1:9/websocket", heard) as listener:
        wait(lambda: listener.report().error != "")
        assert not listener.report().connected
