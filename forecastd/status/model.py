"""The status of a running daemon as one value: written to a file, checked for /healthz, exported as metrics.

Invariant: another process reads it, perhaps of another release, so a field that is added, renamed or changes its
meaning needs a new `VERSION`. Times are unix seconds, for people. Durations (an age, the uptime) come from the
monotonic clock and are seconds at `written_at`. None means unknown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from forecastd.ledger.outcome import Outcome

VERSION = 2
MAX_LAST_OUTCOMES = 10

DaemonMode = Literal["daemon", "continuous"]
DaemonState = Literal["starting", "running", "stopping", "ended"]


class _StrictModel:
    """Accepts exactly what was written: no other fields, no other types, no NaN."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class MeasurementSummary(_StrictModel):
    """Count, sum and maximum of a measured value."""

    count: int = 0
    sum: float = 0.0
    max: float = 0.0

    def add(self, value: float) -> MeasurementSummary:
        """The summary with one more value."""
        return MeasurementSummary(self.count + 1, self.sum + value, max(self.max, value))


@dataclass(frozen=True)
class OutcomeCount(_StrictModel):
    """The number of cycles with an outcome; `check` names the check that refused, if one did."""

    outcome: str
    check: str | None
    count: int


@dataclass(frozen=True)
class CycleRecord(_StrictModel):
    """The end of one cycle. `stages`: seconds by stage. `lag`: blocks from the window's start to the submission."""

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
        """The record of `outcome`, which ended at `ended_at`. Only a submission of this cycle has a lag."""
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
    """The last submission in a block: `height` is that block, `value` the signed log-return."""

    nonce: int
    submitted_at: float
    tx_hash: str | None = None
    height: int | None = None
    value: float | None = None


@dataclass(frozen=True)
class WindowStatus(_StrictModel):
    """A submission window: the open one, else the next one as predicted from the epoch length.

    `first_height` and `last_height` are block heights. `blocks_until_change` and `seconds_until_change`: until the
    window closes if it is open, else until it opens, counted from `written_at`.
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

    `nonce` is being served, in `phase` (a stage's name, or `waiting`) since `phase_since`. Block heights: `height` as
    last reported, `height_age` seconds before `written_at`; `watch_start_height`, at which this process began to
    poll; `newest_nonce`, the newest epoch known to have opened; `confirmed_nonce`, the newest one whose submission is
    on the chain; `oldest_unserved_nonce`, the oldest one after that whose window opened and which is not served.
    `cycles`, `submitted`, `missed`, `outcomes` and `stages` count this process's cycles; `last_outcomes` are the
    latest ones, newest first. The balance is in uallo, the runway in epochs.
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
        """The status after one more cycle, which ended at `ended_at` (unix seconds)."""
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
    """One endpoint, from `forecastd.chain.endpoint_pool.EndpointReport`: `latency` in seconds, `lag` in blocks."""

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
    """A websocket with events of new blocks: whether it is connected, and the time of its last event."""

    endpoint: str
    connected: bool
    last_event_at: float | None = None
    error: str = ""


@dataclass(frozen=True)
class ModelStatus(_StrictModel):
    """A bundle in use: its sha256, the end of its training data and the start of its use (unix seconds).

    `max_age`: seconds after which the guards refuse the training data as too old; None if its age does not count.
    """

    name: str
    sha256: str
    trained_until: float | None = None
    in_use_since: float | None = None
    max_age: float | None = None


@dataclass(frozen=True)
class ChildStatus(_StrictModel):
    """A model process. `role` is `active` or `standby`, `phase` a phase of docs/supervision.md or `idle`."""

    pid: int
    role: str
    bundle: str
    phase: str
    memory_bytes: int | None = None


@dataclass(frozen=True)
class HangCount(_StrictModel):
    """How often a process of the bundle named `bundle` made no progress in a phase."""

    bundle: str
    phase: str
    count: int


@dataclass(frozen=True)
class SupervisionStatus(_StrictModel):
    """Counters of the supervised model processes since the daemon's start; `jobs` by result."""

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
    """The heartbeat line in the log. `age`: seconds since the last one. `interval`: seconds between two lines."""

    last_at: float | None
    age: float | None
    interval: float


@dataclass(frozen=True)
class WatchdogStatus(_StrictModel):
    """The service manager's watchdog: `age` seconds since the last ping; it fires after `timeout` seconds."""

    last_ping_at: float | None
    age: float | None
    timeout: float | None
    would_fire: bool = False


@dataclass(frozen=True)
class DaemonStatus(_StrictModel):
    """The daemon. `uptime` and `write_interval` in seconds, `deadline` in unix seconds.

    `process_identity` tells its process from a later one with the same pid; see
    `forecastd.status.file.process_identity`. `attention`: what needs a person now; empty if nothing does.
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
        """The same as UTF-8 bytes; characters that cannot be encoded, as in some error messages, are replaced."""
        return json.dumps(self.to_dict(), ensure_ascii=False).encode("utf-8", "replace")

    @classmethod
    def from_json(cls, text: str | bytes) -> DaemonStatus:
        """Parse the output of `to_json`.

        Raises:
            ValueError: not a status of this version; the message names the invalid field.
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
