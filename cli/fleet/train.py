"""`fleet train`: train a model on the history of a fleet and write it as a checked bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli.options import PATH, POSITIVE_INT, TIME, setting_option
from cli.signals import STOP_SIGNALS, single_interrupt
from cli.training_options import run_training, training_options
from forecastd.clock import SystemClock


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
@click.option(
    "--servers",
    type=POSITIVE_INT,
    default=100,
    show_default=True,
    help="Maximum number of servers; those with most data.",
)
@click.option(
    "--out", type=PATH, metavar="DIR", help="Directory of the bundle (default: `trained` in FLEET_MODELS_DIR)."
)
@click.option(
    "--encoder-length", type=POSITIVE_INT, default=288, show_default=True, help="Steps of history that the model uses."
)
@click.option(
    "--encoder-minimum",
    type=POSITIVE_INT,
    default=72,
    show_default=True,
    help="Minimum number of steps the model needs.",
)
@click.option("--horizon", type=POSITIVE_INT, default=96, show_default=True, help="Steps to forecast.")
@click.option("--hidden-size", type=POSITIVE_INT, default=32, show_default=True, help="Width of the network.")
@click.option(
    "--hidden-continuous-size",
    type=POSITIVE_INT,
    default=8,
    show_default=True,
    help="Width of the network for one metric.",
)
@click.option("--heads", "attention_heads", type=POSITIVE_INT, default=1, show_default=True, help="Attention heads.")
@click.option("--layers", "lstm_layers", type=POSITIVE_INT, default=1, show_default=True, help="LSTM layers.")
@click.option(
    "--scored-windows", type=POSITIVE_INT, default=512, show_default=True, help="Number of forecasts to score."
)
@click.option("--compared-windows", type=click.IntRange(min=0), default=48, show_default=True,
              help="Number of these that are compared with AutoETS, which is slow.")  # fmt: skip
@training_options(
    dropout=0.0,
    epochs=20,
    patience=20,
    batch_size=16,
    batches=100,
    learning_rate=5e-3,
    learning_rate_name="Highest learning rate",
)
@click.pass_context
def command(ctx: click.Context, /, as_json: bool, until: float | None, **options: Any) -> None:
    """Train a model for the fleet and write it as a checked bundle.

    It is trained on the history that `fleet serve` keeps, and compared with baselines on the newest part of it.
    Ctrl-C saves the progress; the same command resumes.
    """
    interrupts = ctx.with_resource(single_interrupt(*STOP_SIGNALS))
    # Imported after the signal handlers are installed, because these imports take a while.
    from cli.fleet.score_tables import score_rows
    from forecastd.fleet.training import FleetTrainingRequest, train_fleet
    from forecastd.inference.job_runner import open_job_runner
    from forecastd.settings import load_settings
    from models.fleet.config import FleetTrainingConfig

    setting_values = {name: value for name in ("state_dir", "fleet_step") if (value := options.pop(name)) is not None}
    names = ("out", "history", "simulate", "data", "servers", "finish", "force")
    faults = options.pop("faults")
    request_options = {name: options.pop(name) for name in names}
    request = FleetTrainingRequest(FleetTrainingConfig(**options), until=until, **request_options)
    settings = load_settings(**{**(ctx.obj or {}), **setting_values})
    clock = SystemClock()
    jobs = open_job_runner(settings, clock, faults=faults)
    screen, trained = run_training(
        ctx, interrupts, lambda listener: train_fleet(settings, request, clock, listener, jobs), quiet=as_json
    )
    manifest, path = trained.manifest, trained.path
    scores = score_rows("test", manifest.scores.get("test"))
    screen.show_result(manifest.to_json(), scores, path, manifest.sha256, _next_steps(path, trained.models))


def _next_steps(path: Path, models: Path) -> str:
    copy = "" if path.absolute().parent == models.absolute() else f"copy it into {models}, and "
    return f"""forecastd model check {path}
forecastd fleet serve --model {path}
or, while a fleet is running: {copy}POST /admin/reload-model {{"name": "{path.name}"}}"""
