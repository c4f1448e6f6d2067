"""One bounded HTTP request: bounded in bytes, and in time as a whole, further attempts included.

The one thing to know before changing it: the timeouts of an HTTP library hold for one socket operation, so a name server
that hangs or a body that drips passes them for ever. The request therefore runs in a thread of its own, and the caller
stops waiting for it at the deadline; what is left of it ends by itself at its next byte.
"""

from __future__ import annotations

import ipaddress
import logging
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar, cast
from urllib.parse import urlsplit

from forecastd.clock import SystemClock
from forecastd.errors import RetryLater

if TYPE_CHECKING:
    from urllib3.response import HTTPResponse

log = logging.getLogger(__name__)
T = TypeVar("T")

DEFAULT_DEADLINE = (
    10.0  # seconds for a request as a whole: name look-up, body, further attempts and the waits before them
)
MAX_ATTEMPTS = 3
INITIAL_BACKOFF, MAX_BACKOFF = 0.2, 1.0  # seconds before another attempt, where the server does not say
MIN_REMAINING_FRACTION = 0.1  # of the whole: with less than that left, another attempt is not worth beginning
SOCKET_TIMEOUT = 5.0  # seconds for one socket operation
MAX_RESPONSE_BYTES = 32 * 2**20
CHUNK_BYTES = 65_536


class TransientHttpError(RetryLater):
    """The request failed in a way that may be gone in a moment: worth a second attempt at once.

    `wait`: seconds that the server asks to wait before it, None where it does not say.
    """

    def __init__(self, message: str | None = None, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class HttpResponse:
    """What came back, whatever its status. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


def fetch_url(
    url: str,
    params: Mapping[str, str],
    headers: Mapping[str, str],
    deadline: float = DEFAULT_DEADLINE,
    *,
    max_bytes: int = MAX_RESPONSE_BYTES,
) -> HttpResponse:
    """GET `url`. Redirects are not followed: they would carry the headers, and a key among them, elsewhere.

    Raises:
        Passing: no whole answer within `deadline` seconds.
        RetryLater: the answer is larger than `most` bytes.
    """
    host = host_and_port(url)
    response = run_with_timeout(
        deadline, host, lambda is_abandoned: _request(url, params, headers, max_bytes, is_abandoned)
    )
    if isinstance(response, RetryLater):
        raise response
    return response


def retry_transient(work: Callable[[float], T], seconds: float, stop: threading.Event) -> T:
    """What `work` returns, tried up to `ATTEMPTS` times while it raises `Passing`, in `seconds` altogether.

    `work` gets the seconds that it may take: half of all, so that an attempt that hangs leaves time for another, and the
    last one what is left. Setting `stop` ends a wait at once. When no time or attempt is left, the last error is raised.
    """
    clock = SystemClock()
    end = clock.monotonic() + seconds
    attempt = 1
    while True:
        remaining = end - clock.monotonic()
        try:
            return work(remaining if attempt == MAX_ATTEMPTS else min(remaining, seconds / 2))
        except TransientHttpError as error:
            jitter = random.uniform(0.5, 1.5)  # noqa: S311 - jitter is no secret
            delay = (
                min(INITIAL_BACKOFF * 2 ** (attempt - 1) * jitter, MAX_BACKOFF)
                if error.retry_after is None
                else error.retry_after
            )
            if (
                attempt == MAX_ATTEMPTS
                or end - clock.monotonic() - delay < MIN_REMAINING_FRACTION * seconds
                or stop.wait(delay)
            ):
                raise
            log.info("%s Trying again.", error)
        attempt += 1


def request_thread_name(host: str) -> str:
    """The name of the thread in which `run_with_timeout` sends a request to `host`; log filters compare it."""
    return f"request to {host}"


def run_with_timeout(
    seconds: float, host: str, work: Callable[[Callable[[], bool]], T], errors: tuple[type[Exception], ...] = ()
) -> T:
    """What `work` returns, in a thread of its own that is left to itself after `seconds`.

    `work` gets a function that says whether anybody still waits for it. Of its exceptions, `errors` are raised here.

    Raises:
        Passing: it did not return in time.
    """
    done_event, abandoned_event = threading.Event(), threading.Event()
    results: list[T] = []
    exceptions: list[Exception] = []

    def run() -> None:
        try:
            results.append(work(abandoned_event.is_set))
        except errors as error:
            exceptions.append(error)
        finally:
            done_event.set()

    threading.Thread(target=run, name=request_thread_name(host), daemon=True).start()
    is_finished = done_event.wait(seconds)
    abandoned_event.set()
    if exceptions:
        raise exceptions[0]
    if not is_finished or not results:
        raise TransientHttpError(f"{host} did not answer in full within {seconds:.2g} s.")
    return results[0]


def host_and_port(url: str) -> str:
    """Host and port of a URL, to be shown: never a user name or a password."""
    return urlsplit(url).netloc.rpartition("@")[2]


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _request(
    url: str, params: Mapping[str, str], headers: Mapping[str, str], max_bytes: int, is_abandoned: Callable[[], bool]
) -> HttpResponse | RetryLater:
    import requests
    import urllib3

    parts = urlsplit(url)
    try:
        with requests.Session() as session:
            session.trust_env = not is_loopback(parts.hostname or "")  # a proxy does not know this machine's own ports
            # `auth` says that nothing is to be added, or requests would put a user's .netrc over the header.
            with session.get(
                url,
                params=dict(params),
                headers={"Accept-Encoding": "identity", **headers},
                auth=lambda request: request,
                timeout=SOCKET_TIMEOUT,
                stream=True,
                allow_redirects=False,
            ) as response:
                body = bytearray()
                raw = cast("HTTPResponse", response.raw)
                while chunk := raw.read1(CHUNK_BYTES, decode_content=True):
                    body += chunk
                    if len(body) > max_bytes:
                        return RetryLater(f"{host_and_port(url)} sent more than {max_bytes >> 20} MB; it was cut off.")
                    if is_abandoned():
                        break
                response_headers = {name.lower(): value for name, value in response.headers.items()}
                return HttpResponse(response.status_code, response_headers, bytes(body))
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        return TransientHttpError(
            f"{host_and_port(url)} cannot be reached or broke off ({type(error).__name__}). Look at the network."
        )
