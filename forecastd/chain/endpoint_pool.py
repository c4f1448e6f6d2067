"""A pool of endpoints that acts as one: reads go to the best endpoint, the same signed bytes to several.

One healthy endpoint among any number is enough. `endpoint_health` decides which endpoints are usable, `request_pool`
sends the calls; this module decides which endpoints get a call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message

from forecastd.chain.client import ChainClient, raise_refusal
from forecastd.chain.codes import Action, classify
from forecastd.chain.endpoint import Endpoint, parse_endpoints
from forecastd.chain.endpoint_health import MAX_LAG, EndpointState
from forecastd.chain.grpc_transport import NoUsableResponse, RpcError
from forecastd.chain.methods import EmissionsVersion
from forecastd.chain.node import Node, WrongChain
from forecastd.chain.request_pool import (
    HEDGE_SECONDS,
    TIMEOUT_SECONDS,
    CallGroup,
    PooledEndpoint,
    RequestPool,
    brief_cause,
    combine_errors,
)
from forecastd.chain.types import BroadcastResult, TxResult
from forecastd.clock import Clock
from forecastd.errors import ForecastdError

MAX_BROADCAST_ENDPOINTS = 5  # endpoints that get the same bytes
GRACE_SECONDS = 0.5  # time left for the others after one has accepted the bytes
T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EndpointBroadcast:
    """One endpoint's answer to a broadcast. Without an answer, `error` holds the reason."""

    endpoint: str
    result: BroadcastResult | None
    error: str = ""

    @property
    def accepted(self) -> bool:
        """Whether the node has the transaction, from this broadcast or an earlier one."""
        return self.result is not None and _is_accepted(self.result)


@dataclass(frozen=True)
class TxLookup:
    """The lookup of a transaction by its hash.

    `absent_heights`: for each endpoint that does not have it, the height of that endpoint, read after the lookup.
    """

    result: TxResult | None
    absent_heights: tuple[int, ...]
    reply_count: int


@dataclass(frozen=True)
class EndpointReport:
    """An endpoint's state for `status` and `doctor`.

    `latency` in seconds, `lag` in blocks behind the highest endpoint.
    """

    endpoint: str
    state: EndpointState
    chain_id: str | None
    height: int | None
    lag: int
    latency: float | None
    streak: int
    error: str


class EndpointPool(ChainClient):
    """Several endpoints as one.

    `chain_id` is the chain that every endpoint must be on; None accepts any chain. `hedge_seconds` and
    `timeout_seconds` are those of `RequestPool`. Every method returns what the method of `Node` returns, within
    `timeout_seconds`. It raises `RetryLater` with the cause of each endpoint when none answers, and `NeedsHuman` when
    all are on the wrong chain.
    """

    def __init__(
        self,
        texts: Sequence[str],
        *,
        chain_id: str | None,
        clock: Clock,
        hedge_seconds: float = HEDGE_SECONDS,
        timeout_seconds: float = TIMEOUT_SECONDS,
        max_lag: int = MAX_LAG,
    ) -> None:
        """Create the pool. Nothing is sent yet.

        Raises:
            NeedsHuman: an item is not an endpoint. The error names its position.
        """
        parsed, self.warnings = parse_endpoints(texts)
        for warning in self.warnings:
            log.warning("%s", warning, extra={"action": "endpoint"})
        pooled = [
            PooledEndpoint(name, Node(endpoint, chain_id=chain_id, deadline=timeout_seconds))
            for name, endpoint in zip(_display_names(parsed), parsed, strict=True)
        ]
        self._requests = RequestPool(pooled, clock, hedge_seconds=hedge_seconds, timeout_seconds=timeout_seconds)
        self._clock = clock
        self._max_lag = max_lag

    def close(self) -> None:
        self._requests.close()

    def close_idle(self) -> None:
        """Close the connections that are not in use. Call it now and then; the next call opens one again."""
        self._requests.close_idle()

    @property
    def size(self) -> int:
        """The number of endpoints that are not known to be on another chain; at least 1."""
        return max(1, sum(health.wrong_chain is None for health in self._requests.healths().values()))

    # Calls to several endpoints

    def broadcast_all(self, tx_bytes: bytes) -> list[EndpointBroadcast]:
        """Send the same bytes to several endpoints. The result lists the best endpoint first.

        Returns soon after one endpoint has accepted the bytes, otherwise when all have answered or the time is over.
        Calls that are still in progress run on.
        """
        endpoints, _ = self._rank(include_lagging=True)
        calls = self._broadcast_to(endpoints, tx_bytes)
        return [
            EndpointBroadcast(
                endpoint.name,
                calls.values.get(endpoint),
                brief_cause(calls.errors[endpoint]) if endpoint in calls.errors else "",
            )
            for endpoint in endpoints[:MAX_BROADCAST_ENDPOINTS]
        ]

    def broadcast(self, tx_bytes: bytes) -> BroadcastResult:
        """See `broadcast_all`.

        Returns the answer of a node that accepted the bytes, otherwise of the best that answered.
        """
        endpoints, skipped = self._rank(include_lagging=True)
        calls = self._broadcast_to(endpoints, tx_bytes)
        results = [calls.values[endpoint] for endpoint in endpoints if endpoint in calls.values]
        if not results:
            raise combine_errors(skipped | calls.errors)
        return min(results, key=lambda answer: (not _is_accepted(answer), answer.code != 0))

    def look_up(self, tx_hash: str) -> TxLookup:
        """Look up a transaction on every usable endpoint.

        Never raises RetryLater: without any answer the result is empty.
        """

        def find_or_height(endpoint: PooledEndpoint) -> TxResult | int:
            result = endpoint.node.find_tx(tx_hash)
            return self._requests.fetch_height(endpoint) if result is None else result

        calls = self._query_usable(find_or_height, is_final=lambda value: isinstance(value, TxResult))
        results = [value for value in calls.values.values() if isinstance(value, TxResult)]
        heights = tuple(value for value in calls.values.values() if isinstance(value, int))
        return TxLookup(results[0] if results else None, heights, len(calls.values) + len(calls.errors))

    def find_tx(self, tx_hash: str) -> TxResult | None:
        calls = self._query_usable(
            lambda endpoint: endpoint.node.find_tx(tx_hash), is_final=lambda value: value is not None
        )
        if not calls.values:
            raise combine_errors(self._rank(include_lagging=True)[1] | calls.errors)
        return next((result for result in calls.values.values() if result is not None), None)

    # Reads from the best endpoint

    def ask(
        self, request: Message, read: Callable[[Any], T], read_refusal: Callable[[RpcError], T] = raise_refusal
    ) -> T:
        return self._read(lambda endpoint: endpoint.node.ask(request, read, read_refusal))

    def chain_id(self) -> str:
        return self._read(lambda endpoint: endpoint.node.chain_id())

    def height(self) -> int:
        return self._read(self._requests.fetch_height)

    def version(self) -> EmissionsVersion:
        # Queried again each time: the chain may have been upgraded since the last call to this endpoint.
        return self._read(lambda endpoint: endpoint.node.version(refresh=True))

    # State of the endpoints

    def inspect(self) -> tuple[EndpointReport, ...]:
        """Query every endpoint for its chain id and height now, resting endpoints too, and report."""
        self._requests.wait_for_probes(self._requests.start_probes(self._requests.endpoints))
        return self.report()

    def report(self) -> tuple[EndpointReport, ...]:
        """The known state of each endpoint, in the user's order. Sends nothing."""
        healths = self._requests.healths()
        return tuple(
            EndpointReport(
                endpoint=endpoint.name,
                state=health.state(healths.values(), self._max_lag),
                chain_id=health.wrong_chain or endpoint.chain,
                height=health.height,
                lag=health.lag(healths.values()),
                latency=health.latency,
                streak=health.streak,
                error=health.error,
            )
            for endpoint, health in healths.items()
        )

    # Choice of endpoints

    def _read(self, call: Callable[[PooledEndpoint], T]) -> T:
        self._start_due_probes()
        endpoints, skipped = self._rank(include_lagging=False)
        return self._requests.first_reply(endpoints, call, skipped)

    def _broadcast_to(self, endpoints: Sequence[PooledEndpoint], tx_bytes: bytes) -> CallGroup[BroadcastResult]:
        return self._requests.all_replies(
            endpoints[:MAX_BROADCAST_ENDPOINTS],
            lambda endpoint: endpoint.node.broadcast(tx_bytes),
            is_final=_is_accepted,
            grace=GRACE_SECONDS,
            answered_timeout=None,
        )

    def _query_usable(self, call: Callable[[PooledEndpoint], T], *, is_final: Callable[[T], bool]) -> CallGroup[T]:
        """Call every available endpoint. With fewer than two of them, call the resting ones as well."""
        self._start_due_probes()
        healths = self._requests.healths()
        endpoints, _ = self._rank(include_lagging=True)
        usable = [endpoint for endpoint in endpoints if healths[endpoint].is_available]
        targets = usable if len(usable) > 1 else endpoints
        return self._requests.all_replies(
            targets, call, is_final=is_final, grace=0.0, answered_timeout=self._requests.hedge_seconds
        )

    def _start_due_probes(self) -> None:
        """Start the probes that are due. Only wait for endpoints that are available and whose height is out of date."""
        now, healths = self._clock.monotonic(), self._requests.healths()
        due = [endpoint for endpoint, health in healths.items() if health.needs_probe(now)]
        self._requests.start_probes([endpoint for endpoint in due if not healths[endpoint].is_available])
        stale = [endpoint for endpoint in due if healths[endpoint].is_available]
        if stale and len(healths) > 1:  # a single endpoint cannot lag behind another
            self._requests.wait_for_probes(self._requests.start_probes(stale))

    def _rank(self, *, include_lagging: bool) -> tuple[list[PooledEndpoint], dict[PooledEndpoint, ForecastdError]]:
        """The endpoints to call, best first and resting ones last; and the skipped ones, each with the reason."""
        healths = self._requests.healths()
        ranked: list[tuple[tuple[bool, bool, float], PooledEndpoint]] = []
        skipped: dict[PooledEndpoint, ForecastdError] = {}
        for endpoint, health in healths.items():
            is_lagging = health.is_available and health.is_behind(healths.values(), self._max_lag)
            if health.wrong_chain is not None:
                skipped[endpoint] = WrongChain(
                    f"The node {endpoint.name} is on chain {health.wrong_chain}. "
                    "Correct RPC_ENDPOINTS or ALLORA_NETWORK.",
                    chain_id=health.wrong_chain,
                )
            elif is_lagging and not include_lagging:
                reason = f"{health.lag(healths.values())} blocks behind"
                skipped[endpoint] = NoUsableResponse(f"The node {endpoint.name} is {reason}.", reason=reason)
            else:
                tie_breaker = float(health.rank) if health.rest_until is None else health.rest_until
                ranked.append(((health.rest_until is not None, is_lagging, tie_breaker), endpoint))
        ranked.sort(key=lambda pair: pair[0])  # the sort is stable: equal endpoints keep the user's order
        return [endpoint for _, endpoint in ranked], skipped


def _is_accepted(result: BroadcastResult) -> bool:
    return classify(result.codespace, result.code, result.log).action in (Action.ACCEPTED, Action.PENDING)


def _display_names(endpoints: Sequence[Endpoint]) -> list[str]:
    """The names of endpoints. Endpoints that would show the same name are numbered."""
    names: list[str] = []
    for endpoint in endpoints:
        duplicates = sum(str(endpoint) == str(other) for other in endpoints[: len(names)])
        names.append(f"{endpoint} ({duplicates + 1})" if duplicates else str(endpoint))
    return names
