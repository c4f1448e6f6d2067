"""The gate: what every request passes before it comes to its route, and what is noted of it when it leaves.

In this order: is it meant for this server, does it come from a page that may ask, does it bear a good key, does this client
ask too much, is what it brings too large. It is plain ASGI, because the framework's own kind of middleware copies streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forecastd.clock import Clock
from forecastd.fleet.api.keys import ApiKeys
from forecastd.fleet.api.rate import RateLimit
from forecastd.fleet.api.refusals import Refused, answer
from forecastd.fleet.api.remarks import Remarks
from forecastd.fleet.api.requests import RequestCounts
from forecastd.fleet.api.visitors import declared_length, given_key, header, is_foreign, is_local_name

OPEN = frozenset({"/healthz"})  # asked by service managers and load balancers, which have no key
CHANGES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))


@dataclass(frozen=True)
class Rules:
    """Who may ask what. `local`: only programs of this machine can reach the server. `most_bytes` of one body."""

    keys: ApiKeys
    local: bool
    limit: RateLimit
    most_bytes: int
    origins: Sequence[str] = field(default=())


class Gate:
    """ASGI middleware around the routes."""

    def __init__(self, app: ASGIApp, rules: Rules, counts: RequestCounts, remarks: Remarks, clock: Clock) -> None:
        self._app, self._rules, self._counts, self._remarks, self._clock = app, rules, counts, remarks, clock

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
        except Refused as refused:  # by the check: what the routes refuse is answered further in
            await answer(refused)(scope, receive, note)
            self._remarks.refused(refused.kind, self._told(scope, refused))
        finally:
            self._counts.served(scope, status, self._clock.monotonic() - started)

    def _check(self, scope: Scope) -> None:
        """Raises Refused for a request that comes no further."""
        rules, headers, path = self._rules, scope["headers"], scope["path"]
        host = header(headers, b"host")
        if rules.local and not rules.keys and not is_local_name(host):
            raise Refused(
                403, "The Host header names another machine.",
                "Ask for 127.0.0.1 or localhost, or set FLEET_API_KEYS to serve other names.", kind="host",
            )  # fmt: skip
        if scope["method"] in CHANGES and is_foreign(header(headers, b"origin"), host, rules.origins):
            told = "The request comes from the page of another site."
            raise Refused(403, told, "Name the site in FLEET_CORS_ORIGINS if it may.", kind="origin")
        if path not in OPEN:
            self._check_client(scope)
        length = declared_length(headers)
        if length is not None and length > rules.most_bytes:
            told = f"The body is larger than {rules.most_bytes >> 20} MB."
            raise Refused(413, told, "Send smaller batches, or raise FLEET_MAX_BODY_MB.")

    def _check_client(self, scope: Scope) -> None:
        rules, address = self._rules, _address(scope)
        given = given_key(scope["headers"]) if rules.keys else None
        key = rules.keys.match(given) if given is not None else None
        wait = rules.limit.wait(rules.limit.client(key, address))
        if wait:
            told = "This client has sent too many requests in the last minute."
            raise Refused(429, told, "Wait, and send larger batches less often.", headers={"Retry-After": str(wait)})
        if rules.keys and key is None:
            told = "No API key was given." if given is None else "The API key is not known here."
            raise Refused(
                401, told, "Send one as X-API-Key: KEY or Authorization: Bearer KEY.",
                headers={"WWW-Authenticate": 'Bearer realm="forecastd fleet"'},
            )  # fmt: skip

    @staticmethod
    def _told(scope: Scope, refused: Refused) -> str:
        return f"A request from {_address(scope)} was refused with {refused.status_code}: {refused.error}"


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unknown"
