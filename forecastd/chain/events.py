"""Receives blocks and opened submission windows over a node's websocket (`subscribe` of CometBFT's JSON-RPC).

Invariant: an event is a hint, never a fact. Nothing from this module is signed, recorded or counted; an event only
makes the worker query the chain sooner. Invalid messages are therefore ignored, and a connection that is lost, silent
or on another chain is replaced after a growing pause.

Names of events and attributes are those of allora_sdk's `EventWorkerSubmissionWindowOpened`. An upgrade of the chain
changes the version in the name, so the listener subscribes to both versions. A node allows a client five subscriptions
(CometBFT's `max_subscriptions_per_client`), so there is one per topic only while they fit.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from threading import Event, Lock
from typing import Any
from urllib.parse import urlsplit

from forecastd.clock import Clock
from forecastd.errors import NeedsHuman
from forecastd.runtime.http import is_loopback
from forecastd.runtime.retry import backoff_seconds

log = logging.getLogger(__name__)

WINDOW_OPENED_EVENTS = tuple(f"emissions.{version}.EventWorkerSubmissionWindowOpened" for version in ("v10", "v9"))
MAX_SUBSCRIPTIONS = 5
MAX_MESSAGE_BYTES = 4 * 2**20  # of one message
MAX_DIGITS = 18  # of a number in a message
CONNECT_SECONDS, PING_SECONDS = 10.0, 20.0
SILENCE_SECONDS = 60.0  # without a block, once blocks are subscribed to
RECEIVE_TIMEOUT_SECONDS = 2.0  # one wait for a message
# Pause before the next connection.
MIN_RECONNECT_SECONDS, MAX_RECONNECT_SECONDS, WRONG_CHAIN_RECONNECT_SECONDS = 1.0, 60.0, 300.0
STABLE_SECONDS = 60.0  # a connection that lasted longer resets the pause
_HEADER_QUERY = "tm.event='NewBlockHeader'"


@dataclass(frozen=True)
class WindowOpened:
    """An event says that a submission window was opened."""

    topic_id: int
    nonce: int


@dataclass(frozen=True)
class EventMessage:
    """The content of one message. `refused`: the node declined the subscription `request_id`."""

    request_id: str | None = None
    height: int | None = None
    chain_id: str | None = None
    opened_windows: tuple[WindowOpened, ...] = ()
    acknowledged: bool = False
    refused: bool = False


@dataclass(frozen=True)
class EventStreamReport:
    """The state of a websocket for `status`. `last_message_at`: time of the last message, in unix seconds."""

    endpoint: str
    connected: bool
    last_message_at: float | None
    error: str


class _ConnectionLost(Exception):
    """The connection is no longer usable.

    `reconnect_seconds`: the pause before the next one, None for the usual pause.
    """

    def __init__(self, reason: str, reconnect_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.reconnect_seconds = reconnect_seconds


def subscription_queries(topics: Iterable[int]) -> dict[str, str]:
    """The subscriptions for these topics, by id: as specific as the node's limit allows."""
    topic_ids = sorted(topics)
    if 1 + len(topic_ids) * len(WINDOW_OPENED_EVENTS) <= MAX_SUBSCRIPTIONS:
        conditions = [f"{event}.topic_id = '\"{topic}\"'" for topic in topic_ids for event in WINDOW_OPENED_EVENTS]
    else:
        conditions = [f"{event}.topic_id EXISTS" for event in WINDOW_OPENED_EVENTS]
    window_queries = {
        f"opened-{number}": f"tm.event='NewBlockEvents' AND {condition}" for number, condition in enumerate(conditions)
    }
    return {"headers": _HEADER_QUERY, **window_queries}


def read_message(text: str | bytes) -> EventMessage:
    """Parse a message. Returns an empty `EventMessage` when it is not valid."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return EventMessage()
    request_id = _lookup(document, "id")
    request_id = request_id if isinstance(request_id, str) else None
    if _lookup(document, "error") is not None:
        return EventMessage(request_id, refused=True)
    result = _lookup(document, "result")
    value = _lookup(result, "data", "value")
    # One of them is set: in the answer to `status`, in a header, or in the events of a block.
    chain = _lookup(result, "node_info", "network") or _lookup(value, "header", "chain_id")
    heights = (
        _lookup(result, "sync_info", "latest_block_height"),
        _lookup(value, "header", "height"),
        _lookup(value, "height"),
    )
    events = _lookup(value, "events")
    return EventMessage(
        request_id,
        next((number for number in map(_parse_number, heights) if number is not None), None),
        chain if isinstance(chain, str) else None,
        tuple(_window_openings(events)) if isinstance(events, list) else (),
        acknowledged=result == {},
    )


def _window_openings(events: list[Any]) -> Iterator[WindowOpened]:
    for event in events:
        pairs = _lookup(event, "attributes")
        if _lookup(event, "type") not in WINDOW_OPENED_EVENTS or not isinstance(pairs, list):
            continue
        attributes = {key: _lookup(pair, "value") for pair in pairs if isinstance(key := _lookup(pair, "key"), str)}
        topic_id, nonce = _parse_number(attributes.get("topic_id")), _parse_number(attributes.get("nonce_block_height"))
        if topic_id is not None and nonce is not None:
            yield WindowOpened(topic_id, nonce)


def _lookup(document: Any, *names: str) -> Any:
    for name in names:
        document = document.get(name) if isinstance(document, dict) else None
    return document


def _parse_number(value: object) -> int | None:
    """Parse a number as nodes write it: bare, as text, or as quoted text (attributes are JSON inside JSON)."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if 0 <= value < 10**MAX_DIGITS else None
    text = value.strip('"') if isinstance(value, str) else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else None


def check_websocket(text: str, position: int) -> str:
    """Validate and return a websocket URL. Errors name the item by its position, because the path may hold a key.

    Raises:
        NeedsHuman: it is not a websocket URL.
    """
    name, format_help = f"Item {position} of EVENT_ENDPOINTS", "Write wss://HOST/websocket or ws://HOST:PORT/websocket."
    try:
        parts = urlsplit(text.strip())
        _ = parts.port
    except ValueError:
        raise NeedsHuman(f"{name} has no usable port. {format_help}") from None
    if parts.scheme not in ("ws", "wss") or not parts.hostname or "@" in parts.netloc or parts.fragment:
        raise NeedsHuman(f"{name} is not the address of a websocket. {format_help}")
    return text.strip()


def display_name(url: str) -> str:
    """The name of a websocket in messages: scheme, host and port."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{'' if parts.port is None else f':{parts.port}'}"


class EventListener:
    """Listens to one websocket while `run` runs. The callbacks are called in that thread and must not block.

    `on_connected` is called when all subscriptions are confirmed, so that the caller can query what it missed before.
    """

    def __init__(
        self, url: str, topics: Iterable[int], *, chain_id: str, clock: Clock, on_block: Callable[[int], None],
        on_opening: Callable[[int, int], None], on_connected: Callable[[], None], silence: float = SILENCE_SECONDS,
    ) -> None:  # fmt: skip
        self.name = display_name(url)
        self._url, self._chain_id, self._clock, self._silence = url, chain_id, clock, silence
        self._on_block, self._on_opening, self._on_connected = on_block, on_opening, on_connected
        self._lock = Lock()
        self._topics = frozenset(topics)
        self._stopped = Event()
        # Of the present connection: subscriptions to windows that the node has not confirmed, and whether it sends blocks.
        self._unacknowledged, self._has_blocks = set[str](), False
        self._report = EventStreamReport(self.name, connected=False, last_message_at=None, error="")

    def listen_for(self, topics: Iterable[int]) -> None:
        """Replace the topics to listen for."""
        self._topics = frozenset(topics)

    def report(self) -> EventStreamReport:
        """The current state."""
        with self._lock:
            return self._report

    def stop(self) -> None:
        """Make `run` return soon."""
        self._stopped.set()

    def run(self, wake: Event) -> None:
        """Connect, listen, and reconnect until `stop`. Between two connections it waits on `wake`."""
        failures = 0
        while not self._stopped.is_set():
            started_at = self._clock.monotonic()
            reason, requested_seconds = self._run_connection(wake)
            if self._stopped.is_set():
                break
            self._update_report(connected=False, error=reason)
            if self._clock.monotonic() - started_at > STABLE_SECONDS:
                failures = 0
            failures += 1
            wake.wait(requested_seconds or backoff_seconds(failures, MIN_RECONNECT_SECONDS, MAX_RECONNECT_SECONDS))

    def _run_connection(self, wake: Event) -> tuple[str, float | None]:
        """Run one connection to its end.

        Returns the reason, and the pause before the next one when it is not the usual one.
        """
        from websockets.exceptions import InvalidHandshake, InvalidURI, WebSocketException
        from websockets.sync.client import connect

        loopback = is_loopback(urlsplit(self._url).hostname or "")
        try:
            with connect(
                self._url, open_timeout=CONNECT_SECONDS, ping_interval=PING_SECONDS, ping_timeout=PING_SECONDS,
                close_timeout=1.0, max_size=MAX_MESSAGE_BYTES, compression=None, proxy=None if loopback else True,
            ) as connection:  # fmt: skip
                self._listen(connection, wake)
        except _ConnectionLost as lost:
            return str(lost), lost.reconnect_seconds
        except (InvalidHandshake, InvalidURI) as error:
            return f"no websocket there ({type(error).__name__})", None
        except (WebSocketException, TimeoutError) as error:
            return str(error)[:160] or type(error).__name__, None
        except OSError as error:
            return error.strerror or type(error).__name__, None
        return "ended", None

    def _listen(self, connection: Any, wake: Event) -> None:
        """Subscribe, then listen until the connection is not usable or the topics change. Raises _ConnectionLost."""

        def send(name: str, method: str, params: dict[str, str]) -> None:
            connection.send(json.dumps({"jsonrpc": "2.0", "id": name, "method": method, "params": params}))

        topics = self._topics
        subscriptions = subscription_queries(topics)
        self._unacknowledged, self._has_blocks = {name for name in subscriptions if name != "headers"}, False
        send("status", "status", {})
        for name, query in subscriptions.items():
            send(name, "subscribe", {"query": query})
        last_message_time = self._clock.monotonic()
        while not self._stopped.is_set():
            if self._topics != topics:
                raise _ConnectionLost("the topics changed", 0.01)
            wake.wait(0)  # shows the watchdog that this thread makes progress
            try:
                message = read_message(connection.recv(timeout=RECEIVE_TIMEOUT_SECONDS))
            except TimeoutError:
                silent_seconds = self._clock.monotonic() - last_message_time
                if (self._has_blocks or self._unacknowledged) and silent_seconds > self._silence:
                    raise _ConnectionLost(f"no message for {silent_seconds:.0f} s") from None
                continue
            last_message_time = self._clock.monotonic()
            self._handle(message)

    def _handle(self, message: EventMessage) -> None:
        if message.chain_id is not None and message.chain_id != self._chain_id:
            raise _ConnectionLost(f"on chain {message.chain_id[:40]!r}", WRONG_CHAIN_RECONNECT_SECONDS)
        if message.refused and message.request_id in self._unacknowledged:
            raise _ConnectionLost("the node declined the subscription", MAX_RECONNECT_SECONDS)
        self._has_blocks = self._has_blocks or (message.acknowledged and message.request_id == "headers")
        if message.acknowledged and message.request_id in self._unacknowledged:
            self._unacknowledged.discard(message.request_id)
            if not self._unacknowledged:
                self._update_report(connected=True, message_received=True)
                self._on_connected()
            return
        if message.height is not None:
            self._update_report(connected=not self._unacknowledged, message_received=True)
            self._on_block(message.height)
        for window in message.opened_windows:
            self._on_opening(window.topic_id, window.nonce)

    def _update_report(self, *, connected: bool, error: str = "", message_received: bool = False) -> None:
        with self._lock:
            before = self._report
            last_message_at = self._clock.now() if message_received else before.last_message_at
            self._report = EventStreamReport(self.name, connected, last_message_at, error)
        if connected and not before.connected:
            log.info("listening to %s", self.name, extra={"action": "events"})
        elif error and (before.connected or error != before.error):
            log.info("not listening to %s: %s", self.name, error, extra={"action": "events"})
