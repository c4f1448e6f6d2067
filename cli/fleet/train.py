"""`fleet train`: train a model on the history of a fleet and write it as a checked bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli.options import PATH, POSITIVE_INT, TIME, setting_option
from cli.signals import STOP_SIGNALS, single_interrupt
from cli.training_options import number_option, run_training, training_options
from forecastd.fleet.training import FleetTrainingRequest, train_fleet
from forecastd.settings import load_settings
from models.fleet.config import FleetTrainingConfig


@click.command(name="train")
@setting_option("--state-dir", text="State directory of the `fleet serve` that keeps the history.")
@setting_option("--step", "FLEET_STEP", "Seconds per tick.", type=click.IntRange(1, 3600))
@click.option("--history", type=click.FloatRange(0, min_open=True), metavar="HOURS",
              help="Hours of the fleet's own history to train on (default: all).")  # fmt: skip
@click.option(
    "--simulate", metavar="SERVERSxHOURS[:SCENARIO]", help="Train on simulated servers instead, such as 20x24."
)
@click.option(
    "--data", type=PATH, metavar="CSV", help="Train on a table instead: columns series, timestamp, and the metrics."
)
@click.option("--until", type=TIME, metavar="ISO", help="Train only on data before this time.")
@click.option("--servers", type=POSITIVE_INT, default=100, show_default=True,
              help="Maximum number of servers; those with most data.")  # fmt: skip
@click.option(
    "--out", type=PATH, metavar="DIR", help="Directory of the bundle (default: `trained` in FLEET_MODELS_DIR)."
)
@number_option(FleetTrainingConfig, "--encoder-minimum", "Minimum number of steps the model needs.")
@number_option(FleetTrainingConfig, "--hidden-continuous-size", "Width of the network for one metric.")
@number_option(FleetTrainingConfig, "--scored-windows", "Number of forecasts to score.")
@number_option(
    FleetTrainingConfig, "--compared-windows", "Number of these that are compared with AutoETS, which is slow.", low=0
)
@training_options(FleetTrainingConfig, layers_flag="--layers", rate_name="Highest learning rate")
@click.pass_context
def command(ctx: click.Context, /, as_json: bool, faults: str, **options: Any) -> None:
    """Train a model for the fleet and write it as a checked bundle.

    It is trained on the history that `fleet serve` keeps, and compared with baselines on the newest part of it.
    Ctrl-C saves the progress; the same command resumes.
    """
    interrupts = ctx.with_resource(single_interrupt(*STOP_SIGNALS))
    setting_values = {name: value for name in ("state_dir", "fleet_step") if (value := options.pop(name)) is not None}
    names = ("out", "history", "simulate", "data", "until", "servers", "finish", "force")
    request_options = {name: options.pop(name) for name in names}
    request = FleetTrainingRequest(config=FleetTrainingConfig(**options), **request_options)
    settings = load_settings(**{**(ctx.obj or {}), **setting_values})
    models = settings.fleet_models_path

    def next_steps(path: Path) -> str:
        copy = "" if path.absolute().parent == models.absolute() else f"copy it into {models}, and "
        return f"""forecastd model check {path}
forecastd fleet serve --model {path}
or, while a fleet is running: {copy}POST /admin/reload-model {{"name": "{path.name}"}}"""

    run_training(ctx, interrupts, train_fleet, settings, request, faults=faults, as_json=as_json, next_steps=next_steps)
