"""The faults of the local node, by name: what an endpoint can do to its clients, and what the chain can do to a worker.

A fault is text: `NAME[=VALUE][@first=N][@every=N][@from=HEIGHT][@until=HEIGHT][@method=M+M][@p=0.3,seed=7]`. Counters,
heights and a seed alone decide which requests it applies to, so that every run is the same.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from forecastd.errors import NeedsHuman


class FaultLevel(Enum):
    """What a fault counts and applies to."""

    CONNECTION = "connection"  # before a request can be read
    WIRE = "wire"  # how the answer to a request is sent
    STATUS = "status"  # an error instead of the answer; the chain is not queried
    VIEW = "view"  # what the endpoint knows of the chain
    BROADCAST = "broadcast"  # what happens to a transaction that is sent to the endpoint
    ARRIVAL = "arrival"  # of a payload at the chain, through any endpoint, before it is checked
    MEMPOOL = "mempool"  # a payload was added to the mempool
    EXECUTION = "execution"  # a payload is executed in a block
    WINDOW = "window"  # a submission window opens
    BLOCK = "block"  # every block


ENDPOINT_LEVELS = frozenset(
    {FaultLevel.CONNECTION, FaultLevel.WIRE, FaultLevel.STATUS, FaultLevel.VIEW, FaultLevel.BROADCAST}
)
REQUEST_LEVELS = ENDPOINT_LEVELS - {FaultLevel.CONNECTION}


@dataclass(frozen=True)
class FaultKind:
    """A table entry for a fault. `unit` names its value (empty: it takes none); `value` is the default."""

    level: FaultLevel
    description: str
    unit: str = ""
    value: float | str | None = None
    methods: tuple[str, ...] = ()  # the only requests it can apply to

    @property
    def is_endpoint_fault(self) -> bool:
        return self.level in ENDPOINT_LEVELS


_BROADCAST_METHODS = ("BroadcastTx",)
FAULTS: dict[str, FaultKind] = {
    # Faults of an endpoint. The chain behind it is not affected.
    "refuse": FaultKind(FaultLevel.CONNECTION, "every connection is refused"),
    "reset": FaultKind(FaultLevel.CONNECTION, "a connection is accepted and reset at once"),
    "silent": FaultKind(
        FaultLevel.CONNECTION, "a connection is accepted and no byte is ever sent, not even a handshake"
    ),
    "web-server": FaultKind(FaultLevel.CONNECTION, "a web server without HTTP/2 answers with a page and closes"),
    "hang": FaultKind(FaultLevel.WIRE, "a request is accepted and never answered"),
    "slow": FaultKind(FaultLevel.WIRE, "every answer is late", "seconds", 2.0),
    "drip": FaultKind(FaultLevel.WIRE, "the answer is sent byte by byte", "seconds", 0.25),
    "http-429": FaultKind(FaultLevel.WIRE, "HTTP 429 from a proxy, with Retry-After of one second"),
    "http-502": FaultKind(FaultLevel.WIRE, "HTTP 502 from a proxy, with a web page"),
    "html": FaultKind(FaultLevel.WIRE, "HTTP 200 with a web page instead of the answer"),
    "truncated": FaultKind(FaultLevel.WIRE, "half of the answer is sent, and ends as if it were complete"),
    "garbage": FaultKind(FaultLevel.WIRE, "the answer is not a valid message"),
    "blank": FaultKind(FaultLevel.WIRE, "the answer is a message with only empty fields"),
    "empty": FaultKind(FaultLevel.WIRE, "success without a message"),
    "huge": FaultKind(FaultLevel.WIRE, "the answer is 100 MB long"),
    "disconnect": FaultKind(FaultLevel.WIRE, "the connection is reset in the middle of an answer"),
    "duplicate": FaultKind(FaultLevel.WIRE, "the answer is sent twice"),
    "goaway": FaultKind(FaultLevel.WIRE, "the server sends GOAWAY and closes instead of answering"),
    "flapping": FaultKind(
        FaultLevel.WIRE, "serves a number of requests, then resets as many, and so on", "requests", 5.0
    ),
    "rate-limit": FaultKind(FaultLevel.STATUS, "RESOURCE_EXHAUSTED, over REST 429"),
    "unavailable": FaultKind(FaultLevel.STATUS, "UNAVAILABLE: the node behind the endpoint is down"),
    "unauthorized": FaultKind(FaultLevel.STATUS, "UNAUTHENTICATED: the endpoint requires a key"),
    "internal": FaultKind(FaultLevel.STATUS, "INTERNAL: the node panicked"),
    "unimplemented": FaultKind(FaultLevel.STATUS, "UNIMPLEMENTED: the service is unknown"),
    "wrong-chain-id": FaultKind(
        FaultLevel.VIEW, "the endpoint belongs to another chain", "chain id", "allora-elsewhere-1"
    ),
    "frozen-height": FaultKind(FaultLevel.VIEW, "the endpoint's state stops at its first request"),
    "behind": FaultKind(FaultLevel.VIEW, "the endpoint's state is old", "blocks", 500.0),
    "no-index": FaultKind(FaultLevel.VIEW, "transactions are not indexed, and a lookup fails", methods=("GetTx",)),
    "index-late": FaultKind(
        FaultLevel.VIEW, "a transaction is found late after its block", "seconds", 40.0, ("GetTx",)
    ),
    "index-behind": FaultKind(
        FaultLevel.VIEW, "a transaction is found a number of blocks after its own", "blocks", 8.0, ("GetTx",)
    ),
    "lose-answer": FaultKind(
        FaultLevel.BROADCAST, "the transaction is accepted, the answer is UNAVAILABLE", methods=_BROADCAST_METHODS
    ),
    "hang-answer": FaultKind(
        FaultLevel.BROADCAST, "the transaction is accepted, no answer is sent", methods=_BROADCAST_METHODS
    ),
    "drop": FaultKind(FaultLevel.BROADCAST, "code 0, but the transaction is discarded", methods=_BROADCAST_METHODS),
    "mempool-full": FaultKind(
        FaultLevel.BROADCAST, "sdk 20; the transaction is not accepted", methods=_BROADCAST_METHODS
    ),
    "sequence-race": FaultKind(
        FaultLevel.BROADCAST, "sdk 32 although the sequence is right; not accepted", methods=_BROADCAST_METHODS
    ),
    "tx-cache": FaultKind(
        FaultLevel.BROADCAST, "sdk 19, already in the cache, but the node lost it", methods=_BROADCAST_METHODS
    ),
    "panic": FaultKind(
        FaultLevel.BROADCAST, "sdk 111222: the node's check panicked; not accepted", methods=_BROADCAST_METHODS
    ),
    "strange-code": FaultKind(FaultLevel.BROADCAST, "an unknown code; not accepted", methods=_BROADCAST_METHODS),
    # Faults of the chain. Every endpoint shows them.
    "out-of-gas": FaultKind(FaultLevel.EXECUTION, "a payload needs more gas in its block than simulated", "times", 1.5),
    "low-fee": FaultKind(FaultLevel.ARRIVAL, "the gas price rises just before the payload arrives", "times", 20.0),
    "sequence": FaultKind(FaultLevel.MEMPOOL, "another signer with the same key is included first"),
    "drop-from-mempool": FaultKind(FaultLevel.MEMPOOL, "a payload is accepted but never included"),
    "late": FaultKind(FaultLevel.MEMPOOL, "a payload is included some blocks later", "blocks", 3.0),
    "reorder": FaultKind(FaultLevel.MEMPOOL, "the next block includes pending transactions in reverse order"),
    "window-closing": FaultKind(FaultLevel.MEMPOOL, "the payload's window closes before it is included"),
    "restart": FaultKind(FaultLevel.MEMPOOL, "the node loses its mempool, stops and comes back", "seconds", 1.0),
    "passive": FaultKind(
        FaultLevel.WINDOW, "better workers fill the active set at the opening: code 0, nothing stored"
    ),
    "evicted": FaultKind(FaultLevel.WINDOW, "better workers fill the active set in the window's last block"),
    "upgrade": FaultKind(FaultLevel.BLOCK, "the chain changes its emissions version", "version", "v10"),
}

_FORMAT_HELP = "Write NAME[=VALUE] and any of @first=N @every=N @from=HEIGHT @until=HEIGHT @method=NAME @p=0.3,seed=7."
_NUMBER = re.compile(r"\d{1,9}(\.\d{1,6})?")
_WHOLE_NUMBER_UNITS = frozenset({"blocks", "requests"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_FIELDS = {"first": "first", "every": "every", "from": "start", "until": "until", "seed": "seed"}


@dataclass(frozen=True)
class NodeFault:
    """One fault and the requests it applies to. It is active at heights `start` to `until`, both included."""

    name: str
    value: float | str | None = None
    first: int | None = None
    every: int | None = None
    start: int | None = None
    until: int | None = None
    methods: tuple[str, ...] = ()
    p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.value is None:
            object.__setattr__(self, "value", self.kind.value)

    @classmethod
    def parse(cls, text: str) -> NodeFault:
        """Parse a fault.

        Raises:
            NeedsHuman: the fault does not exist, or the text has the wrong format.
        """
        head, *rules = re.split(r"@|,(?=seed=)", text.strip())
        name, separator, value = head.partition("=")
        kind = FAULTS.get(name)
        if kind is None:
            raise NeedsHuman(f"{name[:40]!r} is not a fault. `forecastd localnet --faults` lists them. {_FORMAT_HELP}")
        fields: dict[str, Any] = {"value": _parse_value(name, kind, value if separator else None)}
        for rule in rules:
            key, _, rule_value = rule.partition("=")
            if key in fields or (key == "from" and "start" in fields):
                raise NeedsHuman(f"The fault {name} has @{key} twice. {_FORMAT_HELP}")
            fields |= _parse_rule(name, kind, key, rule_value)
        return cls(name, **fields)

    @property
    def kind(self) -> FaultKind:
        return FAULTS[self.name]

    @property
    def number(self) -> float:
        """The value as a number."""
        return float(self.value or 0)

    def __str__(self) -> str:
        """The text that parses to this fault."""
        value = self.value
        text = self.name if value in (None, "") else f"{self.name}={value if isinstance(value, str) else f'{value:g}'}"
        for key, field in _FIELDS.items():
            if key != "seed" and getattr(self, field) is not None:
                text += f"@{key}={getattr(self, field)}"
        if self.methods:
            text += f"@method={'+'.join(self.methods)}"
        return text if self.p is None else f"{text}@p={self.p:g},seed={self.seed}"


def parse_faults(text: str) -> tuple[NodeFault, ...]:
    """Parse faults separated by commas. Empty text gives none.

    Raises:
        NeedsHuman: as `NodeFault.parse`.
    """
    return tuple(NodeFault.parse(part) for part in re.split(r",(?!seed=)", text) if part.strip())


class FaultPlan:
    """The faults of one endpoint or of the chain, with their counters. Only one thread may use it."""

    def __init__(self, faults: Iterable[NodeFault] = ()) -> None:
        self.faults = tuple(faults)
        self._counts = [0] * len(self.faults)
        self._randoms = [random.Random(fault.seed) for fault in self.faults]  # noqa: S311  # no secret

    def select(self, levels: Iterable[FaultLevel], height: int, method: str = "") -> tuple[NodeFault, ...]:
        """The faults of these levels that apply now. Each counts the events it could have applied to."""
        level_set = frozenset(levels)
        return tuple(
            fault
            for index, fault in enumerate(self.faults)
            if fault.kind.level in level_set and _applies(fault, height, method) and self._is_due(index, fault)
        )

    def _is_due(self, index: int, fault: NodeFault) -> bool:
        self._counts[index] += 1
        count = self._counts[index]
        if fault.first is not None and count > fault.first:
            return False
        if fault.every is not None and count % fault.every:
            return False
        if fault.name == "flapping":
            return (count - 1) // int(fault.number) % 2 == 1
        return fault.p is None or self._randoms[index].random() < fault.p


def _applies(fault: NodeFault, height: int, method: str) -> bool:
    if fault.start is not None and height < fault.start:
        return False
    if fault.until is not None and height > fault.until:
        return False
    kind_methods = fault.kind.methods
    return (not kind_methods or method in kind_methods) and (not fault.methods or method in fault.methods)


def _parse_value(name: str, kind: FaultKind, text: str | None) -> float | str | None:
    if text is None:
        return kind.value
    if not kind.unit:
        raise NeedsHuman(f"The fault {name} takes no value. {_FORMAT_HELP}")
    if isinstance(kind.value, str):
        if not _NAME.fullmatch(text) or (kind.unit == "version" and text not in ("v9", "v10")):
            raise NeedsHuman(f"The fault {name} takes a {kind.unit}, for example {name}={kind.value}.")
        return text
    if not _NUMBER.fullmatch(text) or not float(text) or (kind.unit in _WHOLE_NUMBER_UNITS and not text.isdigit()):
        raise NeedsHuman(f"The fault {name} takes a number of {kind.unit} above 0, for example {name}={kind.value:g}.")
    return float(text)


def _parse_rule(name: str, kind: FaultKind, key: str, text: str) -> dict[str, Any]:
    if key == "method" and kind.level in REQUEST_LEVELS and not kind.methods:
        methods = tuple(text.split("+"))
        if all(_NAME.fullmatch(method) for method in methods):
            return {"methods": methods}
    elif key == "p" and name != "refuse" and _NUMBER.fullmatch(text) and 0 < float(text) <= 1:
        return {"p": float(text)}
    elif key in _FIELDS and text.isascii() and text.isdigit() and len(text) <= 12:
        is_counter = key in ("first", "every")
        if not (is_counter and (name == "refuse" or int(text) == 0)):
            return {_FIELDS[key]: int(text)}
    raise NeedsHuman(f"The fault {name} cannot be limited by @{key[:20]}={text[:20]}. {_FORMAT_HELP}")


BEHAVIORS: dict[str, NodeFault] = {
    text: NodeFault.parse(text)
    for text in (
        "refuse", "reset", "silent", "web-server", "hang", "hang@method=BroadcastTx", "slow=2", "drip", "http-429",
        "http-502", "html", "truncated", "garbage", "blank", "empty", "huge", "disconnect",
        "disconnect@method=BroadcastTx", "duplicate", "goaway", "flapping=5", "rate-limit", "unavailable",
        "unavailable@every=2", "unauthorized", "internal", "unimplemented", "wrong-chain-id", "frozen-height",
        "behind=500", "no-index", "index-late=40", "index-behind=3", "lose-answer", "hang-answer", "drop",
        "mempool-full", "sequence-race", "tx-cache", "panic", "strange-code", "hang@p=0.3,seed=7",
    )
}  # fmt: skip
"""The behaviors of an endpoint, by the text of the fault. A campaign runs through all of them."""
