"""The stages of a cycle as text: one fixed form for each, for the terminal and the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from forecastd.clock import to_iso
from forecastd.inference.supervised_model import SupervisedModel
from forecastd.ledger.ledger import LedgerEntry
from forecastd.market.candles import Candles
from forecastd.market.guards import GuardReport
from forecastd.runtime.formatting import format_duration
from models.base import Forecast


@dataclass(frozen=True)
class StageResult:
    """A finished stage: a description of its result, and how many seconds it took."""

    name: str
    text: str
    seconds: float


def describe_candles(candles: Candles, source: str, now: float) -> str:
    """Source, number, end and age of the candles of a forecast."""
    kind = "synthetic, " if candles.provenance.synthetic else ""
    return f"{source}: {kind}{len(candles)} candles to {to_iso(candles.end)}, {format_duration(now - candles.end)} old"


def describe_model(model: SupervisedModel[Any]) -> str:
    """Name and hash of a model that passed its check."""
    manifest = model.manifest
    return f"{manifest.name} ({manifest.sha256[:12]}): hashes, weights and canary are correct"


def quantiles_at_horizon(forecast: Forecast) -> dict[str, float]:
    """The quantiles of the last step by level, such as `{"0.1": -0.03, ...}` (log-returns)."""
    names = [f"{level:g}" for level in forecast.levels]
    return dict(zip(names, forecast.quantiles[-1].tolist(), strict=False))


def describe_forecast(forecast: Forecast) -> list[str]:
    """The point forecast with its horizon, and the quantiles at the horizon."""
    hours = forecast.step * len(forecast.quantiles) / 3600
    levels = quantiles_at_horizon(forecast).items()
    return [
        f"log-return over {hours:g} h: {forecast.value:+.5f}",
        "  ".join(f"{100 * float(level):g}%: {value:+.4f}" for level, value in levels),
    ]


def describe_submission(entry: LedgerEntry) -> str:
    """The state of an epoch's submission, with its block, the number of signatures, and the reason if there is one."""
    block = "" if entry.row.height is None else f" in block {entry.row.height}"
    signatures = "" if entry.row.attempts <= 1 else f", {entry.row.attempts} signatures"
    return f"{entry.row.state}{block}{signatures}{': ' + entry.row.reason if entry.row.reason else ''}"


def describe_guards(report: GuardReport) -> list[str]:
    """How many guards passed, the log-return that is plausible now, and the warnings."""
    summary = f"{len(report.passed)} passed; a plausible log-return is within {report.bound:.4f} of zero"
    return [summary, *(f"warning: {warning}" for warning in report.warnings)]
