"""The local node's websocket: CometBFT's JSON-RPC `subscribe`, with the events of windows that open and close.

A subscription is acknowledged, and each block whose events match its query is pushed under the same id. Besides
`tm.event='NewBlockEvents'` there is `tm.event='NewBlockHeader'`, of every block, and the request `status`: what a worker asks
for.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from forecastd.chain.networks import LOCAL_CHAIN_ID
from forecastd.clock import iso
from forecastd.localnet.chain import Block

PATH = "/websocket"
BACKLOG = 256  # messages a slow listener may be behind before it is cut off
_CONDITION = re.compile(r"([\w.]+)\s*=\s*'([^']*)'")
_EXISTS = re.compile(r"([\w.]+)\s+EXISTS")
_METHOD_NOT_FOUND, _INVALID_REQUEST, _PARSE_ERROR = -32601, -32600, -32700

log = logging.getLogger(__name__)
_library = logging.getLogger("websockets.localnet")  # with the library's own, which are kept quiet
Event = dict[str, Any]


def block_events(block: Block, version: str) -> list[Event]:
    """A block's events as the chain emits them: attribute values are JSON, so a number is a string in quotes."""
    opened = [
        _event(
            f"emissions.{version}.EventWorkerSubmissionWindowOpened",
            topic_id=topic.id,
            nonce_block_height=nonce,
            window_end_block=nonce + topic.worker_submission_window,
        )
        for topic, nonce in block.opened
    ]
    closed = [
        _event(f"emissions.{version}.EventWorkerSubmissionWindowClosed", topic_id=topic.id, nonce_block_height=nonce)
        for topic, nonce in block.closed
    ]
    return closed + opened


def matches(query: str, events: list[Event]) -> bool:
    """Whether a subscription's query asks for the events of such a block: every condition is met by some attribute."""
    conditions = _CONDITION.findall(query)
    if ("tm.event", "NewBlockEvents") not in conditions:
        return False
    have = {(f"{event['type']}.{one['key']}", one["value"]) for event in events for one in event["attributes"]}
    there = {name for name, _ in have}
    return all(name in there for name in _EXISTS.findall(query)) and all(
        condition in have for condition in conditions if condition[0] != "tm.event"
    )


class Hub:
    """The listeners. `publish` is called with every block, in the loop that serves them.

    `is_down` says whether the node is between its end and its start; nobody is let in then.
    """

    def __init__(self, is_down: Callable[[], bool] = lambda: False, *, chain_id: str = LOCAL_CHAIN_ID) -> None:
        self._listeners: dict[ServerConnection, _Listener] = {}
        self._is_down = is_down
        self._chain_id = chain_id
        self._height = 0

    def cut(self) -> None:
        """End every connection as a crash does."""
        for connection in list(self._listeners):
            connection.transport.abort()

    def publish(self, block: Block, version: str) -> None:
        """Push a block's header and events to whoever subscribed to them."""
        self._height = block.height
        events = block_events(block, version)
        for connection, listener in list(self._listeners.items()):
            for name, query in listener.queries.items():
                if ("tm.event", "NewBlockHeader") in _CONDITION.findall(query):
                    message = _header(name, query, block, self._chain_id)
                elif events and matches(query, events):
                    message = _pushed(name, query, block, events)
                else:
                    continue
                if not listener.push(message):
                    log.info("a websocket listener is too slow, cutting it off")
                    del self._listeners[connection]
                    break

    @asynccontextmanager
    async def serve(self, sock: socket.socket) -> AsyncIterator[None]:
        """Serve on a socket that listens, until the block ends."""
        async with serve(self._talk, sock=sock, process_request=self._admit, logger=_library, max_size=2**20):
            yield

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        if self._is_down():
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "The node is starting\n")
        if request.path == PATH:
            return None
        return connection.respond(HTTPStatus.NOT_FOUND, f"The websocket is at {PATH}\n")

    async def _talk(self, connection: ServerConnection) -> None:
        listener = self._listeners[connection] = _Listener(self._status)
        sender = asyncio.create_task(listener.send_to(connection))
        try:
            async for message in connection:
                reply = listener.answer(message)
                if not listener.push(reply):
                    break
        except ConnectionClosed:
            pass
        finally:
            self._listeners.pop(connection, None)
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    def _status(self) -> dict[str, Any]:
        """What `status` answers, as far as anybody asks for it."""
        return {
            "node_info": {"network": self._chain_id},
            "sync_info": {"latest_block_height": str(self._height), "catching_up": False},
        }


class _Listener:
    """One connection's subscriptions, by id, and what is still to be sent to it."""

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self.queries: dict[object, str] = {}
        self._status = status
        self._outbox: asyncio.Queue[str | None] = asyncio.Queue(BACKLOG)

    def push(self, message: str) -> bool:
        """Queue a message; False when the listener is too far behind, and is to be cut off."""
        if self._outbox.full():
            self._outbox.get_nowait()
            self._outbox.put_nowait(None)
            return False
        self._outbox.put_nowait(message)
        return True

    async def send_to(self, connection: ServerConnection) -> None:
        while (message := await self._outbox.get()) is not None:
            await connection.send(message)
        await connection.close()

    def answer(self, message: str | bytes) -> str:
        """Act on a request and give the reply."""
        try:
            request = json.loads(message)
        except ValueError:
            return _error(None, _PARSE_ERROR, "not JSON")
        if not isinstance(request, dict) or not isinstance(request.get("method"), str):
            return _error(None, _INVALID_REQUEST, "not a JSON-RPC request")
        name, parameters = request.get("id"), request.get("params")
        if not isinstance(name, str | int):
            return _error(None, _INVALID_REQUEST, "a request needs an id")
        query = parameters.get("query") if isinstance(parameters, dict) else None
        if request["method"] == "subscribe" and isinstance(query, str):
            self.queries[name] = query
        elif request["method"] == "unsubscribe":
            self.queries = {one: text for one, text in self.queries.items() if one != name and text != query}
        elif request["method"] == "unsubscribe_all":
            self.queries.clear()
        elif request["method"] == "subscribe":
            return _error(name, _INVALID_REQUEST, "a subscription needs params.query")
        elif request["method"] != "status":
            return _error(name, _METHOD_NOT_FOUND, "Method not found")
        result = self._status() if request["method"] == "status" else {}
        return json.dumps({"jsonrpc": "2.0", "id": name, "result": result})


def _pushed(name: object, query: str, block: Block, events: list[Event]) -> str:
    value = {"height": str(block.height), "events": events, "num_txs": str(len(block.records))}
    data = {"type": "tendermint/event/NewBlockEvents", "value": value}
    return json.dumps({"jsonrpc": "2.0", "id": name, "result": {"query": query, "data": data, "events": {}}})


def _header(name: object, query: str, block: Block, chain_id: str) -> str:
    value = {"header": {"chain_id": chain_id, "height": str(block.height), "time": iso(block.time)}}
    data = {"type": "tendermint/event/NewBlockHeader", "value": value}
    return json.dumps({"jsonrpc": "2.0", "id": name, "result": {"query": query, "data": data, "events": {}}})


def _event(kind: str, **attributes: int) -> Event:
    return {
        "type": kind,
        "attributes": [{"key": key, "value": f'"{value}"', "index": True} for key, value in attributes.items()],
    }


def _error(name: object, code: int, message: str) -> str:
    return json.dumps({"jsonrpc": "2.0", "id": name, "error": {"code": code, "message": message}})
