"""Text for metrics and values in reasons, alerts and screens."""

from __future__ import annotations

from forecastd.fleet.contract import METRIC_INDEX, METRICS


def metric_label(metric: str) -> str:
    """The readable name of a metric."""
    return METRICS[METRIC_INDEX[metric]].label


def format_value(metric: str, value: float) -> str:
    """A value with its unit: `91 %`, `1,240 ms`, `2.35/s`, `0.4`; at least three significant digits."""
    unit = METRICS[METRIC_INDEX[metric]].unit
    if unit == "1":
        return format_number(value)
    return f"{format_number(value)}/s" if unit == "1/s" else f"{format_number(value)} {unit}"


def format_number(value: float) -> str:
    """Three significant digits, all integer digits above a thousand; never `1e+03`."""
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if digits else text


def join_words(parts: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
