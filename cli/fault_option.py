"""The `--fault` option of the commands that run a model in a supervised process."""

from __future__ import annotations

import click


def join_faults(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> str:
    """The callback of a repeated option: its faults as one comma-separated list, validated."""
    from forecastd.supervise.faults import parse_faults  # with numpy, which --help does not need

    text = ",".join(values)
    try:
        parse_faults(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}. List the faults with `forecastd supervise --faults`.", ctx, param) from None
    return text
