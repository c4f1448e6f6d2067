"""Parses times that users write."""

from __future__ import annotations

import click

from forecastd.clock import from_iso


def parse_time(text: str | None, flag: str = "--as-of") -> float | None:
    """The ISO 8601 time of an option in unix seconds, None when it is unset."""
    try:
        return None if text is None else from_iso(text)
    except ValueError:
        message = f"{text!r} is not an ISO 8601 time, such as 2019-10-17T09:00:00Z."
        raise click.BadParameter(message, param_hint=flag) from None
