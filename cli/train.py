"""`train`: train a model on the history of any source and write it as a verified bundle."""

from __future__ import annotations

from typing import Any

import click

from cli.manifest import score_rows
from cli.options import PATH, POSITIVE_INT, TIME, setting_option
from cli.signals import STOP_SIGNALS, single_interrupt
from cli.training_options import run_training, training_options
from forecastd.clock import SystemClock
from forecastd.inference.job_runner import open_job_runner
from forecastd.settings import load_settings
from forecastd.training.market import TrainingRequest, train_model
from models.training.config import TrainingConfig


@click.command(name="train")
@setting_option("--source")
@setting_option("--features")
@click.option(
    "--out", type=PATH, metavar="DIR", help="The directory of the bundle (default: below the state directory)."
)
@click.option("--start", type=TIME, metavar="ISO", help="Use candles from this time on.")
@click.option("--until", type=TIME, metavar="ISO", help="Use candles before this time only.")
@click.option(
    "--hours", type=POSITIVE_INT, default=17_520, show_default=True, help="Without --start: hours of history."
)
@click.option(
    "--encoder-length", type=POSITIVE_INT, default=336, show_default=True, help="Steps of history that the model gets."
)
@click.option("--horizon", type=POSITIVE_INT, default=168, show_default=True, help="Steps that the model forecasts.")
@click.option("--hidden-size", type=POSITIVE_INT, default=16, show_default=True, help="Hidden size of the network.")
@click.option(
    "--heads", "attention_heads", type=POSITIVE_INT, default=4, show_default=True, help="Number of attention heads."
)
@click.option("--lstm-layers", type=POSITIVE_INT, default=1, show_default=True, help="Number of LSTM layers.")
@training_options(
    dropout=0.1,
    epochs=30,
    patience=5,
    batch_size=64,
    batches=50,
    learning_rate=1e-3,
    learning_rate_name="Learning rate",
)
@click.pass_context
def command(ctx: click.Context, /, as_json: bool, start: float | None, until: float | None, **options: Any) -> None:
    """Train a model and write it as a verified bundle.

    Ctrl-C keeps the progress; the same command resumes.
    """
    interrupts = ctx.with_resource(single_interrupt(*STOP_SIGNALS))
    setting_options = {name: options.pop(name) for name in ("data_source", "features")}
    request_options = {name: options.pop(name) for name in ("out", "hours", "finish", "force")}
    faults = options.pop("faults")
    config = TrainingConfig(**options)
    request = TrainingRequest(config, start=start, until=until, **request_options)
    settings = load_settings(**(ctx.obj or {}), **setting_options)
    clock = SystemClock()
    jobs = open_job_runner(settings, clock, faults=faults)
    screen, trained = run_training(
        ctx, interrupts, lambda listener: train_model(settings, request, clock, listener, jobs), quiet=as_json
    )
    manifest, path = trained.manifest, trained.path
    next_commands = f"forecastd model check {path}\nforecastd --once --model {path}"
    screen.show_result(
        manifest.to_json(), score_rows("test", manifest.scores["test"]), path, manifest.sha256, next_commands
    )
