"""`supervise`: run a model under supervision on demand, watch its processes, and try what becomes of a fault."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from cli.options import SettingOption, join_faults

PHASES = ("starting", "loading", "warming_up", "predicting", "post_processing", "stopping", "silence")
MAX_SECONDS = 86_400.0  # seconds, as for the settings
EPILOG = """\b
Exit codes:
  0    every job got its result, also after a hand-over
  2    wrong usage
  4    a job got no result; the reason says why
  5    the model is no good, or a setting does not fit
  130  interrupted
"""


def _list_faults(ctx: click.Context, _: click.Parameter, enabled: bool) -> None:
    """Print what there is, and end."""
    if enabled and not ctx.resilient_parsing:
        from cli.supervise_screen import print_faults

        print_faults()
        ctx.exit()


def _timeouts(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    """`PHASE=SECONDS` as settings."""
    timeouts = {}
    for text in values:
        name, _, number = text.partition("=")
        phase = name.strip().lower().replace("-", "_")
        if phase not in PHASES:
            raise click.BadParameter(f"there is no phase {name!r}; there are {', '.join(PHASES)}.", ctx, param)
        try:
            seconds = float(number)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds <= MAX_SECONDS:
            raise click.BadParameter(f"{text!r} must be PHASE=SECONDS, above 0 to {MAX_SECONDS:g}.", ctx, param)
        timeouts[f"{phase}_timeout"] = seconds
    return timeouts


@click.command(name="supervise", epilog=EPILOG)
@click.option("--model", cls=SettingOption, type=click.Path(path_type=Path), metavar="DIR",
              help="The model bundle.  [MODEL]")  # fmt: skip
@click.option("--source", "data_source", cls=SettingOption, metavar="SPEC",
              help="Predict from this source's candles. Default: from the bundle's own canary.")  # fmt: skip
@click.option("--as-of", metavar="ISO", help="With --source: predict as at this moment (ISO 8601, UTC).")
@click.option(
    "--jobs",
    type=click.IntRange(1, 10_000),
    default=1,
    metavar="N",
    show_default=True,
    help="How many predictions, one after the other.",
)
@click.option("--fault", "faults", multiple=True, callback=join_faults, metavar="KIND[:VALUE][@PLACE]",
              help="A fault for the process to bring on itself; may be given again, or with commas between.")  # fmt: skip
@click.option("--faults", "list_faults", is_flag=True, is_eager=True, expose_value=False, callback=_list_faults,
              help="List the faults and end.")  # fmt: skip
@click.option("--faulty", type=click.IntRange(min=0), default=1, show_default=True, metavar="N",
              help="How many processes bear the faults: the first N started, 0 for all.")  # fmt: skip
@click.option("--standbys", cls=SettingOption, type=click.IntRange(0, 16), metavar="N",
              help="How many loaded processes stand by.  [STANDBYS]")  # fmt: skip
@click.option("--attempts", "job_attempts", cls=SettingOption, type=click.IntRange(1, 100), metavar="N",
              help="On how many processes a job is tried.  [JOB_ATTEMPTS]")  # fmt: skip
@click.option("--memory", "model_memory_mb", cls=SettingOption, type=click.IntRange(min=256), metavar="MIB",
              help="Address space that a process may use.  [MODEL_MEMORY_MB]")  # fmt: skip
@click.option("--timeout", "timeouts", multiple=True, callback=_timeouts, metavar="PHASE=SECONDS",
              help=f"Seconds without progress in a phase ({', '.join(PHASES[:-1])}), or in silence; may be given "
              "again.  [STARTING_TIMEOUT ...]")  # fmt: skip
@click.option("--deadline", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
              help="For each job, over all its attempts. Default: as in a cycle.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, logs to stderr.")
@click.option("-v", "--verbose", is_flag=True, help="Tell each step of progress and what the model prints, too.")
@click.pass_context
def command(
    ctx: click.Context, /, as_json: bool, verbose: bool, as_of: str | None, timeouts: dict[str, float], **options: Any
) -> None:
    """Run a model under supervision, and see its processes, phases and progress.

    With --fault its process hangs, falls silent, crashes, leaks memory and more, at a place of its real work, and you see
    what becomes of the job. Nothing is submitted and nothing is written; docs/supervision.md shows real runs.
    """
    from cli.signals import single_interrupt
    from cli.supervise_screen import TrialScreen
    from forecastd.clock import SystemClock
    from forecastd.inference.supervision_run import SupervisionPlan, run_supervision
    from forecastd.settings import load_settings

    ctx.with_resource(single_interrupt())
    if verbose:
        sys.excepthook = sys.__excepthook__
    clock, plan = SystemClock(), {name: options.pop(name) for name in ("jobs", "faults", "faulty", "deadline")}
    plan["candles_at"] = _candle_time(as_of, clock.now(), from_source=options["data_source"] is not None)
    settings = load_settings(**(ctx.obj or {}), **timeouts, **options)
    with TrialScreen(clock, quiet=as_json, verbose=verbose) as screen:
        trial = run_supervision(
            settings, SupervisionPlan(**plan), clock, observer=screen.on_event, on_start=screen.set_children
        )
    if as_json:
        click.echo(json.dumps(trial.as_json()))
    else:
        screen.result(trial)
    ctx.exit(trial.exit_code)


def _candle_time(as_of: str | None, now: float, *, from_source: bool) -> float | None:
    """When to take candles; None for the bundle's canary."""
    from cli.times import parse_time

    if as_of is not None and not from_source:
        raise click.UsageError("--as-of is a moment of the data: give --source, too.")
    return (parse_time(as_of) or now) if from_source else None
