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

from forecastd.chain.answers import (
    Account,
    Answer,
    Inference,
    NetworkInferences,
    Params,
    Simulation,
    Topic,
    TxResult,
)
from forecastd.chain.asking import SOFT, TOTAL, Asking, Member, Reply, brief, combined
from forecastd.chain.codes import Action, classify
from forecastd.chain.endpoint import Endpoint, read_endpoints
from forecastd.chain.health import MAX_LAG, Standing
from forecastd.chain.node import Node, WrongChain
from forecastd.chain.sdk import EmissionsVersion
from forecastd.chain.wire import NoAnswer
from forecastd.clock import Clock
from forecastd.errors import ForecastdError

MOST_SENT = 5  # endpoints that are given the same bytes
GRACE = 0.5  # seconds the others have once one has taken them
T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sent:
    """What one endpoint said to the bytes; without an answer, `error` says why there is none."""

    endpoint: str
    answer: Answer | None
    error: str = ""

    @property
    def taken(self) -> bool:
        """Whether the node has the transaction now, or had it before."""
        return self.answer is not None and _taken(self.answer)


@dataclass(frozen=True)
class Lookup:
    """A transaction by its hash. `absent_heights`: of each endpoint that does not have it, its own height read after that."""

    found: TxResult | None
    absent_heights: tuple[int, ...]
    asked: int


@dataclass(frozen=True)
class EndpointReport:
    """An endpoint for `status` and `doctor`. `latency` in seconds, `lag` in blocks behind the highest."""

    endpoint: str
    state: Standing
    chain_id: str | None
    height: int | None
    lag: int
    latency: float | None
    streak: int
    error: str


class Endpoints:
    """A pool. `chain_id` is the chain all must be on, None takes any; `soft` and `total` seconds as in `asking`.

    Every method gives what `Node`'s gives, within `total` seconds. When no endpoint answers, `RetryLater` says why for
    each; when all are on the wrong chain, `NeedsHuman`.
    """

    def __init__(
        self, endpoints: Sequence[str], *, chain_id: str | None, clock: Clock, soft: float = SOFT, total: float = TOTAL,
        max_lag: int = MAX_LAG,
    ) -> None:  # fmt: skip
        """Nothing is sent yet.

        Raises:
            NeedsHuman: an item is no endpoint; it is named by its position.
        """
        found, self.told = read_endpoints(endpoints)
        for sentence in self.told:
            log.warning("%s", sentence, extra={"action": "endpoint"})
        members = [
            Member(name, Node(one, chain_id=chain_id, deadline=total))
            for name, one in zip(_names(found), found, strict=True)
        ]
        self._asking = Asking(members, clock, soft=soft, total=total)
        self._clock = clock
        self._max_lag = max_lag

    def __enter__(self) -> Endpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of all connections and threads. Calls under way end with an error."""
        self._asking.close()

    @property
    def size(self) -> int:
        """How many endpoints there are, without those that are known to be on another chain; 1 at least."""
        return max(1, sum(health.wrong_chain is None for health in self._asking.healths().values()))

    # Several at once

    def broadcast_all(self, tx_bytes: bytes) -> list[Sent]:
        """Send the same bytes to several endpoints; the best first in the list.

        Returns soon after one has taken them, else when all have answered or the time is over. What is still under way
        then goes on.
        """
        replies = self._send(self._order(behind=True)[0], tx_bytes)
        return [Sent(reply.member.name, reply.value, brief(reply.error) if reply.error else "") for reply in replies]

    def broadcast(self, tx_bytes: bytes) -> Answer:
        """As `broadcast_all`; the answer is that of a node that took the bytes, else of the best that answered."""
        members, unasked = self._order(behind=True)
        replies = self._send(members, tx_bytes)
        answers = [reply.value for reply in replies if reply.value is not None]
        if not answers:
            raise combined(unasked | _errors(replies))
        return min(answers, key=lambda answer: (not _taken(answer), answer.code != 0))

    def look_up(self, tx_hash: str) -> Lookup:
        """Ask every usable endpoint for a transaction. Never raises RetryLater: nobody's answer is an empty one."""

        def look(member: Member) -> TxResult | int:
            found = member.node.find_tx(tx_hash)
            return self._asking.height_of(member) if found is None else found

        replies = self._ask_usable(look, enough=lambda value: isinstance(value, TxResult))
        found = [reply.value for reply in replies if isinstance(reply.value, TxResult)]
        heights = tuple(reply.value for reply in replies if isinstance(reply.value, int))
        return Lookup(found[0] if found else None, heights, len(replies))

    def find_tx(self, tx_hash: str) -> TxResult | None:
        replies = self._ask_usable(lambda member: member.node.find_tx(tx_hash), enough=lambda value: value is not None)
        if not any(reply.good for reply in replies):
            raise combined(self._order(behind=True)[1] | _errors(replies))
        return next((reply.value for reply in replies if reply.value is not None), None)

    def heights(self) -> dict[str, int]:
        """The height of each usable endpoint, now, by its name."""
        replies = self._ask_usable(self._asking.height_of, enough=lambda _: False)
        return {reply.member.name: reply.value for reply in replies if reply.value is not None}

    # From the best

    def chain_id(self) -> str:
        return self._read(lambda member: member.node.chain_id())

    def height(self) -> int:
        return self._read(self._asking.height_of)

    def block_time(self) -> float:
        return self._read(lambda member: member.node.block_time())

    def version(self) -> EmissionsVersion:
        # Asked anew, for the chain may have been upgraded since this endpoint was last asked for anything.
        return self._read(lambda member: member.node.version(again=True))

    def topic(self, topic_id: int) -> Topic | None:
        return self._read(lambda member: member.node.topic(topic_id))

    def is_topic_active(self, topic_id: int) -> bool:
        return self._read(lambda member: member.node.is_topic_active(topic_id))

    def open_nonces(self, topic_id: int) -> list[int]:
        return self._read(lambda member: member.node.open_nonces(topic_id))

    def is_nonce_unfulfilled(self, topic_id: int, nonce: int) -> bool:
        return self._read(lambda member: member.node.is_nonce_unfulfilled(topic_id, nonce))

    def is_registered(self, topic_id: int, address: str) -> bool:
        return self._read(lambda member: member.node.is_registered(topic_id, address))

    def can_submit(self, topic_id: int, address: str) -> bool:
        return self._read(lambda member: member.node.can_submit(topic_id, address))

    def params(self) -> Params:
        return self._read(lambda member: member.node.params())

    def latest_inference(self, topic_id: int, address: str) -> Inference | None:
        return self._read(lambda member: member.node.latest_inference(topic_id, address))

    def inferences_at(self, topic_id: int, nonce: int) -> list[Inference]:
        return self._read(lambda member: member.node.inferences_at(topic_id, nonce))

    def network_inferences(self, topic_id: int) -> NetworkInferences | None:
        return self._read(lambda member: member.node.network_inferences(topic_id))

    def account(self, address: str) -> Account | None:
        return self._read(lambda member: member.node.account(address))

    def balance(self, address: str) -> int:
        return self._read(lambda member: member.node.balance(address))

    def gas_price(self) -> Decimal | None:
        return self._read(lambda member: member.node.gas_price())

    def simulate(self, tx_bytes: bytes) -> Simulation:
        return self._read(lambda member: member.node.simulate(tx_bytes))

    # What is known of them

    def survey(self) -> tuple[EndpointReport, ...]:
        """Ask every endpoint for its chain and height now, those set aside as well, and report."""
        self._asking.wait_for(self._asking.probe(self._asking.members))
        return self.report()

    def report(self) -> tuple[EndpointReport, ...]:
        """What is known of each endpoint, in the user's order. Asks nothing."""
        healths = self._asking.healths()
        return tuple(
            EndpointReport(
                endpoint=member.name,
                state=health.standing(healths.values(), self._max_lag),
                chain_id=health.wrong_chain or member.chain,
                height=health.height,
                lag=health.lag(healths.values()),
                latency=health.latency,
                streak=health.streak,
                error=health.error,
            )
            for member, health in healths.items()
        )

    # Who is asked

    def _read(self, call: Callable[[Member], T]) -> T:
        self._refresh()
        members, unasked = self._order(behind=False)
        return self._asking.first(members, call, unasked)

    def _send(self, members: Sequence[Member], tx_bytes: bytes) -> list[Reply[Answer]]:
        return self._asking.all(
            members[:MOST_SENT],
            lambda member: member.node.broadcast(tx_bytes),
            enough=_taken,
            grace=GRACE,
            patience=None,
        )

    def _ask_usable(self, call: Callable[[Member], T], *, enough: Callable[[T], bool]) -> list[Reply[T]]:
        """Ask everybody that is not set aside; those set aside as well when there are not two others."""
        self._refresh()
        healths = self._asking.healths()
        members, _ = self._order(behind=True)
        usable = [member for member in members if healths[member].closed]
        chosen = usable if len(usable) > 1 else members
        return self._asking.all(chosen, call, enough=enough, grace=0.0, patience=self._asking.soft)

    def _refresh(self) -> None:
        """Probe who is due. Only endpoints with nothing against them are waited for: their height has grown old."""
        now, healths = self._clock.monotonic(), self._asking.healths()
        due = [member for member, health in healths.items() if health.wants_probe(now)]
        self._asking.probe([member for member in due if not healths[member].closed])
        old = [member for member in due if healths[member].closed]
        if old and len(healths) > 1:  # a single one has nobody to lag behind
            self._asking.wait_for(self._asking.probe(old))

    def _order(self, *, behind: bool) -> tuple[list[Member], dict[Member, ForecastdError]]:
        """Whom to ask, the best first and those set aside for errors last; and why the others are not asked."""
        healths = self._asking.healths()
        chosen: list[tuple[tuple[bool, bool, float], Member]] = []
        unasked: dict[Member, ForecastdError] = {}
        for member, health in healths.items():
            lags = health.closed and health.behind(healths.values(), self._max_lag)
            if health.wrong_chain is not None:
                unasked[member] = WrongChain(
                    f"The node {member.name} is on chain {health.wrong_chain}. Correct RPC_ENDPOINTS or ALLORA_NETWORK.",
                    found=health.wrong_chain,
                )
            elif lags and not behind:
                why = f"{health.lag(healths.values())} blocks behind"
                unasked[member] = NoAnswer(f"The node {member.name} is {why}.", why=why)
            else:
                last = float(health.rank) if health.rests_until is None else health.rests_until
                chosen.append(((health.rests_until is not None, lags, last), member))
        chosen.sort(key=lambda pair: pair[0])  # stable: the user's order decides between equals
        return [member for _, member in chosen], unasked


def _taken(answer: Answer) -> bool:
    return classify(answer.codespace, answer.code, answer.log).action in (Action.ACCEPTED, Action.PENDING)


def _errors(replies: Sequence[Reply[T]]) -> dict[Member, ForecastdError]:
    return {reply.member: reply.error for reply in replies if reply.error is not None}


def _names(endpoints: Sequence[Endpoint]) -> list[str]:
    """What endpoints are called; those that differ only in what is not shown are numbered."""
    names: list[str] = []
    for endpoint in endpoints:
        same = sum(str(endpoint) == str(other) for other in endpoints[: len(names)])
        names.append(f"{endpoint} ({same + 1})" if same else str(endpoint))
    return names
