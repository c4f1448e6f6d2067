"""A bounded HTTP client: it limits the size of a response and the total time of a request, including retries.

Invariant: a request never outlives its deadline for the caller. The timeouts of an HTTP library apply to one socket
operation, so a hanging name server or a slowly dripping body never hits them. The request therefore runs in its own
thread; the caller stops waiting at the deadline, and the abandoned thread ends at its next byte. A URL may hold a
secret, so messages name only the host and the port.
"""

from __future__ import annotations

import ipaddress
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import SplitResult, urlsplit

from forecastd.clock import SystemClock
from forecastd.errors import RetryLater
from forecastd.runtime.closeable import Closeable
from forecastd.runtime.retry import backoff_seconds

if TYPE_CHECKING:
    import requests

log = logging.getLogger(__name__)
T = TypeVar("T")

DEFAULT_DEADLINE = 10.0  # seconds for a whole request: name lookup, body, retries and the waits between them
MAX_ATTEMPTS = 3
INITIAL_BACKOFF, MAX_BACKOFF = 0.2, 1.0  # seconds before a retry, when the server names none
MIN_REMAINING_FRACTION = 0.1  # of the total time; with less left, a retry is not started
SOCKET_TIMEOUT = 5.0  # seconds per socket operation
MAX_RESPONSE_BYTES = 32 * 2**20
CHUNK_BYTES = 65_536


class TransientHttpError(RetryLater):
    """The request failed in a way that an immediate retry may fix.

    `retry_after`: seconds that the server asks to wait before the retry; None when it names none.
    """

    def __init__(self, message: str | None = None, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class HttpRequestFailed(TransientHttpError):
    """No complete response was received.

    `problem`: what happened, a verb phrase. `connect_error`: why no connection could be made, in which case the server
    has not received the request; empty otherwise.
    """

    def __init__(self, host: str, problem: str, *, connect_error: str = "") -> None:
        super().__init__(f"{host} {problem}. Check the network.")
        self.problem, self.connect_error = problem, connect_error


class ResponseTooLarge(RetryLater):
    """The response is larger than its limit. `response` has its first bytes."""

    def __init__(self, host: str, max_bytes: int, response: HttpResponse) -> None:
        super().__init__(f"{host} sent more than {max_bytes >> 20} MB; the response was discarded.")
        self.response = response


@dataclass(frozen=True)
class HttpResponse:
    """A response of any status. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


class HttpClient(Closeable):
    """Requests to one server. Redirects are not followed: they would send the headers and the body to another host.

    Thread-safe. No credentials of this host's .netrc are sent, and no proxy is used for this machine's own ports.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str = "",
        headers: Mapping[str, str] | None = None,
        max_bytes: int = MAX_RESPONSE_BYTES,
        socket_timeout: float = SOCKET_TIMEOUT,
        keep_alive: bool = False,
    ) -> None:
        """`name`: what messages call the server, by default its host and port. `headers` are sent with each request.

        `keep_alive`: use a connection again. Without it a response can never be taken for that of another request.
        """
        self._url, self.name = url, name or host_and_port(url)
        self._headers = {"Accept-Encoding": "identity"} | ({} if keep_alive else {"Connection": "close"})
        self._headers |= headers or {}
        self._max_bytes, self._socket_timeout = max_bytes, socket_timeout
        self._lock = threading.Lock()
        self._session: requests.Session | None = None
        self._in_flight: set[Future[HttpResponse]] = set()

    def close(self) -> None:
        """Close the connections. Requests in progress fail at once; a later request opens new connections."""
        with self._lock:
            session, self._session = self._session, None
            in_flight = list(self._in_flight)
        for future in in_flight:
            with suppress(InvalidStateError):  # it has just finished
                future.set_exception(HttpRequestFailed(self.name, "did not answer before the connection was closed"))
        if session is not None:
            session.close()

    def request(
        self,
        method: str,
        path: str = "",
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        deadline: float = DEFAULT_DEADLINE,
    ) -> HttpResponse:
        """The response to a request for `path`, which is appended to the URL.

        Raises:
            HttpRequestFailed: no complete response within `deadline` seconds.
            ResponseTooLarge: the response has more than `max_bytes`.
        """
        future: Future[HttpResponse] = Future()
        with self._lock:
            self._in_flight.add(future)
            session = self._session = self._session or self._new_session()

        arguments = {"method": method, "url": self._url + path, "params": params, "headers": headers, "data": body}

        def send(is_abandoned: Callable[[], bool]) -> HttpResponse:
            return self._send(session, arguments, is_abandoned)

        try:
            return run_with_timeout(deadline, self.name, send, (RetryLater,), future)
        finally:
            with self._lock:
                self._in_flight.discard(future)

    def _new_session(self) -> requests.Session:
        import requests

        session = requests.Session()
        session.trust_env = not is_loopback(urlsplit(self._url).hostname or "")
        # A no-op `auth` stops requests from overriding the Authorization header with the user's .netrc.
        session.auth = lambda request: request
        session.headers.update(self._headers)
        return session

    def _send(
        self, session: requests.Session, arguments: Mapping[str, Any], is_abandoned: Callable[[], bool]
    ) -> HttpResponse:
        import requests
        import urllib3

        try:
            with session.request(
                **arguments, timeout=self._socket_timeout, stream=True, allow_redirects=False
            ) as response:
                content, raw = bytearray(), cast(urllib3.HTTPResponse, response.raw)
                while (
                    len(content) <= self._max_bytes
                    and not is_abandoned()
                    and (chunk := raw.read1(CHUNK_BYTES, decode_content=True))
                ):
                    content += chunk
                response_headers = {name.lower(): value for name, value in response.headers.items()}
                result = HttpResponse(response.status_code, response_headers, bytes(content))
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            problem = f"cannot be reached, or the connection broke ({type(error).__name__})"
            raise HttpRequestFailed(self.name, problem, connect_error=_connect_error(error)) from None
        if len(content) > self._max_bytes:
            raise ResponseTooLarge(self.name, self._max_bytes, result)
        return result


def fetch_url(
    url: str,
    params: Mapping[str, str],
    headers: Mapping[str, str],
    deadline: float = DEFAULT_DEADLINE,
    *,
    max_bytes: int = MAX_RESPONSE_BYTES,
) -> HttpResponse:
    """GET `url`. Raises as `HttpClient.request` does."""
    with HttpClient(url, headers=headers, max_bytes=max_bytes) as client:
        return client.request("GET", params=params, deadline=deadline)


def retry_transient(work: Callable[[float], T], seconds: float, stop: threading.Event) -> T:
    """Call `work` up to `MAX_ATTEMPTS` times while it raises `TransientHttpError`, within `seconds` in total.

    `work` receives its time limit: half of the total, so that a hanging attempt leaves time for another; the last
    attempt gets all that is left. Setting `stop` ends a wait at once. When no time or no attempt is left, the last
    error is raised.
    """
    clock = SystemClock()
    end = clock.monotonic() + seconds
    attempt = 1
    while True:
        remaining = end - clock.monotonic()
        try:
            return work(remaining if attempt == MAX_ATTEMPTS else min(remaining, seconds / 2))
        except TransientHttpError as error:
            delay = error.retry_after
            if delay is None:
                delay = backoff_seconds(attempt, INITIAL_BACKOFF, MAX_BACKOFF, jitter=0.5)
            if (
                attempt == MAX_ATTEMPTS
                or end - clock.monotonic() - delay < MIN_REMAINING_FRACTION * seconds
                or stop.wait(delay)
            ):
                raise
            log.info("%s Retrying.", error)
        attempt += 1


def request_thread_name(host: str) -> str:
    """The name of the thread in which `run_with_timeout` sends a request to `host`; log filters compare it."""
    return f"request to {host}"


def run_with_timeout(
    seconds: float,
    host: str,
    work: Callable[[Callable[[], bool]], T],
    errors: tuple[type[Exception], ...] = (),
    future: Future[T] | None = None,
) -> T:
    """Run `work` in its own thread and return its result; abandon the thread after `seconds`.

    `work` receives a function that returns whether it was abandoned. Exceptions of the types in `errors` are raised
    here. Another thread may end the wait with an exception of `future`.

    Raises:
        HttpRequestFailed: `work` did not return in time.
    """
    result: Future[T] = future or Future()

    def run() -> None:
        with suppress(InvalidStateError):  # abandoned
            try:
                result.set_result(work(result.done))
            except errors as error:
                result.set_exception(error)
            finally:
                result.cancel()  # after an exception of another type, which the thread reports

    threading.Thread(target=run, name=request_thread_name(host), daemon=True).start()
    try:
        return result.result(seconds)
    except (TimeoutError, CancelledError):
        raise HttpRequestFailed(host, f"did not answer in full within {seconds:.2g} s") from None
    finally:
        result.cancel()


def split_http_url(url: str) -> SplitResult | None:
    """The parts of an http or https URL with a host and a valid port; None when `url` is not one."""
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return parts if is_valid else None


def host_and_port(url: str) -> str:
    """Host and port of a URL, without user name and password, for messages."""
    return urlsplit(url).netloc.rpartition("@")[2]


def is_loopback(host: str) -> bool:
    """Whether only this machine has the address `host`. A name other than `localhost` may be any machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _connect_error(error: Exception) -> str:
    """Why no connection could be made, such as `Connection refused`; empty when one was made, or after a time limit."""
    import requests
    import urllib3

    if isinstance(error, requests.exceptions.InvalidURL | UnicodeError):
        return "unknown host"
    reason = getattr(error.args[0], "reason", None) if error.args else None
    if not isinstance(reason, urllib3.exceptions.NewConnectionError):
        return ""
    return getattr(reason.__cause__, "strerror", None) or "unknown host"
