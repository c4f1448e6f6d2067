"""Access control: every request passes these checks before it reaches its route.

In this order: the Host header names this machine, the request does not come from another site's page, the API key is
valid, the client is within its rate limit, and the body is not too large. The middleware is plain ASGI, because the
framework's own kind of middleware copies streams.

A web page that a user of this machine opens can send requests here. Two headers reveal it: Host (the page may use a
name of its own that resolves to this machine), and Origin (the site of the page).
"""

from __future__ import annotations

import ipaddress
import math
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forecastd.clock import Clock
from forecastd.fleet.api.errors import RefusalLog, RequestRefused, body_too_large, to_response
from forecastd.fleet.api.keys import ApiKeys
from forecastd.fleet.api.metrics_routes import RequestMetrics
from forecastd.runtime.http import is_loopback

Headers = Iterable[tuple[bytes, bytes]]

CLIENT_BUCKETS = 4096  # number of counters for clients without a key
PUBLIC_PATHS = frozenset({"/healthz"})  # for service managers and load balancers, which have no key
WRITE_METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))


class RateLimit:
    """A limit of requests per minute and client; 0 is no limit.

    A client is a key, or an address where no key is needed. The window slides (two weighted counters) and its name
    contains the time, so a clock that is set back locks no client out. Memory is bounded however many clients there
    are.
    """

    def __init__(self, requests_per_minute: int) -> None:
        self._item = RateLimitItemPerMinute(requests_per_minute) if requests_per_minute else None
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._salt = secrets.randbits(64)  # a client cannot find out which addresses share a counter

    def client_key(self, key: int | None, address: str) -> str:
        """The client that a request counts for: the number of its key, or its address."""
        return client_bucket(address, self._salt) if key is None else f"key-{key}"

    def retry_after(self, client: str) -> int:
        """Count a request. Returns 0 when it is allowed, else the seconds until the next attempt."""
        if self._item is None or self._limiter.hit(self._item, client):
            return 0
        seconds = self._item.get_expiry() / max(
            1, self._item.amount
        )  # about the time until the next request is allowed
        return max(1, math.ceil(seconds))


@dataclass(frozen=True)
class AccessPolicy:
    """The rules for requests. `loopback_only`: only programs of this machine can reach the server."""

    keys: ApiKeys
    loopback_only: bool
    rate_limit: RateLimit
    max_body_bytes: int
    allowed_origins: Sequence[str] = field(default=())


class SecurityMiddleware:
    """ASGI middleware around the routes."""

    def __init__(
        self, app: ASGIApp, policy: AccessPolicy, metrics: RequestMetrics, refusal_log: RefusalLog, clock: Clock
    ) -> None:
        self._app, self._policy, self._metrics = app, policy, metrics
        self._refusal_log, self._clock = refusal_log, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # no websockets, and no work at startup or shutdown
            return
        started = self._clock.monotonic()
        status = 500  # until a response starts

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, send_with_headers)
        except RequestRefused as error:  # raised by `_check`; refusals of the routes are handled inside the app
            await to_response(error)(scope, receive, send_with_headers)
            self._refusal_log.record(error, client_address(scope))
        finally:
            self._metrics.record(scope, status, self._clock.monotonic() - started)

    def _check(self, scope: Scope) -> None:
        """Raises RequestRefused for a request that must not reach its route."""
        policy, headers, path = self._policy, scope["headers"], scope["path"]
        host = header(headers, b"host")
        if policy.loopback_only and not policy.keys and not is_local_name(host):
            raise RequestRefused(
                403, "The Host header names another machine.",
                "Use 127.0.0.1 or localhost, or set FLEET_API_KEYS to serve other names.", kind="host",
            )  # fmt: skip
        if scope["method"] in WRITE_METHODS and is_cross_site(header(headers, b"origin"), host, policy.allowed_origins):
            message = "The request comes from a page of another site."
            raise RequestRefused(403, message, "Add the site to FLEET_CORS_ORIGINS to allow it.", kind="origin")
        if path not in PUBLIC_PATHS:
            self._check_client(scope)
        length = declared_length(headers)
        if length is not None and length > policy.max_body_bytes:
            raise body_too_large(policy.max_body_bytes)

    def _check_client(self, scope: Scope) -> None:
        policy, address = self._policy, client_address(scope)
        supplied_key = request_key(scope["headers"]) if policy.keys else None
        key = policy.keys.match(supplied_key) if supplied_key is not None else None
        retry_after = policy.rate_limit.retry_after(policy.rate_limit.client_key(key, address))
        if retry_after:
            message = "This client sent too many requests in the last minute."
            raise RequestRefused(
                429, message, "Wait, and send larger batches less often.", headers={"Retry-After": str(retry_after)}
            )
        if policy.keys and key is None:
            message = "No API key was sent." if supplied_key is None else "The API key is unknown."
            raise RequestRefused(
                401, message, "Send one as X-API-Key: KEY or Authorization: Bearer KEY.",
                headers={"WWW-Authenticate": 'Bearer realm="forecastd fleet"'},
            )  # fmt: skip


def client_address(scope: Scope) -> str:
    """The address of the client of a request."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def header(headers: Headers, name: bytes) -> str | None:
    """The value of a header (its name in lower case); None if it is absent or has two different values."""
    values = {value for key, value in headers if key == name}
    return values.pop().decode("latin-1").strip() if len(values) == 1 else None


def request_key(headers: Headers) -> str | None:
    """The API key of a request: `X-API-Key: KEY` or `Authorization: Bearer KEY`."""
    key = header(headers, b"x-api-key")
    if key is not None:
        return key
    scheme, _, credentials = (header(headers, b"authorization") or "").partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" else None


def is_local_name(host: str | None) -> bool:
    """Whether a Host header is a name that only programs of this machine use: localhost or a loopback address."""
    try:
        return is_loopback(urlsplit(f"//{host or ''}").hostname or "")
    except ValueError:
        return False


def is_cross_site(origin: str | None, host: str | None, allowed: Iterable[str]) -> bool:
    """Whether a request comes from a page of another site. `allowed`: sites that may send requests."""
    if origin is None or origin in allowed:
        return False
    try:
        return host is None or urlsplit(origin).netloc.lower() != host.lower()
    except ValueError:
        return True


def client_bucket(client: str, salt: int) -> str:
    """The counter of an address. An IPv6 network of 64 bits is one client; the number of counters is fixed."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return "unknown"
    mapped = getattr(address, "ipv4_mapped", None) or address
    number = int(mapped) if mapped.version == 4 else int(mapped) >> 64
    return f"address-{hash((number, salt)) % CLIENT_BUCKETS}"


def declared_length(headers: Headers) -> int | None:
    """The Content-Length of a request; None when it is absent or invalid."""
    text = header(headers, b"content-length")
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) <= 18 else None
