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


class Level(Enum):
    """What a fault counts and strikes."""

    CONNECTION = "connection"  # before a request can be read
    WIRE = "wire"  # how the answer to a request travels
    STATUS = "status"  # an error in the answer's place; the chain is not asked
    VIEW = "view"  # what the endpoint knows of the chain
    BROADCAST = "broadcast"  # what becomes of a transaction that is sent to the endpoint
    ARRIVAL = "arrival"  # of a payload at the chain, through whichever endpoint, before it is checked
    TAKEN = "taken"  # of a payload into the mempool
    EXECUTION = "execution"  # of a payload in a block
    WINDOW = "window"  # the opening of a submission window
    BLOCK = "block"  # every block


OF_ENDPOINT = frozenset({Level.CONNECTION, Level.WIRE, Level.STATUS, Level.VIEW, Level.BROADCAST})
OF_REQUEST = OF_ENDPOINT - {Level.CONNECTION}


@dataclass(frozen=True)
class Kind:
    """A fault's table entry. `unit` names its value, empty when it takes none; `value` is what it is unless given."""

    level: Level
    says: str
    unit: str = ""
    value: float | str | None = None
    methods: tuple[str, ...] = ()  # the only requests it can strike

    @property
    def of_endpoint(self) -> bool:
        return self.level in OF_ENDPOINT


_SENT = ("BroadcastTx",)
FAULTS: dict[str, Kind] = {
    # An endpoint's: the chain behind it is well.
    "refuse": Kind(Level.CONNECTION, "nothing listens: every connection is refused"),
    "reset": Kind(Level.CONNECTION, "a connection is taken and reset at once"),
    "silent": Kind(Level.CONNECTION, "a connection is taken and not a byte ever comes: no handshake is ever done"),
    "web-server": Kind(Level.CONNECTION, "a web server that knows no HTTP/2 answers everything with a page and closes"),
    "hang": Kind(Level.WIRE, "a request is taken and never answered"),
    "slow": Kind(Level.WIRE, "every answer comes late", "seconds", 2.0),
    "drip": Kind(Level.WIRE, "the answer comes a byte at a time", "seconds", 0.25),
    "http-429": Kind(Level.WIRE, "HTTP 429 from a proxy, with Retry-After of one second"),
    "http-502": Kind(Level.WIRE, "HTTP 502 from a proxy, with a web page"),
    "html": Kind(Level.WIRE, "HTTP 200 with a web page in the answer's place"),
    "truncated": Kind(Level.WIRE, "the answer stops halfway, and ends as if it were whole"),
    "garbage": Kind(Level.WIRE, "the answer is bytes that are no message"),
    "blank": Kind(Level.WIRE, "the answer is a message in which every field is empty"),
    "empty": Kind(Level.WIRE, "success, and no message at all"),
    "huge": Kind(Level.WIRE, "the answer is 100 MB long"),
    "disconnect": Kind(Level.WIRE, "the connection is cut in the middle of an answer"),
    "duplicate": Kind(Level.WIRE, "the answer comes twice, the second time a moment later"),
    "goaway": Kind(Level.WIRE, "the server says goodbye and closes instead of answering"),
    "flapping": Kind(Level.WIRE, "so many requests are served, then as many cut off, and so on", "requests", 5.0),
    "rate-limit": Kind(Level.STATUS, "RESOURCE_EXHAUSTED, over REST 429"),
    "unavailable": Kind(Level.STATUS, "UNAVAILABLE: the node behind the endpoint is down"),
    "unauthorized": Kind(Level.STATUS, "UNAUTHENTICATED: the endpoint wants a key"),
    "internal": Kind(Level.STATUS, "INTERNAL: the node panicked"),
    "unimplemented": Kind(Level.STATUS, "UNIMPLEMENTED: the service is unknown"),
    "wrong-chain-id": Kind(Level.VIEW, "the endpoint is of another chain", "chain id", "allora-elsewhere-1"),
    "frozen-height": Kind(Level.VIEW, "the endpoint's state stands still at its first request"),
    "behind": Kind(Level.VIEW, "the endpoint's state is old", "blocks", 500.0),
    "no-index": Kind(Level.VIEW, "transactions are not indexed, and a look-up says so", methods=("GetTx",)),
    "index-late": Kind(Level.VIEW, "a transaction is found long after its block", "seconds", 40.0, ("GetTx",)),
    "index-behind": Kind(Level.VIEW, "a transaction is found so many blocks after its own", "blocks", 8.0, ("GetTx",)),
    "lose-answer": Kind(Level.BROADCAST, "the transaction is taken and the answer is UNAVAILABLE", methods=_SENT),
    "hang-answer": Kind(Level.BROADCAST, "the transaction is taken and the answer never comes", methods=_SENT),
    "drop": Kind(Level.BROADCAST, "code 0, and the transaction is thrown away", methods=_SENT),
    "mempool-full": Kind(Level.BROADCAST, "sdk 20, and the transaction is not taken", methods=_SENT),
    "sequence-race": Kind(Level.BROADCAST, "sdk 32 although the sequence was right; not taken", methods=_SENT),
    "tx-cache": Kind(Level.BROADCAST, "sdk 19, already in the cache, of a transaction the node lost", methods=_SENT),
    "panic": Kind(Level.BROADCAST, "sdk 111222: the node's check panicked; not taken", methods=_SENT),
    "strange-code": Kind(Level.BROADCAST, "a code that no table has; not taken", methods=_SENT),
    # The chain's: every endpoint sees it.
    "out-of-gas": Kind(Level.EXECUTION, "a payload needs more gas in its block than simulated", "times", 1.5),
    "low-fee": Kind(Level.ARRIVAL, "the gas price rises after it was asked for, as the payload arrives", "times", 20.0),
    "sequence": Kind(Level.TAKEN, "somebody else with the same key is in the block first; the payload is dropped"),
    "drop-from-mempool": Kind(Level.TAKEN, "a payload is taken, and in no block"),
    "late": Kind(Level.TAKEN, "a payload is included so many blocks later", "blocks", 3.0),
    "reorder": Kind(Level.TAKEN, "the next block takes what waits in the reverse order"),
    "window-closing": Kind(Level.TAKEN, "blocks without the payload follow until its window is closed"),
    "restart": Kind(Level.TAKEN, "the node goes down with its mempool lost, and comes back", "seconds", 1.0),
    "passive": Kind(Level.WINDOW, "better workers fill the active set as the window opens: code 0, nothing stored"),
    "evicted": Kind(Level.WINDOW, "better workers fill the active set in the window's last block"),
    "upgrade": Kind(Level.BLOCK, "the chain speaks another emissions version from a height on", "version", "v10"),
}  # fmt: skip

_FORM = "Write NAME[=VALUE] and any of @first=N @every=N @from=HEIGHT @until=HEIGHT @method=NAME @p=0.3,seed=7."
_NUMBER = re.compile(r"\d{1,9}(\.\d{1,6})?")
_WHOLE = frozenset({"blocks", "requests"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_FIELDS = {"first": "first", "every": "every", "from": "start", "until": "until", "seed": "seed"}


@dataclass(frozen=True)
class Fault:
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
    def parse(cls, text: str) -> Fault:
        """A fault from its text.

        Raises:
            NeedsHuman: no such fault, or not of this form.
        """
        head, *rules = re.split(r"@|,(?=seed=)", text.strip())
        name, given, value = head.partition("=")
        kind = FAULTS.get(name)
        if kind is None:
            raise NeedsHuman(f"{name[:40]!r} is no fault. `forecastd localnet --faults` lists them. {_FORM}")
        fields: dict[str, Any] = {"value": _value(name, kind, value if given else None)}
        for rule in rules:
            key, _, told = rule.partition("=")
            if key in fields or (key == "from" and "start" in fields):
                raise NeedsHuman(f"The fault {name} has @{key} twice. {_FORM}")
            fields |= _rule(name, kind, key, told)
        return cls(name, **fields)

    @property
    def kind(self) -> Kind:
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


def parse_faults(text: str) -> tuple[Fault, ...]:
    """Several faults, separated by commas. Empty text is none.

    Raises:
        NeedsHuman: as `Fault.parse`.
    """
    return tuple(Fault.parse(part) for part in re.split(r",(?!seed=)", text) if part.strip())


class Plan:
    """The faults of one endpoint, or of a chain, with their counts. Used from one thread."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self.faults = tuple(faults)
        self._counts = [0] * len(self.faults)
        self._randoms = [random.Random(fault.seed) for fault in self.faults]  # noqa: S311 - no secret

    def strike(self, levels: Iterable[Level], height: int, method: str = "") -> tuple[Fault, ...]:
        """The faults of these levels that strike now. Each one counts what it could have struck."""
        wanted = frozenset(levels)
        return tuple(
            fault
            for at, fault in enumerate(self.faults)
            if fault.kind.level in wanted and _in_reach(fault, height, method) and self._strikes(at, fault)
        )

    def _strikes(self, at: int, fault: Fault) -> bool:
        self._counts[at] += 1
        count = self._counts[at]
        if fault.first is not None and count > fault.first:
            return False
        if fault.every is not None and count % fault.every:
            return False
        if fault.name == "flapping":
            return (count - 1) // int(fault.number) % 2 == 1
        return fault.p is None or self._randoms[at].random() < fault.p


def _in_reach(fault: Fault, height: int, method: str) -> bool:
    if fault.start is not None and height < fault.start:
        return False
    if fault.until is not None and height > fault.until:
        return False
    own = fault.kind.methods
    return (not own or method in own) and (not fault.methods or method in fault.methods)


def _value(name: str, kind: Kind, text: str | None) -> float | str | None:
    if text is None:
        return kind.value
    if not kind.unit:
        raise NeedsHuman(f"The fault {name} takes no value. {_FORM}")
    if isinstance(kind.value, str):
        if not _NAME.fullmatch(text) or (kind.unit == "version" and text not in ("v9", "v10")):
            raise NeedsHuman(f"The fault {name} takes a {kind.unit}, for instance {name}={kind.value}.")
        return text
    if not _NUMBER.fullmatch(text) or not float(text) or (kind.unit in _WHOLE and not text.isdigit()):
        raise NeedsHuman(f"The fault {name} takes a number of {kind.unit} above 0, for instance {name}={kind.value:g}.")
    return float(text)


def _rule(name: str, kind: Kind, key: str, text: str) -> dict[str, Any]:
    if key == "method" and kind.level in OF_REQUEST and not kind.methods:
        methods = tuple(text.split("+"))
        if all(_NAME.fullmatch(method) for method in methods):
            return {"methods": methods}
    elif key == "p" and name != "refuse" and _NUMBER.fullmatch(text) and 0 < float(text) <= 1:
        return {"p": float(text)}
    elif key in _FIELDS and text.isascii() and text.isdigit() and len(text) <= 12:
        counted = key in ("first", "every")
        if not (counted and (name == "refuse" or int(text) == 0)):
            return {_FIELDS[key]: int(text)}
    raise NeedsHuman(f"The fault {name} cannot be limited by @{key[:20]}={text[:20]}. {_FORM}")


BEHAVIOURS: dict[str, Fault] = {
    text: Fault.parse(text)
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
