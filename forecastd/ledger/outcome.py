"""The outcome of a cycle: one value for people, for programs and for the exit code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from forecastd.errors import ExitCode, ForecastdError, NeedsHuman, SkipEpoch

OutcomeName = Literal["submitted", "already_submitted", "dry_run", "no_window", "skipped", "missed", "failed"]
_EXIT_CODES: Mapping[OutcomeName, ExitCode] = {
    "submitted": ExitCode.SUCCESS,
    "already_submitted": ExitCode.SUCCESS,
    "dry_run": ExitCode.SUCCESS,
    "no_window": ExitCode.NOTHING_TO_DO,
    "skipped": ExitCode.REFUSED,
    "missed": ExitCode.TEMPORARY,
    "failed": ExitCode.TEMPORARY,
}


@dataclass(frozen=True)
class Outcome:
    """The outcome of one epoch's cycle. A field that the cycle did not reach is None.

    `value` is the log-return as signed, `quantiles` maps a level to the log-return at the topic's horizon, `height` is the
    block that included the transaction, `as_of` the reference time (ISO 8601, UTC), `bundle` the model's sha256 and
    `stages` the seconds of each stage. `reason` is empty on plain success; `check` names the check that refused, if any.
    `needs_human` distinguishes a failure that only a person can resolve (exit code 5) from a temporary one (6).
    """

    outcome: OutcomeName
    reason: str = ""
    check: str | None = None
    chain_id: str | None = None
    topic_id: int | None = None
    nonce: int | None = None
    wallet: str | None = None
    value: float | None = None
    quantiles: Mapping[str, float] | None = None
    tx_hash: str | None = None
    height: int | None = None
    source: str | None = None
    synthetic: bool | None = None
    as_of: str | None = None
    bundle: str | None = None
    stages: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    needs_human: bool = False

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of the command line, as documented in docs/exit-codes.md."""
        return ExitCode.NEEDS_HUMAN if self.needs_human else _EXIT_CODES[self.outcome]

    def as_json(self) -> dict[str, object]:
        """The fields as one JSON object."""
        return {**asdict(self), "exit_code": self.exit_code}


def outcome_from_error(error: ForecastdError, partial: Outcome) -> Outcome:
    """The outcome of a cycle that `error` ended, with the fields set so far in `partial`."""
    if isinstance(error, SkipEpoch):
        return replace(partial, outcome="skipped", reason=str(error), check=error.check)
    return replace(partial, outcome="failed", reason=str(error), needs_human=isinstance(error, NeedsHuman))
