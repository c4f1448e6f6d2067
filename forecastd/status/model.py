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

from forecastd.ledger.outcome import Outcome

VERSION = 1
MAX_LAST_OUTCOMES = 10

DaemonMode = Literal["daemon", "continuous"]
DaemonState = Literal["starting", "running", "stopping", "ended"]


class _StrictModel:
    """Read back exactly: no other fields, no other types, no NaN."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class MeasurementSummary(_StrictModel):
    """How often something was measured, its sum and its largest."""

    count: int = 0
    sum: float = 0.0
    max: float = 0.0

    def add(self, value: float) -> MeasurementSummary:
        """With one measurement more."""
        return MeasurementSummary(self.count + 1, self.sum + value, max(self.max, value))


@dataclass(frozen=True)
class OutcomeCount(_StrictModel):
    """How many cycles ended with an outcome; `check` names what refused, where something did."""

    outcome: str
    check: str | None
    count: int


@dataclass(frozen=True)
class CycleRecord(_StrictModel):
    """How one cycle ended. `stages` in seconds; `lag` in blocks from the window's first block to the one that took it."""

    ended_at: float
    outcome: str
    nonce: int | None = None
    reason: str = ""
    check: str | None = None
    stages: Mapping[str, float] = field(default_factory=dict)
    lag: int | None = None
    needs_human: bool = False

    @classmethod
    def from_outcome(cls, outcome: Outcome, ended_at: float) -> CycleRecord:
        """An outcome that came about at `at`. Only a submission of this very cycle has a lag."""
        submitted_now = outcome.outcome == "submitted" and outcome.nonce is not None and outcome.height is not None
        return cls(
            ended_at,
            outcome.outcome,
            outcome.nonce,
            outcome.reason,
            outcome.check,
            dict(outcome.stages),
            (outcome.height or 0) - (outcome.nonce or 0) if submitted_now else None,
            outcome.needs_human,
        )


@dataclass(frozen=True)
class SubmissionRecord(_StrictModel):
    """The last submission that a block took. `height` is that block, `value` the log-return as signed."""

    nonce: int
    submitted_at: float
    tx_hash: str | None = None
    height: int | None = None
    value: float | None = None


@dataclass(frozen=True)
class WindowStatus(_StrictModel):
    """A submission window: the one that is open, else the next as far as it can be foreseen.

    `first_height` and `last_height` are blocks. `changes_in_blocks` and `changes_in_seconds`: until an open one closes, until
    one that is not open opens, at the moment of `written`.
    """

    open: bool
    nonce: int | None = None
    first_height: int | None = None
    last_height: int | None = None
    blocks_until_change: int | None = None
    seconds_until_change: float | None = None


@dataclass(frozen=True)
class TopicStatus(_StrictModel):
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
    outcomes: tuple[OutcomeCount, ...] = ()
    stages: Mapping[str, MeasurementSummary] = field(default_factory=dict)
    submission_lag: MeasurementSummary = MeasurementSummary()
    last_outcomes: tuple[CycleRecord, ...] = ()
    last_submitted: SubmissionRecord | None = None
    confirmed_nonce: int | None = None
    newest_nonce: int | None = None
    oldest_unserved_nonce: int | None = None
    watch_start_height: int | None = None
    height: int | None = None
    height_age: float | None = None
    window: WindowStatus | None = None
    epoch_length: int | None = None
    block_seconds: float | None = None
    poll_seconds: float | None = None
    balance_uallo: int | None = None
    runway_epochs: int | None = None

    def with_outcome(self, outcome: Outcome, ended_at: float) -> TopicStatus:
        """With one more cycle that ended so at `at` (unix seconds): counters, sums, last outcomes and last submission."""
        record = CycleRecord.from_outcome(outcome, ended_at)
        outcome_key = (record.outcome, record.check)
        counts = {(count.outcome, count.check): count.count for count in self.outcomes}
        counts[outcome_key] = counts.get(outcome_key, 0) + 1
        updated_stages = {
            stage: self.stages.get(stage, MeasurementSummary()).add(seconds) for stage, seconds in record.stages.items()
        }
        topic = replace(
            self,
            cycles=self.cycles + 1,
            submitted=self.submitted + (record.outcome == "submitted"),
            missed=self.missed + (record.outcome == "missed"),
            outcomes=tuple(OutcomeCount(*key, number) for key, number in counts.items()),
            stages={**self.stages, **updated_stages},
            submission_lag=self.submission_lag if record.lag is None else self.submission_lag.add(record.lag),
            last_outcomes=(record, *self.last_outcomes)[:MAX_LAST_OUTCOMES],
        )
        return topic._with_confirmation(outcome, ended_at)

    def _with_confirmation(self, outcome: Outcome, ended_at: float) -> TopicStatus:
        if outcome.outcome not in {"submitted", "already_submitted"} or outcome.nonce is None:
            return self
        confirmed_nonce = max(outcome.nonce, self.confirmed_nonce or outcome.nonce)
        oldest_is_served = self.oldest_unserved_nonce is not None and self.oldest_unserved_nonce <= confirmed_nonce
        topic = replace(
            self,
            confirmed_nonce=confirmed_nonce,
            oldest_unserved_nonce=None if oldest_is_served else self.oldest_unserved_nonce,
        )
        if outcome.outcome == "already_submitted":
            return topic
        return replace(
            topic,
            last_submitted=SubmissionRecord(outcome.nonce, ended_at, outcome.tx_hash, outcome.height, outcome.value),
        )


@dataclass(frozen=True)
class EndpointStatus(_StrictModel):
    """One endpoint, as `forecastd.chain.endpoints.EndpointReport` has it: `latency` in seconds, `lag` in blocks."""

    endpoint: str
    state: str
    chain_id: str | None = None
    height: int | None = None
    lag: int = 0
    latency: float | None = None
    consecutive_failures: int = 0
    error: str = ""


@dataclass(frozen=True)
class StreamStatus(_StrictModel):
    """A websocket that tells of new blocks: whether it is connected, and when it told something last."""

    endpoint: str
    connected: bool
    last_event_at: float | None = None
    error: str = ""


@dataclass(frozen=True)
class ModelStatus(_StrictModel):
    """A bundle in use: its sha256, what its data ended at (unix seconds), since when it is in use.

    `most_age` in seconds: how old its data may be before the guards refuse it; None where the age does not count.
    """

    name: str
    sha256: str
    trained_until: float | None = None
    in_use_since: float | None = None
    max_age: float | None = None


@dataclass(frozen=True)
class ChildStatus(_StrictModel):
    """A model's process. `role` is `active` or `standby`, `phase` a phase of docs/supervision.md or `idle`."""

    pid: int
    role: str
    bundle: str
    phase: str
    memory_bytes: int | None = None


@dataclass(frozen=True)
class HangCount(_StrictModel):
    """How often a bundle's process (by the bundle's name) made no progress in a phase."""

    bundle: str
    phase: str
    count: int


@dataclass(frozen=True)
class SupervisionStatus(_StrictModel):
    """What the supervision of the models' processes counted since the daemon's start; `jobs` by their result."""

    hangs: tuple[HangCount, ...] = ()
    crashes: int = 0
    replacements: int = 0
    failovers: int = 0
    recovered_stalls: int = 0
    jobs: Mapping[str, int] = field(default_factory=dict)
    quarantined: tuple[str, ...] = ()
    children: tuple[ChildStatus, ...] = ()


@dataclass(frozen=True)
class HeartbeatStatus(_StrictModel):
    """The line that says the daemon is alive. `age`: seconds since the last one, `interval`: seconds between two."""

    last_at: float | None
    age: float | None
    interval: float


@dataclass(frozen=True)
class WatchdogStatus(_StrictModel):
    """The service manager's watchdog, or the daemon's own: `age` seconds since it was fed, `limit` when it fires."""

    last_ping_at: float | None
    age: float | None
    timeout: float | None
    would_fire: bool = False


@dataclass(frozen=True)
class DaemonStatus(_StrictModel):
    """The daemon. `up` seconds since its start, `every` seconds between two writings, `deadline` unix seconds.

    `birth` tells its process from a later one of the same number; see `forecastd.pulsefile.birth_of`.
    """

    pid: int
    started_at: float
    written_at: float
    uptime: float
    mode: DaemonMode
    state: DaemonState
    network: str
    version: int = VERSION
    process_identity: str | None = None
    write_interval: float = 5.0
    chain_id: str | None = None
    deadline: float | None = None
    interval: float | None = None
    attention: str = ""
    topics: tuple[TopicStatus, ...] = ()
    endpoints: tuple[EndpointStatus, ...] = ()
    streams: tuple[StreamStatus, ...] = ()
    models: tuple[ModelStatus, ...] = ()
    supervision: SupervisionStatus = SupervisionStatus()
    heartbeat: HeartbeatStatus | None = None
    watchdog: WatchdogStatus | None = None
    memory_bytes: int | None = None
    children_memory_bytes: int | None = None
    open_files: int | None = None
    health_port: int | None = None
    log_file: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The fields as one JSON object."""
        fields: dict[str, Any] = _adapter().dump_python(self, mode="json")
        return fields

    def to_json(self) -> bytes:
        """The same, as UTF-8, whatever an error message may have brought along."""
        return json.dumps(self.to_dict(), ensure_ascii=False).encode("utf-8", "replace")

    @classmethod
    def from_json(cls, text: str | bytes) -> DaemonStatus:
        """What `as_text` made.

        Raises:
            ValueError: it is no pulse of this version; the message names a field that does not fit.
        """
        try:
            return _adapter().validate_json(text)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            location = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"{location}: {first['msg']}" if location else str(first["msg"])) from None


@cache
def _adapter() -> TypeAdapter[DaemonStatus]:
    return TypeAdapter(DaemonStatus)
