"""A bounded HTTP client: it limits the size of a response and the total time of a request, including retries.

Invariant: a request never outlives its deadline for the caller. The timeouts of an HTTP library apply to one socket
operation, so a hanging name server or a slowly dripping body never hits them. The request therefore runs in its own
thread; the caller stops waiting at the deadline, and the abandoned thread ends at its next byte.
"""

from __future__ import annotations

import ipaddress
import logging
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar, cast
from urllib.parse import urlsplit

from forecastd.clock import SystemClock
from forecastd.errors import RetryLater

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


@dataclass(frozen=True)
class HttpResponse:
    """A response of any status. Header names are in lower case."""

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
    """GET `url`. Redirects are not followed: they would send the headers, and the API key in them, to another host.

    Raises:
        Passing: no complete response within `deadline` seconds.
        RetryLater: the response is larger than `max_bytes`.
    """
    host = host_and_port(url)
    response = run_with_timeout(
        deadline, host, lambda is_abandoned: _request(url, params, headers, max_bytes, is_abandoned)
    )
    if isinstance(response, RetryLater):
        raise response
    return response


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
            log.info("%s Retrying.", error)
        attempt += 1


def request_thread_name(host: str) -> str:
    """The name of the thread in which `run_with_timeout` sends a request to `host`; log filters compare it."""
    return f"request to {host}"


def run_with_timeout(
    seconds: float, host: str, work: Callable[[Callable[[], bool]], T], errors: tuple[type[Exception], ...] = ()
) -> T:
    """Run `work` in its own thread and return its result; abandon the thread after `seconds`.

    `work` receives a function that returns whether it was abandoned. Exceptions of the types in `errors` are raised
    here.

    Raises:
        Passing: `work` did not return in time.
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
    """Host and port of a URL, without user name and password, for messages."""
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
            session.trust_env = not is_loopback(parts.hostname or "")  # a proxy cannot reach this machine's own ports
            # A no-op `auth` stops requests from overriding the Authorization header with the user's .netrc.
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
                raw = cast(urllib3.HTTPResponse, response.raw)
                while chunk := raw.read1(CHUNK_BYTES, decode_content=True):
                    body += chunk
                    if len(body) > max_bytes:
                        return RetryLater(
                            f"{host_and_port(url)} sent more than {max_bytes >> 20} MB; the response was discarded."
                        )
                    if is_abandoned():
                        break
                response_headers = {name.lower(): value for name, value in response.headers.items()}
                return HttpResponse(response.status_code, response_headers, bytes(body))
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        return TransientHttpError(
            f"{host_and_port(url)} cannot be reached, or the connection broke ({type(error).__name__}). Check the network."
        )
