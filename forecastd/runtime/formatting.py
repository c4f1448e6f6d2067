"""Numbers in sentences: durations, and counts with their noun."""

from __future__ import annotations


def format_duration(seconds: float) -> str:
    """A duration in its two largest units: `3 d 4 h`, `2 h 5 min`, `40 s`."""
    remaining, parts = max(0, int(seconds)), []
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        number, remaining = divmod(remaining, size)
        parts += [f"{number} {unit}"] if number else []
    return " ".join(parts[:2]) or "0 s"


def format_count(number: int, singular: str, plural: str = "") -> str:
    """A number with its noun: `1 epoch`, `2 epochs`. `plural`: if it is not `singular` with an s."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"
