"""Numbers in sentences: durations, and counts with their noun."""

from __future__ import annotations

UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))  # with their seconds


def format_duration(seconds: float) -> str:
    """A duration, rounded to seconds, in its largest unit and the next smaller one: `3 d 4 h`, `2 h 5 min`, `40 s`."""
    remaining = max(0, round(seconds))
    parts: list[tuple[int, str]] = []
    for unit, size in UNITS:
        number, remaining = divmod(remaining, size)
        if number or parts:
            parts.append((number, unit))
    return " ".join(f"{number} {unit}" for number, unit in parts[:2] if number) or "0 s"


def format_count(number: int, singular: str, plural: str = "") -> str:
    """A number with its noun: `1 epoch`, `2 epochs`. `plural`: if it is not `singular` with an s."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"
