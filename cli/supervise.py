"""`supervise`: run a model under supervision on demand, show its processes, and inject faults."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from cli.options import TIME, join_faults, json_option, setting_option
from cli.signals import single_interrupt
from forecastd.clock import SystemClock

PHASES = ("starting", "loading", "warming_up", "predicting", "post_processing", "stopping", "heartbeat")
MAX_SECONDS = 86_400.0  # as for the settings
EPILOG = """\b
Exit codes:
  0    every job got its result, possibly after a failover
  2    wrong usage
  4    a job got no result; the reason is printed
  5    the model or a setting is invalid
  130  interrupted
"""


def _list_faults(ctx: click.Context, _: click.Parameter, enabled: bool) -> None:
    """Print the table of faults and exit."""
    if enabled and not ctx.resilient_parsing:
        from cli.supervise_screen import print_faults

        print_faults()
        ctx.exit()


def _timeouts(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    """Convert `PHASE=SECONDS` to settings."""
    timeouts = {}
    for text in values:
        name, _, number = text.partition("=")
        phase = name.strip().lower().replace("-", "_")
        if phase not in PHASES:
            raise click.BadParameter(f"unknown phase {name!r}. Phases: {', '.join(PHASES)}.", ctx, param)
        try:
            seconds = float(number)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds <= MAX_SECONDS:
            raise click.BadParameter(
                f"{text!r} must be PHASE=SECONDS with seconds above 0 and up to {MAX_SECONDS:g}.", ctx, param
            )
        timeouts["child_heartbeat_timeout" if phase == "heartbeat" else f"{phase}_timeout"] = seconds
    return timeouts


@click.command(name="supervise", epilog=EPILOG)
@setting_option("--model")
@setting_option("--source", text="Predict from candles of this source. Default: from the bundle's canary.")
@click.option("--as-of", type=TIME, metavar="ISO", help="With --source: predict as of this time (ISO 8601, UTC).")
@click.option("--jobs", type=click.IntRange(1, 10_000), default=1, metavar="N", show_default=True,
              help="Number of predictions, one after the other.")  # fmt: skip
@click.option("--fault", "faults", multiple=True, callback=join_faults, metavar="KIND[:VALUE][@PLACE]",
              help="Inject a fault into the process; may be repeated or separated by commas.")  # fmt: skip
@click.option("--faults", "list_faults", is_flag=True, is_eager=True, expose_value=False, callback=_list_faults,
              help="List the faults and exit.")  # fmt: skip
@click.option("--faulty", type=click.IntRange(min=0), default=1, show_default=True, metavar="N",
              help="Number of processes with the faults: the first N started, 0 for all.")  # fmt: skip
@setting_option(
    "--standbys", "STANDBYS", "Number of loaded standby processes.", type=click.IntRange(0, 16), metavar="N"
)
@setting_option("--attempts", "JOB_ATTEMPTS", "Maximum number of processes that try a job.", type=click.IntRange(1, 100),
                metavar="N")  # fmt: skip
@setting_option("--memory", "MODEL_MEMORY_MB", "Maximum address space of a process.", type=click.IntRange(min=256),
                metavar="MIB")  # fmt: skip
@click.option("--timeout", "timeouts", multiple=True, callback=_timeouts, metavar="PHASE=SECONDS",
              help=f"Maximum seconds without progress in a phase ({', '.join(PHASES[:-1])}), or without a heartbeat "
              "(heartbeat); may be repeated.  [STARTING_TIMEOUT ...]")  # fmt: skip
@click.option("--deadline", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
              help="For each job, over all its attempts. Default: as in a cycle.")  # fmt: skip
@json_option("One JSON object on stdout, logs on stderr.")
@click.option("-v", "--verbose", is_flag=True, help="Print each step of progress and the model's own output too.")
@click.pass_context
def command(
    ctx: click.Context, /, as_json: bool, verbose: bool, as_of: float | None, timeouts: dict[str, float], **options: Any
) -> None:
    """Run a model under supervision and show its processes, phases and progress.

    With --fault its process hangs, stops its heartbeat, crashes, leaks memory and more, at a chosen point of its work, and
    you see what happens to the job. Nothing is submitted or written; docs/supervision.md shows real runs.
    """
    from cli.supervise_screen import SupervisionScreen  # with numpy, pydantic and rich, which --help does not need
    from forecastd.inference.supervision_run import SupervisionPlan, run_supervision
    from forecastd.settings import load_settings

    ctx.with_resource(single_interrupt())
    if verbose:
        sys.excepthook = sys.__excepthook__
    clock = SystemClock()
    plan = SupervisionPlan(
        jobs=options.pop("jobs"),
        faults=options.pop("faults"),
        faulty_launches=options.pop("faulty"),
        deadline=options.pop("deadline"),
        as_of=_candle_time(as_of, clock.now(), from_source=options["data_source"] is not None),
    )
    settings = load_settings(**(ctx.obj or {}), **timeouts, **options)
    with SupervisionScreen(clock, quiet=as_json, verbose=verbose) as screen:
        report = run_supervision(settings, plan, clock, observer=screen.on_event, on_start=screen.set_children)
    if as_json:
        click.echo(json.dumps(report.as_json()))
    else:
        screen.result(report)
    ctx.exit(report.exit_code)


def _candle_time(as_of: float | None, now: float, *, from_source: bool) -> float | None:
    """The time of the candles; None for the bundle's canary."""
    if as_of is not None and not from_source:
        raise click.UsageError("--as-of needs --source: it selects the time of the candles.")
    return (as_of or now) if from_source else None
