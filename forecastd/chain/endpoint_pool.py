"""A pool of endpoints that acts as one: reads go to the best, the same signed bytes to several, any success wins.

One healthy endpoint among any number is enough. What an endpoint is good for is decided in `health`, how several are asked
at once in `asking`; here is only who is asked for what.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import TracebackType
from typing import TypeVar

from forecastd.chain.codes import Action, classify
from forecastd.chain.endpoint import Endpoint, parse_endpoints
from forecastd.chain.endpoint_health import MAX_LAG, EndpointState
from forecastd.chain.grpc_transport import NoUsableResponse
from forecastd.chain.node import Node, WrongChain
from forecastd.chain.request_pool import (
    HEDGE_SECONDS,
    TIMEOUT_SECONDS,
    EndpointReply,
    PooledEndpoint,
    RequestPool,
    brief_cause,
    combine_errors,
)
from forecastd.chain.sdk import EmissionsVersion
from forecastd.chain.types import (
    AccountInfo,
    BroadcastResult,
    ChainParams,
    Inference,
    NetworkInferences,
    SimulationResult,
    Topic,
    TxResult,
)
from forecastd.clock import Clock
from forecastd.errors import ForecastdError

MAX_BROADCAST_ENDPOINTS = 5  # endpoints that are given the same bytes
GRACE_SECONDS = 0.5  # seconds the others have once one has taken them
T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EndpointBroadcast:
    """What one endpoint said to the bytes; without an answer, `error` says why there is none."""

    endpoint: str
    result: BroadcastResult | None
    error: str = ""

    @property
    def accepted(self) -> bool:
        """Whether the node has the transaction now, or had it before."""
        return self.result is not None and _is_accepted(self.result)


@dataclass(frozen=True)
class TxLookup:
    """A transaction by its hash. `absent_heights`: of each endpoint that does not have it, its own height read after that."""

    result: TxResult | None
    absent_heights: tuple[int, ...]
    reply_count: int


@dataclass(frozen=True)
class EndpointReport:
    """An endpoint for `status` and `doctor`. `latency` in seconds, `lag` in blocks behind the highest."""

    endpoint: str
    state: EndpointState
    chain_id: str | None
    height: int | None
    lag: int
    latency: float | None
    streak: int
    error: str


class EndpointPool:
    """A pool. `chain_id` is the chain all must be on, None takes any; `soft` and `total` seconds as in `asking`.

    Every method gives what `Node`'s gives, within `total` seconds. When no endpoint answers, `RetryLater` says why for
    each; when all are on the wrong chain, `NeedsHuman`.
    """

    def __init__(
        self, texts: Sequence[str], *, chain_id: str | None, clock: Clock, hedge_seconds: float = HEDGE_SECONDS, timeout_seconds: float = TIMEOUT_SECONDS,
        max_lag: int = MAX_LAG,
    ) -> None:  # fmt: skip
        """Nothing is sent yet.

        Raises:
            NeedsHuman: an item is no endpoint; it is named by its position.
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

    def __enter__(self) -> EndpointPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of all connections and threads. Calls under way end with an error."""
        self._requests.close()

    @property
    def size(self) -> int:
        """How many endpoints there are, without those that are known to be on another chain; 1 at least."""
        return max(1, sum(health.wrong_chain is None for health in self._requests.healths().values()))

    # Several at once

    def broadcast_all(self, tx_bytes: bytes) -> list[EndpointBroadcast]:
        """Send the same bytes to several endpoints; the best first in the list.

        Returns soon after one has taken them, else when all have answered or the time is over. What is still under way
        then goes on.
        """
        replies = self._broadcast_to(self._rank(include_lagging=True)[0], tx_bytes)
        return [
            EndpointBroadcast(reply.endpoint.name, reply.value, brief_cause(reply.error) if reply.error else "")
            for reply in replies
        ]

    def broadcast(self, tx_bytes: bytes) -> BroadcastResult:
        """As `broadcast_all`; the answer is that of a node that took the bytes, else of the best that answered."""
        endpoints, skipped = self._rank(include_lagging=True)
        replies = self._broadcast_to(endpoints, tx_bytes)
        results = [reply.value for reply in replies if reply.value is not None]
        if not results:
            raise combine_errors(skipped | _failures(replies))
        return min(results, key=lambda answer: (not _is_accepted(answer), answer.code != 0))

    def look_up(self, tx_hash: str) -> TxLookup:
        """Ask every usable endpoint for a transaction. Never raises RetryLater: nobody's answer is an empty one."""

        def find_or_height(endpoint: PooledEndpoint) -> TxResult | int:
            result = endpoint.node.find_tx(tx_hash)
            return self._requests.fetch_height(endpoint) if result is None else result

        replies = self._query_usable(find_or_height, is_final=lambda value: isinstance(value, TxResult))
        results = [reply.value for reply in replies if isinstance(reply.value, TxResult)]
        heights = tuple(reply.value for reply in replies if isinstance(reply.value, int))
        return TxLookup(results[0] if results else None, heights, len(replies))

    def find_tx(self, tx_hash: str) -> TxResult | None:
        replies = self._query_usable(
            lambda endpoint: endpoint.node.find_tx(tx_hash), is_final=lambda value: value is not None
        )
        if not any(reply.ok for reply in replies):
            raise combine_errors(self._rank(include_lagging=True)[1] | _failures(replies))
        return next((reply.value for reply in replies if reply.value is not None), None)

    def heights(self) -> dict[str, int]:
        """The height of each usable endpoint, now, by its name."""
        replies = self._query_usable(self._requests.fetch_height, is_final=lambda _: False)
        return {reply.endpoint.name: reply.value for reply in replies if reply.value is not None}

    # From the best

    def chain_id(self) -> str:
        return self._read(lambda endpoint: endpoint.node.chain_id())

    def height(self) -> int:
        return self._read(self._requests.fetch_height)

    def block_time(self) -> float:
        return self._read(lambda endpoint: endpoint.node.block_time())

    def version(self) -> EmissionsVersion:
        # Asked anew, for the chain may have been upgraded since this endpoint was last asked for anything.
        return self._read(lambda endpoint: endpoint.node.version(refresh=True))

    def topic(self, topic_id: int) -> Topic | None:
        return self._read(lambda endpoint: endpoint.node.topic(topic_id))

    def is_topic_active(self, topic_id: int) -> bool:
        return self._read(lambda endpoint: endpoint.node.is_topic_active(topic_id))

    def open_nonces(self, topic_id: int) -> list[int]:
        return self._read(lambda endpoint: endpoint.node.open_nonces(topic_id))

    def is_nonce_unfulfilled(self, topic_id: int, nonce: int) -> bool:
        return self._read(lambda endpoint: endpoint.node.is_nonce_unfulfilled(topic_id, nonce))

    def is_registered(self, topic_id: int, address: str) -> bool:
        return self._read(lambda endpoint: endpoint.node.is_registered(topic_id, address))

    def can_submit(self, topic_id: int, address: str) -> bool:
        return self._read(lambda endpoint: endpoint.node.can_submit(topic_id, address))

    def params(self) -> ChainParams:
        return self._read(lambda endpoint: endpoint.node.params())

    def latest_inference(self, topic_id: int, address: str) -> Inference | None:
        return self._read(lambda endpoint: endpoint.node.latest_inference(topic_id, address))

    def inferences_at(self, topic_id: int, nonce: int) -> list[Inference]:
        return self._read(lambda endpoint: endpoint.node.inferences_at(topic_id, nonce))

    def network_inferences(self, topic_id: int) -> NetworkInferences | None:
        return self._read(lambda endpoint: endpoint.node.network_inferences(topic_id))

    def account(self, address: str) -> AccountInfo | None:
        return self._read(lambda endpoint: endpoint.node.account(address))

    def balance(self, address: str) -> int:
        return self._read(lambda endpoint: endpoint.node.balance(address))

    def gas_price(self) -> Decimal | None:
        return self._read(lambda endpoint: endpoint.node.gas_price())

    def simulate(self, tx_bytes: bytes) -> SimulationResult:
        return self._read(lambda endpoint: endpoint.node.simulate(tx_bytes))

    # What is known of them

    def inspect(self) -> tuple[EndpointReport, ...]:
        """Ask every endpoint for its chain and height now, those set aside as well, and report."""
        self._requests.wait_for_probes(self._requests.start_probes(self._requests.endpoints))
        return self.report()

    def report(self) -> tuple[EndpointReport, ...]:
        """What is known of each endpoint, in the user's order. Asks nothing."""
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

    # Who is asked

    def _read(self, call: Callable[[PooledEndpoint], T]) -> T:
        self._start_due_probes()
        endpoints, skipped = self._rank(include_lagging=False)
        return self._requests.first_reply(endpoints, call, skipped)

    def _broadcast_to(
        self, endpoints: Sequence[PooledEndpoint], tx_bytes: bytes
    ) -> list[EndpointReply[BroadcastResult]]:
        return self._requests.all_replies(
            endpoints[:MAX_BROADCAST_ENDPOINTS],
            lambda endpoint: endpoint.node.broadcast(tx_bytes),
            is_final=_is_accepted,
            grace=GRACE_SECONDS,
            answered_timeout=None,
        )

    def _query_usable(
        self, call: Callable[[PooledEndpoint], T], *, is_final: Callable[[T], bool]
    ) -> list[EndpointReply[T]]:
        """Ask everybody that is not set aside; those set aside as well when there are not two others."""
        self._start_due_probes()
        healths = self._requests.healths()
        endpoints, _ = self._rank(include_lagging=True)
        usable = [endpoint for endpoint in endpoints if healths[endpoint].is_available]
        targets = usable if len(usable) > 1 else endpoints
        return self._requests.all_replies(
            targets, call, is_final=is_final, grace=0.0, answered_timeout=self._requests.hedge_seconds
        )

    def _start_due_probes(self) -> None:
        """Probe who is due. Only endpoints with nothing against them are waited for: their height has grown old."""
        now, healths = self._clock.monotonic(), self._requests.healths()
        due = [endpoint for endpoint, health in healths.items() if health.needs_probe(now)]
        self._requests.start_probes([endpoint for endpoint in due if not healths[endpoint].is_available])
        stale = [endpoint for endpoint in due if healths[endpoint].is_available]
        if stale and len(healths) > 1:  # a single one has nobody to lag behind
            self._requests.wait_for_probes(self._requests.start_probes(stale))

    def _rank(self, *, include_lagging: bool) -> tuple[list[PooledEndpoint], dict[PooledEndpoint, ForecastdError]]:
        """Whom to ask, the best first and those set aside for errors last; and why the others are not asked."""
        healths = self._requests.healths()
        ranked: list[tuple[tuple[bool, bool, float], PooledEndpoint]] = []
        skipped: dict[PooledEndpoint, ForecastdError] = {}
        for endpoint, health in healths.items():
            is_lagging = health.is_available and health.is_behind(healths.values(), self._max_lag)
            if health.wrong_chain is not None:
                skipped[endpoint] = WrongChain(
                    f"The node {endpoint.name} is on chain {health.wrong_chain}. Correct RPC_ENDPOINTS or ALLORA_NETWORK.",
                    chain_id=health.wrong_chain,
                )
            elif is_lagging and not include_lagging:
                why = f"{health.lag(healths.values())} blocks behind"
                skipped[endpoint] = NoUsableResponse(f"The node {endpoint.name} is {why}.", reason=why)
            else:
                tie_breaker = float(health.rank) if health.rest_until is None else health.rest_until
                ranked.append(((health.rest_until is not None, is_lagging, tie_breaker), endpoint))
        ranked.sort(key=lambda pair: pair[0])  # stable: the user's order decides between equals
        return [endpoint for _, endpoint in ranked], skipped


def _is_accepted(result: BroadcastResult) -> bool:
    return classify(result.codespace, result.code, result.log).action in (Action.ACCEPTED, Action.PENDING)


def _failures(replies: Sequence[EndpointReply[T]]) -> dict[PooledEndpoint, ForecastdError]:
    return {reply.endpoint: reply.error for reply in replies if reply.error is not None}


def _display_names(endpoints: Sequence[Endpoint]) -> list[str]:
    """What endpoints are called; those that differ only in what is not shown are numbered."""
    names: list[str] = []
    for endpoint in endpoints:
        duplicates = sum(str(endpoint) == str(other) for other in endpoints[: len(names)])
        names.append(f"{endpoint} ({duplicates + 1})" if duplicates else str(endpoint))
    return names
