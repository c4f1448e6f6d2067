"""Faults of the local node by name: what an endpoint can do to its callers, and what the chain itself can do to a worker.

A fault is text: `NAME[=VALUE][@first=N][@every=N][@from=HEIGHT][@until=HEIGHT][@method=M+M][@p=0.3,seed=7]`. Which
requests it strikes follows from counts, heights and a seed alone, so that a run is the same each time.
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
    """What a fault counts and strikes."""

    CONNECTION = "connection"  # before a request can be read
    WIRE = "wire"  # how the answer to a request travels
    STATUS = "status"  # an error in the answer's place; the chain is not asked
    VIEW = "view"  # what the endpoint knows of the chain
    BROADCAST = "broadcast"  # what becomes of a transaction that is sent to the endpoint
    ARRIVAL = "arrival"  # of a payload at the chain, through whichever endpoint, before it is checked
    MEMPOOL = "taken"  # of a payload into the mempool
    EXECUTION = "execution"  # of a payload in a block
    WINDOW = "window"  # the opening of a submission window
    BLOCK = "block"  # every block


ENDPOINT_LEVELS = frozenset(
    {FaultLevel.CONNECTION, FaultLevel.WIRE, FaultLevel.STATUS, FaultLevel.VIEW, FaultLevel.BROADCAST}
)
REQUEST_LEVELS = ENDPOINT_LEVELS - {FaultLevel.CONNECTION}


@dataclass(frozen=True)
class FaultKind:
    """A fault's table entry. `unit` names its value, empty when it takes none; `value` is what it is unless given."""

    level: FaultLevel
    description: str
    unit: str = ""
    value: float | str | None = None
    methods: tuple[str, ...] = ()  # the only requests it can strike

    @property
    def is_endpoint_fault(self) -> bool:
        return self.level in ENDPOINT_LEVELS


_BROADCAST_METHODS = ("BroadcastTx",)
FAULTS: dict[str, FaultKind] = {
    # An endpoint's: the chain behind it is well.
    "refuse": FaultKind(FaultLevel.CONNECTION, "nothing listens: every connection is refused"),
    "reset": FaultKind(FaultLevel.CONNECTION, "a connection is taken and reset at once"),
    "silent": FaultKind(FaultLevel.CONNECTION, "a connection is taken and not a byte ever comes: no handshake is ever done"),
    "web-server": FaultKind(FaultLevel.CONNECTION, "a web server that knows no HTTP/2 answers everything with a page and closes"),
    "hang": FaultKind(FaultLevel.WIRE, "a request is taken and never answered"),
    "slow": FaultKind(FaultLevel.WIRE, "every answer comes late", "seconds", 2.0),
    "drip": FaultKind(FaultLevel.WIRE, "the answer comes a byte at a time", "seconds", 0.25),
    "http-429": FaultKind(FaultLevel.WIRE, "HTTP 429 from a proxy, with Retry-After of one second"),
    "http-502": FaultKind(FaultLevel.WIRE, "HTTP 502 from a proxy, with a web page"),
    "html": FaultKind(FaultLevel.WIRE, "HTTP 200 with a web page in the answer's place"),
    "truncated": FaultKind(FaultLevel.WIRE, "the answer stops halfway, and ends as if it were whole"),
    "garbage": FaultKind(FaultLevel.WIRE, "the answer is bytes that are no message"),
    "blank": FaultKind(FaultLevel.WIRE, "the answer is a message in which every field is empty"),
    "empty": FaultKind(FaultLevel.WIRE, "success, and no message at all"),
    "huge": FaultKind(FaultLevel.WIRE, "the answer is 100 MB long"),
    "disconnect": FaultKind(FaultLevel.WIRE, "the connection is cut in the middle of an answer"),
    "duplicate": FaultKind(FaultLevel.WIRE, "the answer comes twice, the second time a moment later"),
    "goaway": FaultKind(FaultLevel.WIRE, "the server says goodbye and closes instead of answering"),
    "flapping": FaultKind(FaultLevel.WIRE, "so many requests are served, then as many cut off, and so on", "requests", 5.0),
    "rate-limit": FaultKind(FaultLevel.STATUS, "RESOURCE_EXHAUSTED, over REST 429"),
    "unavailable": FaultKind(FaultLevel.STATUS, "UNAVAILABLE: the node behind the endpoint is down"),
    "unauthorized": FaultKind(FaultLevel.STATUS, "UNAUTHENTICATED: the endpoint wants a key"),
    "internal": FaultKind(FaultLevel.STATUS, "INTERNAL: the node panicked"),
    "unimplemented": FaultKind(FaultLevel.STATUS, "UNIMPLEMENTED: the service is unknown"),
    "wrong-chain-id": FaultKind(FaultLevel.VIEW, "the endpoint is of another chain", "chain id", "allora-elsewhere-1"),
    "frozen-height": FaultKind(FaultLevel.VIEW, "the endpoint's state stands still at its first request"),
    "behind": FaultKind(FaultLevel.VIEW, "the endpoint's state is old", "blocks", 500.0),
    "no-index": FaultKind(FaultLevel.VIEW, "transactions are not indexed, and a look-up says so", methods=("GetTx",)),
    "index-late": FaultKind(FaultLevel.VIEW, "a transaction is found long after its block", "seconds", 40.0, ("GetTx",)),
    "index-behind": FaultKind(FaultLevel.VIEW, "a transaction is found so many blocks after its own", "blocks", 8.0, ("GetTx",)),
    "lose-answer": FaultKind(FaultLevel.BROADCAST, "the transaction is taken and the answer is UNAVAILABLE", methods=_BROADCAST_METHODS),
    "hang-answer": FaultKind(FaultLevel.BROADCAST, "the transaction is taken and the answer never comes", methods=_BROADCAST_METHODS),
    "drop": FaultKind(FaultLevel.BROADCAST, "code 0, and the transaction is thrown away", methods=_BROADCAST_METHODS),
    "mempool-full": FaultKind(FaultLevel.BROADCAST, "sdk 20, and the transaction is not taken", methods=_BROADCAST_METHODS),
    "sequence-race": FaultKind(FaultLevel.BROADCAST, "sdk 32 although the sequence was right; not taken", methods=_BROADCAST_METHODS),
    "tx-cache": FaultKind(FaultLevel.BROADCAST, "sdk 19, already in the cache, of a transaction the node lost", methods=_BROADCAST_METHODS),
    "panic": FaultKind(FaultLevel.BROADCAST, "sdk 111222: the node's check panicked; not taken", methods=_BROADCAST_METHODS),
    "strange-code": FaultKind(FaultLevel.BROADCAST, "a code that no table has; not taken", methods=_BROADCAST_METHODS),
    # The chain's: every endpoint sees it.
    "out-of-gas": FaultKind(FaultLevel.EXECUTION, "a payload needs more gas in its block than simulated", "times", 1.5),
    "low-fee": FaultKind(FaultLevel.ARRIVAL, "the gas price rises after it was asked for, as the payload arrives", "times", 20.0),
    "sequence": FaultKind(FaultLevel.MEMPOOL, "somebody else with the same key is in the block first; the payload is dropped"),
    "drop-from-mempool": FaultKind(FaultLevel.MEMPOOL, "a payload is taken, and in no block"),
    "late": FaultKind(FaultLevel.MEMPOOL, "a payload is included so many blocks later", "blocks", 3.0),
    "reorder": FaultKind(FaultLevel.MEMPOOL, "the next block takes what waits in the reverse order"),
    "window-closing": FaultKind(FaultLevel.MEMPOOL, "blocks without the payload follow until its window is closed"),
    "restart": FaultKind(FaultLevel.MEMPOOL, "the node goes down with its mempool lost, and comes back", "seconds", 1.0),
    "passive": FaultKind(FaultLevel.WINDOW, "better workers fill the active set as the window opens: code 0, nothing stored"),
    "evicted": FaultKind(FaultLevel.WINDOW, "better workers fill the active set in the window's last block"),
    "upgrade": FaultKind(FaultLevel.BLOCK, "the chain speaks another emissions version from a height on", "version", "v10"),
}  # fmt: skip

_FORMAT_HELP = "Write NAME[=VALUE] and any of @first=N @every=N @from=HEIGHT @until=HEIGHT @method=NAME @p=0.3,seed=7."
_NUMBER = re.compile(r"\d{1,9}(\.\d{1,6})?")
_WHOLE_NUMBER_UNITS = frozenset({"blocks", "requests"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_FIELDS = {"first": "first", "every": "every", "from": "start", "until": "until", "seed": "seed"}


@dataclass(frozen=True)
class NodeFault:
    """One fault and what it strikes. Heights are the chain's: `start` to `until`, both included."""

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
        """A fault from its text.

        Raises:
            NeedsHuman: no such fault, or not of this form.
        """
        head, *rules = re.split(r"@|,(?=seed=)", text.strip())
        name, separator, value = head.partition("=")
        kind = FAULTS.get(name)
        if kind is None:
            raise NeedsHuman(f"{name[:40]!r} is no fault. `forecastd localnet --faults` lists them. {_FORMAT_HELP}")
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
        """The text it is parsed from."""
        value = self.value
        text = self.name if value in (None, "") else f"{self.name}={value if isinstance(value, str) else f'{value:g}'}"
        for key, field in _FIELDS.items():
            if key != "seed" and getattr(self, field) is not None:
                text += f"@{key}={getattr(self, field)}"
        if self.methods:
            text += f"@method={'+'.join(self.methods)}"
        return text if self.p is None else f"{text}@p={self.p:g},seed={self.seed}"


def parse_faults(text: str) -> tuple[NodeFault, ...]:
    """Several faults, separated by commas. Empty text is none.

    Raises:
        NeedsHuman: as `Fault.parse`.
    """
    return tuple(NodeFault.parse(part) for part in re.split(r",(?!seed=)", text) if part.strip())


class FaultPlan:
    """The faults of one endpoint, or of a chain, with their counts. Used from one thread."""

    def __init__(self, faults: Iterable[NodeFault] = ()) -> None:
        self.faults = tuple(faults)
        self._counts = [0] * len(self.faults)
        self._randoms = [random.Random(fault.seed) for fault in self.faults]  # noqa: S311 - no secret

    def select(self, levels: Iterable[FaultLevel], height: int, method: str = "") -> tuple[NodeFault, ...]:
        """The faults of these levels that strike now. Each one counts what it could have struck."""
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
            raise NeedsHuman(f"The fault {name} takes a {kind.unit}, for instance {name}={kind.value}.")
        return text
    if not _NUMBER.fullmatch(text) or not float(text) or (kind.unit in _WHOLE_NUMBER_UNITS and not text.isdigit()):
        raise NeedsHuman(f"The fault {name} takes a number of {kind.unit} above 0, for instance {name}={kind.value:g}.")
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


BEHAVIOURS: dict[str, NodeFault] = {
    text: NodeFault.parse(text)
    for text in (
        "refuse", "reset", "silent", "web-server", "hang", "hang@method=BroadcastTx", "slow=2", "drip", "http-429",
        "http-502", "html", "truncated", "garbage", "blank", "empty", "huge", "disconnect", "disconnect@method=BroadcastTx",
        "duplicate", "goaway", "flapping=5", "rate-limit", "unavailable", "unavailable@every=2", "unauthorized",
        "internal", "unimplemented", "wrong-chain-id", "frozen-height", "behind=500", "no-index", "index-late=40",
        "index-behind=3", "lose-answer", "hang-answer", "drop", "mempool-full", "sequence-race", "tx-cache", "panic",
        "strange-code", "hang@p=0.3,seed=7",
    )
}  # fmt: skip
"""What an endpoint can do, each by the text that makes it. A campaign runs through all of them."""
