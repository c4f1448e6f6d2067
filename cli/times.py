"""Times as users write them."""

from __future__ import annotations

import click

from forecastd.clock import from_iso


def parse_time(text: str | None, flag: str = "--as-of") -> float | None:
    """Unix seconds of an option's ISO 8601 time, None when it was not given."""
    try:
        return None if text is None else from_iso(text)
    except ValueError:
        message = f"{text!r} is not an ISO 8601 time such as 2019-10-17T09:00:00Z."
        raise click.BadParameter(message, param_hint=flag) from None
