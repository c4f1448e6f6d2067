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

DEADLINE = 10.0  # seconds for a request as a whole: name look-up, body, further attempts and the waits before them
ATTEMPTS = 3
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 1.0  # seconds before another attempt, where the server does not say
LEAST = 0.1  # of the whole: with less than that left, another attempt is not worth beginning
STALL = 5.0  # seconds for one socket operation
MOST_BYTES = 32 * 2**20
PIECE = 65_536


class Passing(RetryLater):
    """The request failed in a way that may be gone in a moment: worth a second attempt at once.

    `wait`: seconds that the server asks to wait before it, None where it does not say.
    """

    def __init__(self, message: str | None = None, *, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True)
class Answer:
    """What came back, whatever its status. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


def get(
    url: str,
    params: Mapping[str, str],
    headers: Mapping[str, str],
    deadline: float = DEADLINE,
    *,
    most: int = MOST_BYTES,
) -> Answer:
    """GET `url`. Redirects are not followed: they would carry the headers, and a key among them, elsewhere.

    Raises:
        Passing: no whole answer within `deadline` seconds.
        RetryLater: the answer is larger than `most` bytes.
    """
    host = address(url)
    answer = within(deadline, host, lambda is_abandoned: _request(url, params, headers, most, is_abandoned))
    if isinstance(answer, RetryLater):
        raise answer
    return answer


def persist(work: Callable[[float], T], seconds: float, stop: threading.Event) -> T:
    """What `work` returns, tried up to `ATTEMPTS` times while it raises `Passing`, in `seconds` altogether.

    `work` gets the seconds that it may take: half of all, so that an attempt that hangs leaves time for another, and the
    last one what is left. Setting `stop` ends a wait at once. When no time or attempt is left, the last error is raised.
    """
    clock = SystemClock()
    end = clock.monotonic() + seconds
    attempt = 1
    while True:
        left = end - clock.monotonic()
        try:
            return work(left if attempt == ATTEMPTS else min(left, seconds / 2))
        except Passing as error:
            jitter = random.uniform(0.5, 1.5)  # noqa: S311 - jitter is no secret
            pause = min(FIRST_PAUSE * 2 ** (attempt - 1) * jitter, LONGEST_PAUSE) if error.wait is None else error.wait
            if attempt == ATTEMPTS or end - clock.monotonic() - pause < LEAST * seconds or stop.wait(pause):
                raise
            log.info("%s Trying again.", error)
        attempt += 1


def within(
    seconds: float, host: str, work: Callable[[Callable[[], bool]], T], errors: tuple[type[Exception], ...] = ()
) -> T:
    """What `work` returns, in a thread of its own that is left to itself after `seconds`.

    `work` gets a function that says whether anybody still waits for it. Of its exceptions, `errors` are raised here.

    Raises:
        Passing: it did not return in time.
    """
    done, abandoned = threading.Event(), threading.Event()
    results: list[T] = []
    raised: list[Exception] = []

    def run() -> None:
        try:
            results.append(work(abandoned.is_set))
        except errors as error:
            raised.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name=f"asking {host}", daemon=True).start()
    finished = done.wait(seconds)
    abandoned.set()
    if raised:
        raise raised[0]
    if not finished or not results:
        raise Passing(f"{host} did not answer in full within {seconds:.2g} s.")
    return results[0]


def address(url: str) -> str:
    """Host and port of a URL, to be shown: never a user name or a password."""
    return urlsplit(url).netloc.rpartition("@")[2]


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _request(
    url: str, params: Mapping[str, str], headers: Mapping[str, str], most: int, is_abandoned: Callable[[], bool]
) -> Answer | RetryLater:
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
                timeout=STALL,
                stream=True,
                allow_redirects=False,
            ) as answer:
                body = bytearray()
                raw = cast("HTTPResponse", answer.raw)
                while piece := raw.read1(PIECE, decode_content=True):
                    body += piece
                    if len(body) > most:
                        return RetryLater(f"{address(url)} sent more than {most >> 20} MB; it was cut off.")
                    if is_abandoned():
                        break
                names = {name.lower(): value for name, value in answer.headers.items()}
                return Answer(answer.status_code, names, bytes(body))
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        return Passing(f"{address(url)} cannot be reached or broke off ({type(error).__name__}). Look at the network.")
