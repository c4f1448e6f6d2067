"""The websocket as a worker uses it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from forecastd.localnet.chain import Block
from forecastd.localnet.server import listen
from forecastd.localnet.topics import TopicSpec
from forecastd.localnet.websocket import BACKLOG, Hub, block_events, matches

TOPIC = TopicSpec(67, epoch_length=20, worker_submission_window=10)
OPENING = Block(21, 0.0, (), opened=((TOPIC, 21),), closed=())
CLOSING = Block(31, 0.0, (), opened=(), closed=((TOPIC, 21),))
QUIET = Block(22, 0.0, (), opened=(), closed=())
OPENED = "emissions.v10.EventWorkerSubmissionWindowOpened"
QUERY = f"tm.event='NewBlockEvents' AND {OPENED}.topic_id = '\"67\"'"


def talk(story: Callable[[Hub, str], Awaitable[None]]) -> None:
    """Tell a story to a hub that serves, in one loop."""

    async def run() -> None:
        hub = Hub()
        with listen(0) as sock:
            async with hub.serve(sock):
                await asyncio.wait_for(story(hub, f"ws://127.0.0.1:{sock.getsockname()[1]}"), 60)

    asyncio.run(run())


async def ask(connection: ClientConnection, **request: Any) -> Any:
    await connection.send(json.dumps({"jsonrpc": "2.0", **request}))
    return json.loads(await connection.recv())


def test_a_subscriber_is_told_of_the_windows_it_asked_for_and_of_nothing_else() -> None:
    async def story(hub: Hub, url: str) -> None:
        async with connect(f"{url}/websocket") as connection:
            acknowledged = await ask(connection, id="w1", method="subscribe", params={"query": QUERY})
            assert acknowledged == {"jsonrpc": "2.0", "id": "w1", "result": {}}
            for block in (QUIET, CLOSING, OPENING):
                hub.publish(block, "v10")
            told = json.loads(await connection.recv())
            assert (told["id"], told["result"]["query"]) == ("w1", QUERY)
            data = told["result"]["data"]
            assert (data["type"], data["value"]["height"]) == ("tendermint/event/NewBlockEvents", "21")
            attributes = {one["key"]: one["value"] for one in data["value"]["events"][0]["attributes"]}
            assert attributes == {"topic_id": '"67"', "nonce_block_height": '"21"', "window_end_block": '"31"'}
            await ask(connection, id="w1", method="unsubscribe", params={"query": QUERY})
            hub.publish(OPENING, "v10")
            assert (await ask(connection, id=5, method="health"))["error"]["code"] == -32601

    talk(story)


@pytest.mark.parametrize(
    ("query", "block", "expected"),
    [
        (QUERY, OPENING, True),
        (QUERY, CLOSING, False),
        (QUERY.replace("67", "68"), OPENING, False),
        (QUERY.replace("v10", "v9"), OPENING, False),
        ("tm.event='NewBlockEvents'", CLOSING, True),
        ("tm.event='NewBlock'", OPENING, False),
        ("tm.event='Tx' AND message.sender='x'", OPENING, False),
        ("", OPENING, False),
        ("tm.event='NewBlockEvents' AND tm.event='Tx'", OPENING, True),
    ],
)
def test_a_query_matches_a_block_by_the_attributes_of_its_events(query: str, block: Block, expected: bool) -> None:
    assert matches(query, block_events(block, "v10")) is expected


@pytest.mark.parametrize(
    ("sent", "code"),
    [("not json", -32700), ("[]", -32600), ("{}", -32600), ('{"method": 5, "id": 1}', -32600),
     ('{"method": "subscribe", "id": 1}', -32600), ('{"method": "subscribe", "id": [], "params": {"query": "x"}}', -32600),
     ('{"method": "subscribe", "id": 1, "params": {"query": 5}}', -32600), ('{"method": "x", "id": 1}', -32601)],
)  # fmt: skip
def test_rubbish_is_answered_with_an_error_and_the_line_stays(sent: str, code: int) -> None:
    async def story(hub: Hub, url: str) -> None:
        del hub
        async with connect(f"{url}/websocket") as connection:
            await connection.send(sent)
            assert json.loads(await connection.recv())["error"]["code"] == code
            assert "result" in await ask(connection, id=1, method="unsubscribe_all")

    talk(story)


def test_any_other_path_is_not_found() -> None:
    async def story(hub: Hub, url: str) -> None:
        del hub
        with pytest.raises(InvalidStatus) as caught:
            async with connect(url):
                pass
        assert caught.value.response.status_code == 404

    talk(story)


def test_a_listener_that_falls_behind_is_cut_off_and_the_others_are_not() -> None:
    async def story(hub: Hub, url: str) -> None:
        async with connect(f"{url}/websocket") as slow, connect(f"{url}/websocket") as other:
            await ask(slow, id="s", method="subscribe", params={"query": QUERY})
            for _ in range(BACKLOG + 1):
                hub.publish(OPENING, "v10")
            async for _ in slow:
                pass
            assert slow.close_code is not None
            assert "result" in await ask(other, id="o", method="subscribe", params={"query": QUERY})
            hub.publish(OPENING, "v10")
            assert json.loads(await other.recv())["id"] == "o"

    talk(story)
