"""The websocket of the local node, with a real client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from forecastd.localnet.chain import ChainBlock
from forecastd.localnet.server import listen
from forecastd.localnet.topics import TopicSpec
from forecastd.localnet.websocket import MAX_QUEUED_MESSAGES, EventHub, block_events, matches_query

TOPIC = TopicSpec(67, epoch_length=20, worker_submission_window=10)
OPENING_BLOCK = ChainBlock(21, 0.0, (), opened_windows=((TOPIC, 21),), closed_windows=())
CLOSING_BLOCK = ChainBlock(31, 0.0, (), opened_windows=(), closed_windows=((TOPIC, 21),))
QUIET_BLOCK = ChainBlock(22, 0.0, (), opened_windows=(), closed_windows=())
OPENED_EVENT = "emissions.v10.EventWorkerSubmissionWindowOpened"
QUERY = f"tm.event='NewBlockEvents' AND {OPENED_EVENT}.topic_id = '\"67\"'"


def run_scenario(scenario: Callable[[EventHub, str], Awaitable[None]]) -> None:
    """Run a scenario against a serving hub, in one loop."""

    async def run() -> None:
        hub = EventHub()
        with listen(0) as sock:
            async with hub.serve(sock):
                await asyncio.wait_for(scenario(hub, f"ws://127.0.0.1:{sock.getsockname()[1]}"), 60)

    asyncio.run(run())


async def request(connection: ClientConnection, **request: Any) -> Any:
    await connection.send(json.dumps({"jsonrpc": "2.0", **request}))
    return json.loads(await connection.recv())


def test_subscriber_receives_only_its_windows() -> None:
    async def scenario(hub: EventHub, url: str) -> None:
        async with connect(f"{url}/websocket") as connection:
            acknowledged = await request(connection, id="w1", method="subscribe", params={"query": QUERY})
            assert acknowledged == {"jsonrpc": "2.0", "id": "w1", "result": {}}
            for block in (QUIET_BLOCK, CLOSING_BLOCK, OPENING_BLOCK):
                hub.publish(block, "v10")
            message = json.loads(await connection.recv())
            assert (message["id"], message["result"]["query"]) == ("w1", QUERY)
            data = message["result"]["data"]
            assert (data["type"], data["value"]["height"]) == ("tendermint/event/NewBlockEvents", "21")
            attributes = {
                attribute["key"]: attribute["value"] for attribute in data["value"]["events"][0]["attributes"]
            }
            assert attributes == {"topic_id": '"67"', "nonce_block_height": '"21"', "window_end_block": '"31"'}
            await request(connection, id="w1", method="unsubscribe", params={"query": QUERY})
            hub.publish(OPENING_BLOCK, "v10")
            assert (await request(connection, id=5, method="health"))["error"]["code"] == -32601

    run_scenario(scenario)


@pytest.mark.parametrize(
    ("query", "block", "expected"),
    [
        (QUERY, OPENING_BLOCK, True),
        (QUERY, CLOSING_BLOCK, False),
        (QUERY.replace("67", "68"), OPENING_BLOCK, False),
        (QUERY.replace("v10", "v9"), OPENING_BLOCK, False),
        ("tm.event='NewBlockEvents'", CLOSING_BLOCK, True),
        ("tm.event='NewBlock'", OPENING_BLOCK, False),
        ("tm.event='Tx' AND message.sender='x'", OPENING_BLOCK, False),
        ("", OPENING_BLOCK, False),
        ("tm.event='NewBlockEvents' AND tm.event='Tx'", OPENING_BLOCK, True),
    ],
)
def test_query_matches_event_attributes(query: str, block: ChainBlock, expected: bool) -> None:
    assert matches_query(query, block_events(block, "v10")) is expected


@pytest.mark.parametrize(
    ("text", "code"),
    [("not json", -32700), ("[]", -32600), ("{}", -32600), ('{"method": 5, "id": 1}', -32600),
     ('{"method": "subscribe", "id": 1}', -32600), ('{"method": "subscribe", "id": [], "params": {"query": "x"}}', -32600),
     ('{"method": "subscribe", "id": 1, "params": {"query": 5}}', -32600), ('{"method": "x", "id": 1}', -32601)],
)  # fmt: skip
def test_invalid_request_gets_an_error_and_stays_connected(text: str, code: int) -> None:
    async def scenario(hub: EventHub, url: str) -> None:
        del hub
        async with connect(f"{url}/websocket") as connection:
            await connection.send(text)
            assert json.loads(await connection.recv())["error"]["code"] == code
            assert "result" in await request(connection, id=1, method="unsubscribe_all")

    run_scenario(scenario)


def test_websocket_other_path_is_not_found() -> None:
    async def scenario(hub: EventHub, url: str) -> None:
        del hub
        with pytest.raises(InvalidStatus) as caught:
            async with connect(url):
                pass
        assert caught.value.response.status_code == 404

    run_scenario(scenario)


def test_slow_subscriber_is_disconnected_alone() -> None:
    async def scenario(hub: EventHub, url: str) -> None:
        async with connect(f"{url}/websocket") as slow, connect(f"{url}/websocket") as fast:
            await request(slow, id="s", method="subscribe", params={"query": QUERY})
            for _ in range(MAX_QUEUED_MESSAGES + 1):
                hub.publish(OPENING_BLOCK, "v10")
            async for _ in slow:
                pass
            assert slow.close_code is not None
            assert "result" in await request(fast, id="o", method="subscribe", params={"query": QUERY})
            hub.publish(OPENING_BLOCK, "v10")
            assert json.loads(await fast.recv())["id"] == "o"

    run_scenario(scenario)
