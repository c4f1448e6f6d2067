"""The gate: what every request passes before it comes to its route, and what is noted of it when it leaves.

In this order: is it meant for this server, does it come from a page that may ask, does it bear a good key, does this client
ask too much, is what it brings too large. It is plain ASGI, because the framework's own kind of middleware copies streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forecastd.clock import Clock
from forecastd.fleet.api.errors import RequestRefused, to_response
from forecastd.fleet.api.keys import ApiKeys
from forecastd.fleet.api.rate_limit import RateLimit
from forecastd.fleet.api.request_counts import RequestMetrics
from forecastd.fleet.api.request_headers import declared_length, header, is_cross_site, is_local_name, request_key
from forecastd.fleet.api.throttled_log import RefusalLog

PUBLIC_PATHS = frozenset({"/healthz"})  # asked by service managers and load balancers, which have no key
WRITE_METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))


@dataclass(frozen=True)
class AccessPolicy:
    """Who may ask what. `local`: only programs of this machine can reach the server. `most_bytes` of one body."""

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
        self._app, self._policy, self._metrics, self._refusal_log, self._clock = (
            app,
            policy,
            metrics,
            refusal_log,
            clock,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # there are no websockets here, and nothing to do at start and end
            return
        started = self._clock.monotonic()
        status = 500  # unless an answer begins

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, note)
        except RequestRefused as error:  # by the check: what the routes refuse is answered further in
            await to_response(error)(scope, receive, note)
            self._refusal_log.record(error.kind, self._refusal_text(scope, error))
        finally:
            self._metrics.record(scope, status, self._clock.monotonic() - started)

    def _check(self, scope: Scope) -> None:
        """Raises Refused for a request that comes no further."""
        policy, headers, path = self._policy, scope["headers"], scope["path"]
        host = header(headers, b"host")
        if policy.loopback_only and not policy.keys and not is_local_name(host):
            raise RequestRefused(
                403, "The Host header names another machine.",
                "Ask for 127.0.0.1 or localhost, or set FLEET_API_KEYS to serve other names.", kind="host",
            )  # fmt: skip
        if scope["method"] in WRITE_METHODS and is_cross_site(header(headers, b"origin"), host, policy.allowed_origins):
            message = "The request comes from the page of another site."
            raise RequestRefused(403, message, "Name the site in FLEET_CORS_ORIGINS if it may.", kind="origin")
        if path not in PUBLIC_PATHS:
            self._check_client(scope)
        length = declared_length(headers)
        if length is not None and length > policy.max_body_bytes:
            message = f"The body is larger than {policy.max_body_bytes >> 20} MB."
            raise RequestRefused(413, message, "Send smaller batches, or raise FLEET_MAX_BODY_MB.")

    def _check_client(self, scope: Scope) -> None:
        policy, address = self._policy, _address(scope)
        supplied_key = request_key(scope["headers"]) if policy.keys else None
        key = policy.keys.match(supplied_key) if supplied_key is not None else None
        retry_after = policy.rate_limit.retry_after(policy.rate_limit.client_key(key, address))
        if retry_after:
            message = "This client has sent too many requests in the last minute."
            raise RequestRefused(
                429, message, "Wait, and send larger batches less often.", headers={"Retry-After": str(retry_after)}
            )
        if policy.keys and key is None:
            message = "No API key was given." if supplied_key is None else "The API key is not known here."
            raise RequestRefused(
                401, message, "Send one as X-API-Key: KEY or Authorization: Bearer KEY.",
                headers={"WWW-Authenticate": 'Bearer realm="forecastd fleet"'},
            )  # fmt: skip

    @staticmethod
    def _refusal_text(scope: Scope, error: RequestRefused) -> str:
        return f"A request from {_address(scope)} was refused with {error.status_code}: {error.error}"


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unknown"
