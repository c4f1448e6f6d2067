"""What a running daemon knows of itself, as one value: written to a file for `status`, judged for /healthz, told as metrics.

The one thing to know before changing it: another process reads it, perhaps of another release, so a field that is added,
renamed or means something else needs a new `VERSION`. Times are unix seconds, for people; what is judged by length (an age,
how long it is up) is measured by the monotonic clock and held as seconds at the moment of `written`. None means not known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from forecastd.outcome import Outcome

VERSION = 1
LAST_OUTCOMES = 10

Mode = Literal["daemon", "continuous"]
State = Literal["starting", "running", "stopping", "ended"]


class _Strict:
    """Read back exactly: no other fields, no other types, no NaN."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Total(_Strict):
    """How often something was measured, its sum and its largest."""

    count: int = 0
    sum: float = 0.0
    largest: float = 0.0

    def plus(self, value: float) -> Total:
        """With one measurement more."""
        return Total(self.count + 1, self.sum + value, max(self.largest, value))


@dataclass(frozen=True)
class Count(_Strict):
    """How many cycles ended with an outcome; `check` names what refused, where something did."""

    outcome: str
    check: str | None
    count: int


@dataclass(frozen=True)
class Ended(_Strict):
    """How one cycle ended. `stages` in seconds; `lag` in blocks from the window's first block to the one that took it."""

    at: float
    outcome: str
    nonce: int | None = None
    reason: str = ""
    check: str | None = None
    stages: Mapping[str, float] = field(default_factory=dict)
    lag: int | None = None
    needs_human: bool = False

    @classmethod
    def of(cls, outcome: Outcome, at: float) -> Ended:
        """An outcome that came about at `at`. Only a submission of this very cycle has a lag."""
        fresh = outcome.outcome == "submitted" and outcome.nonce is not None and outcome.height is not None
        return cls(
            at,
            outcome.outcome,
            outcome.nonce,
            outcome.reason,
            outcome.check,
            dict(outcome.stages),
            (outcome.height or 0) - (outcome.nonce or 0) if fresh else None,
            outcome.needs_human,
        )


@dataclass(frozen=True)
class Submitted(_Strict):
    """The last submission that a block took. `height` is that block, `value` the log-return as signed."""

    nonce: int
    at: float
    tx_hash: str | None = None
    height: int | None = None
    value: float | None = None


@dataclass(frozen=True)
class WindowPulse(_Strict):
    """A submission window: the one that is open, else the next as far as it can be foreseen.

    `first_height` and `last_height` are blocks. `changes_in_blocks` and `changes_in_seconds`: until an open one closes, until
    one that is not open opens, at the moment of `written`.
    """

    open: bool
    nonce: int | None = None
    first_height: int | None = None
    last_height: int | None = None
    changes_in_blocks: int | None = None
    changes_in_seconds: float | None = None


@dataclass(frozen=True)
class TopicPulse(_Strict):
    """One topic with one wallet.

    `nonce` is in work now, in `phase` (a stage's name, or `waiting`) since `phase_since`. Blocks: `height` as last told,
    `height_age` seconds before `written`; `watched_from`, the height at which this process began to look; `newest_nonce`, the
    newest epoch known to have opened; `confirmed_nonce`, the newest that the chain has our submission of;
    `oldest_unserved`, the oldest after that one whose window opened and which we have not served. `seen` are the cycles of
    this process, `last_outcomes` the latest, newest first. The balance is in uallo, the runway in epochs.
    """

    topic_id: int
    wallet: str | None = None
    model: str | None = None
    source: str | None = None
    active: bool | None = None
    nonce: int | None = None
    phase: str = "waiting"
    phase_since: float | None = None
    cycles: int = 0
    submitted: int = 0
    missed: int = 0
    outcomes: tuple[Count, ...] = ()
    stages: Mapping[str, Total] = field(default_factory=dict)
    lags: Total = Total()
    last_outcomes: tuple[Ended, ...] = ()
    last_submitted: Submitted | None = None
    confirmed_nonce: int | None = None
    newest_nonce: int | None = None
    oldest_unserved: int | None = None
    watched_from: int | None = None
    height: int | None = None
    height_age: float | None = None
    window: WindowPulse | None = None
    epoch_length: int | None = None
    block_seconds: float | None = None
    poll_seconds: float | None = None
    balance_uallo: int | None = None
    runway_epochs: int | None = None

    def after(self, outcome: Outcome, at: float) -> TopicPulse:
        """With one more cycle that ended so at `at` (unix seconds): counters, sums, last outcomes and last submission."""
        ended = Ended.of(outcome, at)
        name = (ended.outcome, ended.check)
        counts = {(one.outcome, one.check): one.count for one in self.outcomes}
        counts[name] = counts.get(name, 0) + 1
        spent = {stage: self.stages.get(stage, Total()).plus(seconds) for stage, seconds in ended.stages.items()}
        told = replace(
            self,
            cycles=self.cycles + 1,
            submitted=self.submitted + (ended.outcome == "submitted"),
            missed=self.missed + (ended.outcome == "missed"),
            outcomes=tuple(Count(*key, number) for key, number in counts.items()),
            stages={**self.stages, **spent},
            lags=self.lags if ended.lag is None else self.lags.plus(ended.lag),
            last_outcomes=(ended, *self.last_outcomes)[:LAST_OUTCOMES],
        )
        return told._confirmed(outcome, at)

    def _confirmed(self, outcome: Outcome, at: float) -> TopicPulse:
        if outcome.outcome not in {"submitted", "already_submitted"} or outcome.nonce is None:
            return self
        confirmed = max(outcome.nonce, self.confirmed_nonce or outcome.nonce)
        served = self.oldest_unserved is not None and self.oldest_unserved <= confirmed
        told = replace(self, confirmed_nonce=confirmed, oldest_unserved=None if served else self.oldest_unserved)
        if outcome.outcome == "already_submitted":
            return told
        return replace(
            told, last_submitted=Submitted(outcome.nonce, at, outcome.tx_hash, outcome.height, outcome.value)
        )


@dataclass(frozen=True)
class EndpointPulse(_Strict):
    """One endpoint, as `forecastd.chain.endpoints.EndpointReport` has it: `latency` in seconds, `lag` in blocks."""

    endpoint: str
    state: str
    chain_id: str | None = None
    height: int | None = None
    lag: int = 0
    latency: float | None = None
    streak: int = 0
    error: str = ""


@dataclass(frozen=True)
class StreamPulse(_Strict):
    """A websocket that tells of new blocks: whether it is connected, and when it told something last."""

    endpoint: str
    connected: bool
    last_at: float | None = None
    error: str = ""


@dataclass(frozen=True)
class ModelPulse(_Strict):
    """A bundle in use: its sha256, what its data ended at (unix seconds), since when it is in use.

    `most_age` in seconds: how old its data may be before the guards refuse it; None where the age does not count.
    """

    name: str
    sha256: str
    trained_until: float | None = None
    since: float | None = None
    most_age: float | None = None


@dataclass(frozen=True)
class ChildPulse(_Strict):
    """A model's process. `role` is `active` or `standby`, `phase` a phase of docs/supervision.md or `idle`."""

    pid: int
    role: str
    bundle: str
    phase: str
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Hangs(_Strict):
    """How often a bundle's process (by the bundle's name) made no progress in a phase."""

    bundle: str
    phase: str
    count: int


@dataclass(frozen=True)
class SupervisionPulse(_Strict):
    """What the supervision of the models' processes counted since the daemon's start; `jobs` by their result."""

    hangs: tuple[Hangs, ...] = ()
    crashes: int = 0
    replacements: int = 0
    hand_overs: int = 0
    slow_but_fine: int = 0
    jobs: Mapping[str, int] = field(default_factory=dict)
    quarantined: tuple[str, ...] = ()
    children: tuple[ChildPulse, ...] = ()


@dataclass(frozen=True)
class HeartbeatPulse(_Strict):
    """The line that says the daemon is alive. `age`: seconds since the last one, `interval`: seconds between two."""

    last_at: float | None
    age: float | None
    interval: float


@dataclass(frozen=True)
class WatchdogPulse(_Strict):
    """The service manager's watchdog, or the daemon's own: `age` seconds since it was fed, `limit` when it fires."""

    fed_at: float | None
    age: float | None
    limit: float | None
    would_fire: bool = False


@dataclass(frozen=True)
class Pulse(_Strict):
    """The daemon. `up` seconds since its start, `every` seconds between two writings, `deadline` unix seconds.

    `birth` tells its process from a later one of the same number; see `forecastd.pulsefile.birth_of`.
    """

    pid: int
    started: float
    written: float
    up: float
    mode: Mode
    state: State
    network: str
    version: int = VERSION
    birth: str | None = None
    every: float = 5.0
    chain_id: str | None = None
    deadline: float | None = None
    interval: float | None = None
    trouble: str = ""
    topics: tuple[TopicPulse, ...] = ()
    endpoints: tuple[EndpointPulse, ...] = ()
    streams: tuple[StreamPulse, ...] = ()
    models: tuple[ModelPulse, ...] = ()
    supervision: SupervisionPulse = SupervisionPulse()
    heartbeat: HeartbeatPulse | None = None
    watchdog: WatchdogPulse | None = None
    memory_bytes: int | None = None
    children_memory_bytes: int | None = None
    open_files: int | None = None
    health_port: int | None = None
    log: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The fields as one JSON object."""
        told: dict[str, Any] = _adapter().dump_python(self, mode="json")
        return told

    def as_text(self) -> bytes:
        """The same, as UTF-8, whatever an error message may have brought along."""
        return json.dumps(self.as_json(), ensure_ascii=False).encode("utf-8", "replace")

    @classmethod
    def from_json(cls, text: str | bytes) -> Pulse:
        """What `as_text` made.

        Raises:
            ValueError: it is no pulse of this version; the message names a field that does not fit.
        """
        try:
            return _adapter().validate_json(text)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"{where}: {first['msg']}" if where else str(first["msg"])) from None


@cache
def _adapter() -> TypeAdapter[Pulse]:
    return TypeAdapter(Pulse)
