"""`train`: train a model on the history of any source and write it as a verified bundle."""

from __future__ import annotations

from typing import Any

import click

from cli.options import PATH, POSITIVE_INT, TIME, setting_option
from cli.signals import STOP_SIGNALS, single_interrupt
from cli.training_options import run_training, training_options
from forecastd.settings import load_settings
from forecastd.training.market import MarketTrainingRequest, train_market
from models.training.config import TrainingConfig


@click.command(name="train")
@setting_option("--source")
@setting_option("--features")
@click.option(
    "--out", type=PATH, metavar="DIR", help="The directory of the bundle (default: below the state directory)."
)
@click.option("--start", type=TIME, metavar="ISO", help="Use candles from this time on.")
@click.option("--until", type=TIME, metavar="ISO", help="Use candles before this time only.")
@click.option("--hours", type=POSITIVE_INT, default=17_520, show_default=True,
              help="Without --start: hours of history.")  # fmt: skip
@training_options(TrainingConfig, layers_flag="--lstm-layers", rate_name="Learning rate")
@click.pass_context
def command(ctx: click.Context, /, as_json: bool, faults: str, **options: Any) -> None:
    """Train a model and write it as a verified bundle.

    Ctrl-C keeps the progress; the same command resumes.
    """
    interrupts = ctx.with_resource(single_interrupt(*STOP_SIGNALS))
    setting_options = {name: options.pop(name) for name in ("data_source", "features")}
    names = ("out", "start", "until", "hours", "finish", "force")
    request_options = {name: options.pop(name) for name in names}
    request = MarketTrainingRequest(config=TrainingConfig(**options), **request_options)
    settings = load_settings(**(ctx.obj or {}), **setting_options)
    run_training(
        ctx, interrupts, train_market, settings, request, faults=faults, as_json=as_json,
        next_steps=lambda path: f"forecastd model check {path}\nforecastd --once --model {path}",
    )  # fmt: skip
