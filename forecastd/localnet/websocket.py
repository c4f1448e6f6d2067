"""The local node's websocket: `subscribe` of CometBFT's JSON-RPC, with events for windows that open and close.

A subscription is acknowledged. Each block whose events match its query is then sent with the same id. The query
`tm.event='NewBlockEvents'` selects by events, `tm.event='NewBlockHeader'` selects every block. The request `status` is
supported too, because a worker uses it.
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
from forecastd.clock import to_iso
from forecastd.localnet.chain import ChainBlock

WEBSOCKET_PATH = "/websocket"
MAX_QUEUED_MESSAGES = 256  # a subscriber with more unsent messages is disconnected
_CONDITION = re.compile(r"([\w.]+)\s*=\s*'([^']*)'")
_EXISTS = re.compile(r"([\w.]+)\s+EXISTS")
_METHOD_NOT_FOUND, _INVALID_REQUEST, _PARSE_ERROR = -32601, -32600, -32700

log = logging.getLogger(__name__)
_websockets_log = logging.getLogger("websockets.localnet")  # below the library's own loggers, which are set to warnings
ChainEvent = dict[str, Any]


def block_events(block: ChainBlock, version: str) -> list[ChainEvent]:
    """The events of a block as the chain emits them. Attribute values are JSON, so a number is a quoted string."""
    opened_events = [
        _make_event(
            f"emissions.{version}.EventWorkerSubmissionWindowOpened",
            topic_id=topic.id,
            nonce_block_height=nonce,
            window_end_block=nonce + topic.worker_submission_window,
        )
        for topic, nonce in block.opened_windows
    ]
    closed_events = [
        _make_event(
            f"emissions.{version}.EventWorkerSubmissionWindowClosed", topic_id=topic.id, nonce_block_height=nonce
        )
        for topic, nonce in block.closed_windows
    ]
    return closed_events + opened_events


def matches_query(query: str, events: list[ChainEvent]) -> bool:
    """Whether a subscription's query matches the events of a block: some attribute meets each condition."""
    conditions = _CONDITION.findall(query)
    if ("tm.event", "NewBlockEvents") not in conditions:
        return False
    attributes = {
        (f"{event['type']}.{attribute['key']}", attribute["value"])
        for event in events
        for attribute in event["attributes"]
    }
    names = {name for name, _ in attributes}
    return all(name in names for name in _EXISTS.findall(query)) and all(
        condition in attributes for condition in conditions if condition[0] != "tm.event"
    )


class EventHub:
    """The subscribers. `publish` must be called with every block, in the loop that serves them.

    `is_down` tells whether the node is down for a restart; connections are refused then.
    """

    def __init__(self, is_down: Callable[[], bool] = lambda: False, *, chain_id: str = LOCAL_CHAIN_ID) -> None:
        self._subscribers: dict[ServerConnection, _Subscriber] = {}
        self._is_down = is_down
        self._chain_id = chain_id
        self._height = 0

    def drop_connections(self) -> None:
        """Reset every connection, as a crash does."""
        for connection in list(self._subscribers):
            connection.transport.abort()

    def publish(self, block: ChainBlock, version: str) -> None:
        """Send a block's header and events to the subscribers that asked for them."""
        self._height = block.height
        events = block_events(block, version)
        for connection, subscriber in list(self._subscribers.items()):
            for request_id, query in subscriber.queries.items():
                if ("tm.event", "NewBlockHeader") in _CONDITION.findall(query):
                    message = _header_message(request_id, query, block, self._chain_id)
                elif events and matches_query(query, events):
                    message = _events_message(request_id, query, block, events)
                else:
                    continue
                if not subscriber.enqueue(message):
                    log.info("disconnecting a websocket subscriber that is too slow")
                    del self._subscribers[connection]
                    break

    @asynccontextmanager
    async def serve(self, sock: socket.socket) -> AsyncIterator[None]:
        """Serve on a listening socket during the `async with` block."""
        async with serve(
            self._serve_connection,
            sock=sock,
            process_request=self._check_request,
            logger=_websockets_log,
            max_size=2**20,
        ):
            yield

    def _check_request(self, connection: ServerConnection, request: Request) -> Response | None:
        if self._is_down():
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "The node is starting\n")
        if request.path == WEBSOCKET_PATH:
            return None
        return connection.respond(HTTPStatus.NOT_FOUND, f"The websocket is at {WEBSOCKET_PATH}\n")

    async def _serve_connection(self, connection: ServerConnection) -> None:
        subscriber = self._subscribers[connection] = _Subscriber(self._status)
        sender = asyncio.create_task(subscriber.send_queued(connection))
        try:
            async for message in connection:
                reply = subscriber.answer(message)
                if not subscriber.enqueue(reply):
                    break
        except ConnectionClosed:
            pass
        finally:
            self._subscribers.pop(connection, None)
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    def _status(self) -> dict[str, Any]:
        """The answer to `status`, with the fields that clients use."""
        return {
            "node_info": {"network": self._chain_id},
            "sync_info": {"latest_block_height": str(self._height), "catching_up": False},
        }


class _Subscriber:
    """The subscriptions of one connection by id, and its queue of messages to send."""

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self.queries: dict[object, str] = {}
        self._status = status
        self._queue: asyncio.Queue[str | None] = asyncio.Queue(MAX_QUEUED_MESSAGES)

    def enqueue(self, message: str) -> bool:
        """Queue a message. Returns False when the subscriber is too far behind and will be disconnected."""
        if self._queue.full():
            self._queue.get_nowait()
            self._queue.put_nowait(None)
            return False
        self._queue.put_nowait(message)
        return True

    async def send_queued(self, connection: ServerConnection) -> None:
        while (message := await self._queue.get()) is not None:
            await connection.send(message)
        await connection.close()

    def answer(self, message: str | bytes) -> str:
        """Process a request and return the reply."""
        try:
            request = json.loads(message)
        except ValueError:
            return _error_message(None, _PARSE_ERROR, "not JSON")
        if not isinstance(request, dict) or not isinstance(request.get("method"), str):
            return _error_message(None, _INVALID_REQUEST, "not a JSON-RPC request")
        request_id, parameters = request.get("id"), request.get("params")
        if not isinstance(request_id, str | int):
            return _error_message(None, _INVALID_REQUEST, "a request needs an id")
        query = parameters.get("query") if isinstance(parameters, dict) else None
        if request["method"] == "subscribe" and isinstance(query, str):
            self.queries[request_id] = query
        elif request["method"] == "unsubscribe":
            self.queries = {
                subscription_id: text
                for subscription_id, text in self.queries.items()
                if subscription_id != request_id and text != query
            }
        elif request["method"] == "unsubscribe_all":
            self.queries.clear()
        elif request["method"] == "subscribe":
            return _error_message(request_id, _INVALID_REQUEST, "a subscription needs params.query")
        elif request["method"] != "status":
            return _error_message(request_id, _METHOD_NOT_FOUND, "Method not found")
        result = self._status() if request["method"] == "status" else {}
        return json.dumps({"jsonrpc": "2.0", "id": request_id, "result": result})


def _events_message(request_id: object, query: str, block: ChainBlock, events: list[ChainEvent]) -> str:
    value = {"height": str(block.height), "events": events, "num_txs": str(len(block.records))}
    data = {"type": "tendermint/event/NewBlockEvents", "value": value}
    return json.dumps({"jsonrpc": "2.0", "id": request_id, "result": {"query": query, "data": data, "events": {}}})


def _header_message(request_id: object, query: str, block: ChainBlock, chain_id: str) -> str:
    value = {"header": {"chain_id": chain_id, "height": str(block.height), "time": to_iso(block.time)}}
    data = {"type": "tendermint/event/NewBlockHeader", "value": value}
    return json.dumps({"jsonrpc": "2.0", "id": request_id, "result": {"query": query, "data": data, "events": {}}})


def _make_event(kind: str, **attributes: int) -> ChainEvent:
    return {
        "type": kind,
        "attributes": [{"key": key, "value": f'"{value}"', "index": True} for key, value in attributes.items()],
    }


def _error_message(request_id: object, code: int, message: str) -> str:
    return json.dumps({"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": message}})
