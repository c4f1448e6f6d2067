"""Calls a node over REST: the same methods as over gRPC, through the gateway of a Cosmos node.

Invariant: no call takes longer than its deadline. The timeouts of an HTTP library cover one socket operation each, so a
hanging name server or a body that arrives byte by byte would exceed them. Each request therefore runs in a thread of
its own, and the caller stops waiting at the deadline; the thread ends at the next byte it receives.
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
from forecastd.chain.grpc_transport import (
    MAX_RESPONSE_BYTES,
    TRANSPORT_STATUSES,
    NoUsableResponse,
    RpcError,
    no_usable_response,
    shorten,
)
from forecastd.chain.rest_routes import GRPC_STATUS_NAMES, ROUTES, Route, select_fields

if TYPE_CHECKING:
    import requests
    from urllib3.response import HTTPResponse

_SOCKET_TIMEOUT_SECONDS = 5.0  # for one socket operation
_CHUNK_BYTES = 65_536
_HTTP_NOT_IMPLEMENTED = 501


class UnusableResponse(Exception):
    """The HTTP response is not an answer of a node. The text says what it is."""


class RestTransport:
    """REST calls to one endpoint. Sessions are reused."""

    def __init__(self, endpoint: Endpoint, deadline: float) -> None:
        self.endpoint = endpoint
        self._deadline = deadline
        self._lock = threading.Lock()
        self._session: requests.Session | None = None
        self._in_flight: set[Future[tuple[int, bytes]]] = set()

    def close(self) -> None:
        """Close the connections. Calls in progress fail at once; a later call opens new connections."""
        with self._lock:
            session, self._session = self._session, None
            in_flight = list(self._in_flight)
        for future in in_flight:
            with suppress(InvalidStateError):  # it has just finished
                future.set_exception(UnusableResponse("the connection was closed"))
        if session is not None:
            session.close()

    def call(self, method: str, request: Any, reply: Any) -> Any:
        """Call `package.Service/Method` and parse the answer as a message of the class `reply`.

        Raises:
            RetryLater: no usable answer within the deadline.
            RpcError: the node refused the call.
        """
        response = select_fields(self.send(method, request), ROUTES[method].response_fields)
        try:
            # Serialized and parsed once more, so that no number exceeds the range of its protobuf type.
            return reply.parse(bytes(reply.from_dict(response, ignore_unknown_fields=True)))
        except (ValueError, TypeError, LookupError, AttributeError, EOFError, OverflowError, struct.error):
            raise no_usable_response(self.endpoint, method, "an unreadable answer") from None

    def send(self, method: str, request: Any) -> dict[str, Any]:
        """Like `call`, but returns the JSON of the answer."""
        future: Future[tuple[int, bytes]] = Future()
        route = ROUTES[method]
        url, body = _request(self.endpoint.url, route, request)
        with self._lock:
            self._in_flight.add(future)
            session = self._session = self._session or self._new_session()
        threading.Thread(
            target=_send_request,
            args=(session, route.verb, url, body, future),
            name=f"asking {self.endpoint}",
            daemon=True,
        ).start()
        try:
            return read_response(*future.result(self._deadline))
        except UnusableResponse as error:
            raise no_usable_response(self.endpoint, method, str(error)) from None
        except TimeoutError:
            raise self._timed_out(method, future) from None
        finally:
            with self._lock:
                self._in_flight.discard(future)

    def _timed_out(self, method: str, future: Future[tuple[int, bytes]]) -> NoUsableResponse:
        with suppress(InvalidStateError):
            future.set_exception(UnusableResponse("too late"))  # shows the thread that no caller waits for it
        return no_usable_response(self.endpoint, method, f"no complete answer within {self._deadline:g} s")

    def _new_session(self) -> requests.Session:
        import requests

        session = requests.Session()
        # One answer per connection: if a proxy answers twice, the second answer must not be taken for that of the next
        # request.
        session.headers["Connection"] = "close"
        # A proxy from the environment must not be used for a node on this machine.
        session.trust_env = not self.endpoint.is_loopback
        return session


def read_response(status: int, body: bytes) -> dict[str, Any]:
    """Parse the answer of a node's gateway.

    Raises:
        RpcError: the node refused the call.
        UnusableResponse: it is not an answer of a node, but a proxy's page, a rate limit or a truncated answer.
    """
    try:
        response = json.loads(body)
    except (ValueError, RecursionError):
        response = None
    if isinstance(response, dict):
        code, text = response.get("code"), response.get("message")
        if isinstance(code, int) and isinstance(text, str) and code:
            name = GRPC_STATUS_NAMES[code] if 0 < code < len(GRPC_STATUS_NAMES) else "UNKNOWN"
            if name in TRANSPORT_STATUSES:
                raise UnusableResponse(f"{name.lower().replace('_', ' ')}, {shorten(text)}")
            raise RpcError(name, text)
        if status == 200:
            return response
    if status == _HTTP_NOT_IMPLEMENTED:
        raise RpcError("UNIMPLEMENTED", f"HTTP {status}")
    if status == 429:
        raise UnusableResponse("HTTP 429, too many requests")
    raise UnusableResponse(f"HTTP {status}" + (" with something that is not JSON" if status == 200 else ""))


def _request(base: str, route: Route, request: Any) -> tuple[str, bytes | None]:
    """The URL and the body of a request."""
    if isinstance(request, bytes):  # a request without fields
        return base + route.path, None
    import betterproto2

    def fields(*, include_defaults: bool) -> dict[str, Any]:
        message_fields: dict[str, Any] = request.to_dict(
            casing=betterproto2.Casing.SNAKE, include_default_values=include_defaults
        )
        return message_fields

    if route.verb == "POST":
        return base + route.path, json.dumps(fields(include_defaults=False)).encode()
    values = {name: quote(str(value), safe="") for name, value in fields(include_defaults=True).items()}
    return base + route.path.format_map(values), None


def _send_request(
    session: requests.Session, verb: str, url: str, body: bytes | None, future: Future[tuple[int, bytes]]
) -> None:
    """Send a request and read the answer while the caller waits for it. Runs in a thread of its own."""
    import requests
    import urllib3

    try:
        # `auth` adds nothing; without it, requests would send the credentials of the user's .netrc.
        with session.request(
            verb, url, data=body, headers={"Accept-Encoding": "identity", "Content-Type": "application/json"},
            auth=lambda request: request, timeout=_SOCKET_TIMEOUT_SECONDS, stream=True, allow_redirects=False,
        ) as response:  # fmt: skip
            result = response.status_code, _read_body(cast("HTTPResponse", response.raw), future)
    except UnusableResponse as error:
        _fail(future, error)
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        # The text of the error is left out because it repeats the URL.
        _fail(future, UnusableResponse(f"cannot be reached, or the connection broke ({type(error).__name__})"))
    else:
        with suppress(InvalidStateError):
            future.set_result(result)


def _read_body(raw: HTTPResponse, future: Future[tuple[int, bytes]]) -> bytes:
    body = bytearray()
    while not future.done() and (chunk := raw.read1(_CHUNK_BYTES, decode_content=True)):
        body += chunk
        if len(body) > MAX_RESPONSE_BYTES:
            raise UnusableResponse(f"more than {MAX_RESPONSE_BYTES >> 20} MB")
    return bytes(body)


def _fail(future: Future[tuple[int, bytes]], error: UnusableResponse) -> None:
    with suppress(InvalidStateError):  # the caller stopped waiting
        future.set_exception(error)
