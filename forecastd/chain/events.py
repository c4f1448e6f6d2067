"""Hears of blocks and of submission windows over a node's websocket (CometBFT's JSON-RPC `subscribe`), as they come.

The one thing to know before changing it: what is heard here is a hint and never a fact. Nothing of it is signed, recorded or
counted; it only has somebody look sooner. So rubbish costs nothing, and a connection that is lost, silent or on another chain
is given up and made anew, with growing pauses.

Names of events and attributes are those of allora_sdk's `EventWorkerSubmissionWindowOpened`; a chain that is upgraded changes
the version in the name, so both are subscribed to. A node lets a client have five subscriptions (CometBFT's
`max_subscriptions_per_client`), hence one for each topic only as long as they fit.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from threading import Event, Lock
from typing import Any
from urllib.parse import urlsplit

from forecastd.clock import Clock
from forecastd.errors import NeedsHuman

log = logging.getLogger(__name__)

OPENED = tuple(f"emissions.{version}.EventWorkerSubmissionWindowOpened" for version in ("v10", "v9"))
MOST_SUBSCRIPTIONS = 5
MOST_BYTES = 4 * 2**20  # of one message
MOST_DIGITS = 18  # of a number in a message
CONNECT_SECONDS, PING_SECONDS = 10.0, 20.0
SILENCE = 60.0  # seconds without a block, where blocks are told
LISTEN = 2.0  # seconds of one wait for a message
FIRST_REST, LONGEST_REST, WRONG_CHAIN_REST = 1.0, 60.0, 300.0  # seconds before another connection
SETTLED = 60.0  # seconds that a connection must have lasted for the next rest to be a short one
_HEADERS = "tm.event='NewBlockHeader'"


@dataclass(frozen=True)
class Opened:
    """A submission window was opened, it says."""

    topic_id: int
    nonce: int


@dataclass(frozen=True)
class Told:
    """What one message says. `refused`: the id of a subscription that the node declined."""

    name: str | None = None
    height: int | None = None
    chain_id: str | None = None
    opened: tuple[Opened, ...] = ()
    acknowledged: bool = False
    refused: bool = False


@dataclass(frozen=True)
class StreamReport:
    """A websocket for `status`. `last_at`: when it told something last, in unix seconds."""

    endpoint: str
    connected: bool
    last_at: float | None
    error: str


class _Lost(Exception):
    """The connection is of no use any more; the message says why. `rest` in seconds, None for the usual one."""

    def __init__(self, why: str, rest: float | None = None) -> None:
        super().__init__(why)
        self.rest = rest


def queries(topics: Iterable[int]) -> dict[str, str]:
    """What to subscribe to for these topics, by id: few enough for a node, and not more than is needed."""
    listed = sorted(topics)
    if 1 + len(listed) * len(OPENED) <= MOST_SUBSCRIPTIONS:
        wanted = [f"{event}.topic_id = '\"{topic}\"'" for topic in listed for event in OPENED]
    else:
        wanted = [f"{event}.topic_id EXISTS" for event in OPENED]
    found = {f"opened-{number}": f"tm.event='NewBlockEvents' AND {one}" for number, one in enumerate(wanted)}
    return {"headers": _HEADERS, **found}


def read_message(text: str | bytes) -> Told:
    """What a message says; nothing where it makes no sense."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return Told()
    name = _at(document, "id")
    name = name if isinstance(name, str) else None
    if _at(document, "error") is not None:
        return Told(name, refused=True)
    result = _at(document, "result")
    value = _at(result, "data", "value")
    # Of `status`, of a header, of a block's events: one of them has it.
    chain = _at(result, "node_info", "network") or _at(value, "header", "chain_id")
    heights = (_at(result, "sync_info", "latest_block_height"), _at(value, "header", "height"), _at(value, "height"))
    events = _at(value, "events")
    return Told(
        name,
        next((number for number in map(_number, heights) if number is not None), None),
        chain if isinstance(chain, str) else None,
        tuple(_openings(events)) if isinstance(events, list) else (),
        acknowledged=result == {},
    )


def _openings(events: list[Any]) -> Iterator[Opened]:
    for event in events:
        if (
            not isinstance(event, dict)
            or event.get("type") not in OPENED
            or not isinstance(event.get("attributes"), list)
        ):
            continue
        have = {one.get("key"): one.get("value") for one in event["attributes"] if isinstance(one, dict)}
        topic_id, nonce = _number(have.get("topic_id")), _number(have.get("nonce_block_height"))
        if topic_id is not None and nonce is not None:
            yield Opened(topic_id, nonce)


def _at(document: Any, *names: str) -> Any:
    for name in names:
        document = document.get(name) if isinstance(document, dict) else None
    return document


def _number(value: object) -> int | None:
    """A number as nodes write it: bare, as text, or as text in quotes (attributes are JSON in JSON)."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if 0 <= value < 10**MOST_DIGITS else None
    text = value.strip('"') if isinstance(value, str) else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS else None


def check_websocket(text: str, position: int) -> str:
    """The address of a websocket as it is. The item is named by its position, for its path may hold a key.

    Raises:
        NeedsHuman: it is none.
    """
    name, form = f"Item {position} of EVENT_ENDPOINTS", "Write wss://HOST/websocket or ws://HOST:PORT/websocket."
    try:
        parts = urlsplit(text.strip())
        _ = parts.port
    except ValueError:
        raise NeedsHuman(f"{name} has no usable port. {form}") from None
    if parts.scheme not in ("ws", "wss") or not parts.hostname or "@" in parts.netloc or parts.fragment:
        raise NeedsHuman(f"{name} is not the address of a websocket. {form}")
    return text.strip()


def shown(url: str) -> str:
    """What a websocket is called: its scheme, host and port."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{'' if parts.port is None else f':{parts.port}'}"


class Listener:
    """Listens to one websocket for as long as `run` runs. The callbacks come from that thread and must not wait.

    `on_connected` is called when the subscriptions stand, for whatever was opened while nobody listened.
    """

    def __init__(
        self, url: str, topics: Iterable[int], *, chain_id: str, clock: Clock, on_block: Callable[[int], None],
        on_opening: Callable[[int, int], None], on_connected: Callable[[], None], silence: float = SILENCE,
    ) -> None:  # fmt: skip
        self.name = shown(url)
        self._url, self._chain_id, self._clock, self._silence = url, chain_id, clock, silence
        self._on_block, self._on_opening, self._on_connected = on_block, on_opening, on_connected
        self._lock = Lock()
        self._topics = frozenset(topics)
        self._end = Event()
        self._report = StreamReport(self.name, connected=False, last_at=None, error="")

    def listen_for(self, topics: Iterable[int]) -> None:
        """Listen for these topics instead of those before."""
        self._topics = frozenset(topics)

    def report(self) -> StreamReport:
        """How it stands."""
        with self._lock:
            return self._report

    def stop(self) -> None:
        """Have `run` end soon."""
        self._end.set()

    def run(self, wake: Event) -> None:
        """Connect, listen, and connect again, until `stop`. `wake` is waited on between two connections."""
        rest = FIRST_REST
        while not self._end.is_set():
            began = self._clock.monotonic()
            why, wanted = self._connection(wake)
            if self._end.is_set():
                break
            self._tell(connected=False, error=why)
            if self._clock.monotonic() - began > SETTLED:
                rest = FIRST_REST
            wake.wait((wanted or rest) * random.uniform(0.8, 1.2))  # noqa: S311 - jitter is no secret
            rest = min(LONGEST_REST, 2 * rest)

    def _connection(self, wake: Event) -> tuple[str, float | None]:
        """One connection, to its end: why it ended, and how long to rest where that is not as usual."""
        from websockets.exceptions import InvalidHandshake, InvalidURI, WebSocketException
        from websockets.sync.client import connect

        loopback = urlsplit(self._url).hostname in ("127.0.0.1", "::1", "localhost")
        try:
            with connect(
                self._url, open_timeout=CONNECT_SECONDS, ping_interval=PING_SECONDS, ping_timeout=PING_SECONDS,
                close_timeout=1.0, max_size=MOST_BYTES, compression=None, proxy=None if loopback else True,
            ) as connection:  # fmt: skip
                topics = self._topics
                _Talk(self, connection, wake).go_on(topics)
        except _Lost as lost:
            return str(lost), lost.rest
        except (InvalidHandshake, InvalidURI) as error:
            return f"no websocket there ({type(error).__name__})", None
        except (WebSocketException, TimeoutError) as error:
            return str(error)[:160] or type(error).__name__, None
        except OSError as error:
            return error.strerror or type(error).__name__, None
        return "ended", None

    def _tell(self, *, connected: bool, error: str = "", heard: bool = False) -> None:
        with self._lock:
            before = self._report
            at = self._clock.now() if heard else before.last_at
            self._report = StreamReport(self.name, connected, at, error)
        if connected and not before.connected:
            log.info("listening to %s", self.name, extra={"action": "events"})
        elif error and (before.connected or error != before.error):
            log.info("not listening to %s: %s", self.name, error, extra={"action": "events"})


class _Talk:
    """What is said on one connection."""

    def __init__(self, listener: Listener, connection: Any, wake: Event) -> None:
        self._of, self._connection, self._wake = listener, connection, wake
        self._open: set[str] = set()
        self._blocks = False

    def go_on(self, topics: frozenset[int]) -> None:
        """Subscribe, and listen until the connection is of no use or other topics are wanted. Raises _Lost."""
        asked = queries(topics)
        self._open = {name for name in asked if name != "headers"}
        self._request("status", "status", {})
        for name, query in asked.items():
            self._request(name, "subscribe", {"query": query})
        heard = self._of._clock.monotonic()
        while not self._of._end.is_set():
            if self._of._topics != topics:
                raise _Lost("other topics are wanted", 0.01)
            self._wake.wait(0)  # a sign of progress
            try:
                told = read_message(self._connection.recv(timeout=LISTEN))
            except TimeoutError:
                silent = self._of._clock.monotonic() - heard
                if (self._blocks or self._open) and silent > self._of._silence:
                    raise _Lost(f"nothing was told for {silent:.0f} s") from None
                continue
            heard = self._of._clock.monotonic()
            self._take(told)

    def _request(self, name: str, method: str, params: dict[str, str]) -> None:
        self._connection.send(json.dumps({"jsonrpc": "2.0", "id": name, "method": method, "params": params}))

    def _take(self, told: Told) -> None:
        of = self._of
        if told.chain_id is not None and told.chain_id != of._chain_id:
            raise _Lost(f"on chain {told.chain_id[:40]!r}", WRONG_CHAIN_REST)
        if told.refused and told.name in self._open:
            raise _Lost("the node declined the subscription", LONGEST_REST)
        self._blocks = self._blocks or (told.acknowledged and told.name == "headers")
        if told.acknowledged and told.name in self._open:
            self._open.discard(told.name)
            if not self._open:
                of._tell(connected=True, heard=True)
                of._on_connected()
            return
        if told.height is not None:
            of._tell(connected=not self._open, heard=True)
            of._on_block(told.height)
        for one in told.opened:
            of._on_opening(one.topic_id, one.nonce)
