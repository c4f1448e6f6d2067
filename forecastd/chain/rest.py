"""The way to a node over REST: the same calls as over gRPC, through the gateway that every Cosmos node can run.

The one thing to know before changing it: the timeouts of an HTTP library hold for one socket operation, so a name server
that hangs or a body that drips would pass them for ever. Each request runs in a thread of its own, and its caller stops
waiting at the deadline; what is left of it ends at its next byte.
"""

from __future__ import annotations

import json
import struct
import threading
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from forecastd.chain.endpoint import Endpoint
from forecastd.chain.paths import ROUTES, STATUS_NAMES, Route, kept
from forecastd.chain.wire import LARGEST_ANSWER, TRANSPORT, NoAnswer, Refused, no_answer, shorten

if TYPE_CHECKING:
    import requests
    from urllib3.response import HTTPResponse

_STALL = 5.0  # seconds for one socket operation
_PIECE = 65_536
_NOT_IMPLEMENTED = 501


class Unusable(Exception):
    """What came over HTTP is no answer of a node; the text says what it is."""


class RestWire:
    """The REST side of one endpoint. Connections are kept and used again."""

    def __init__(self, endpoint: Endpoint, deadline: float) -> None:
        self.endpoint = endpoint
        self._deadline = deadline
        self._lock = threading.Lock()
        self._session: requests.Session | None = None
        self._flying: set[Future[tuple[int, bytes]]] = set()

    def close(self) -> None:
        """Let go of the connections; calls under way fail at once. A later call makes new ones."""
        with self._lock:
            session, self._session = self._session, None
            flying = list(self._flying)
        for future in flying:
            with suppress(InvalidStateError):  # it is just done
                future.set_exception(Unusable("the connection was closed"))
        if session is not None:
            session.close()

    def call(self, method: str, request: Any, reply: Any) -> Any:
        """Call `package.Service/Method` and read its answer as a message of the class `reply`.

        Raises:
            RetryLater: no usable answer within the deadline.
            Refused: the node said no.
        """
        answer = kept(self.send(method, request), ROUTES[method].keep)
        try:
            # By way of protobuf's own bytes, so that no number gets in that its type could not hold.
            return reply.parse(bytes(reply.from_dict(answer, ignore_unknown_fields=True)))
        except (ValueError, TypeError, LookupError, AttributeError, EOFError, OverflowError, struct.error):
            raise no_answer(self.endpoint, method, "an answer that is not readable") from None

    def send(self, method: str, request: Any) -> dict[str, Any]:
        """As `call`, with the answer as JSON gave it."""
        future: Future[tuple[int, bytes]] = Future()
        route = ROUTES[method]
        url, body = _request(self.endpoint.url, route, request)
        with self._lock:
            self._flying.add(future)
            session = self._session = self._session or self._new_session()
        threading.Thread(
            target=_exchange, args=(session, route.verb, url, body, future), name=f"asking {self.endpoint}", daemon=True
        ).start()
        try:
            return read_answer(*future.result(self._deadline))
        except Unusable as error:
            raise no_answer(self.endpoint, method, str(error)) from None
        except TimeoutError:
            raise self._late(method, future) from None
        finally:
            with self._lock:
                self._flying.discard(future)

    def _late(self, method: str, future: Future[tuple[int, bytes]]) -> NoAnswer:
        with suppress(InvalidStateError):
            future.set_exception(Unusable("too late"))  # the thread sees that nobody waits
        return no_answer(self.endpoint, method, f"not answered in full within {self._deadline:g} s")

    def _new_session(self) -> requests.Session:
        import requests

        session = requests.Session()
        # One answer a connection: a proxy that answers twice must not have its second answer taken for the next one.
        session.headers["Connection"] = "close"
        # A proxy of the environment must not stand between this process and a node on the same machine.
        session.trust_env = not self.endpoint.loopback
        return session


def read_answer(status: int, body: bytes) -> dict[str, Any]:
    """The answer of a node's gateway.

    Raises:
        Refused: the node said no.
        Unusable: it is none: a proxy's page, a rate limit, a part of an answer.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if isinstance(answer, dict):
        code, text = answer.get("code"), answer.get("message")
        if isinstance(code, int) and isinstance(text, str) and code:
            name = STATUS_NAMES[code] if 0 < code < len(STATUS_NAMES) else "UNKNOWN"
            if name in TRANSPORT:
                raise Unusable(f"{name.lower().replace('_', ' ')}, {shorten(text)}")
            raise Refused(name, text)
        if status == 200:
            return answer
    if status == _NOT_IMPLEMENTED:
        raise Refused("UNIMPLEMENTED", f"HTTP {status}")
    if status == 429:
        raise Unusable("HTTP 429, too many requests")
    raise Unusable(f"HTTP {status}" + (" with something that is not JSON" if status == 200 else ""))


def _request(base: str, route: Route, request: Any) -> tuple[str, bytes | None]:
    """URL and body of a request."""
    if isinstance(request, bytes):  # a request without fields
        return base + route.path, None
    import betterproto2

    def fields(*, all_of_them: bool) -> dict[str, Any]:
        told: dict[str, Any] = request.to_dict(casing=betterproto2.Casing.SNAKE, include_default_values=all_of_them)
        return told

    if route.verb == "POST":
        return base + route.path, json.dumps(fields(all_of_them=False)).encode()
    values = {name: quote(str(value), safe="") for name, value in fields(all_of_them=True).items()}
    return base + route.path.format_map(values), None


def _exchange(
    session: requests.Session, verb: str, url: str, body: bytes | None, future: Future[tuple[int, bytes]]
) -> None:
    """In a thread of its own: ask, and read the answer as long as somebody waits for it."""
    import requests
    import urllib3

    try:
        # `auth` says that nothing is to be added, or requests would send what a user's .netrc has.
        with session.request(
            verb, url, data=body, headers={"Accept-Encoding": "identity", "Content-Type": "application/json"},
            auth=lambda request: request, timeout=_STALL, stream=True, allow_redirects=False,
        ) as answer:  # fmt: skip
            result = answer.status_code, _body(cast("HTTPResponse", answer.raw), future)
    except Unusable as error:
        _end(future, error)
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        # Without the text of the error: it repeats the URL.
        _end(future, Unusable(f"it cannot be reached or broke off ({type(error).__name__})"))
    else:
        with suppress(InvalidStateError):
            future.set_result(result)


def _body(raw: HTTPResponse, future: Future[tuple[int, bytes]]) -> bytes:
    found = bytearray()
    while not future.done() and (piece := raw.read1(_PIECE, decode_content=True)):
        found += piece
        if len(found) > LARGEST_ANSWER:
            raise Unusable(f"more than {LARGEST_ANSWER >> 20} MB")
    return bytes(found)


def _end(future: Future[tuple[int, bytes]], error: Unusable) -> None:
    with suppress(InvalidStateError):  # nobody waits any more
        future.set_exception(error)
