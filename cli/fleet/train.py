"""`fleet train`: train a model on the fleet's own history and write it as a checked bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli.main import setting_option
from cli.training_options import POSITIVE_INT, run_training, training_options

PATH = click.Path(path_type=Path)


@click.command(name="train")
@setting_option("--state-dir", "STATE_DIR", "Of the `fleet serve` that collects the history.", type=PATH, metavar="DIR")
@setting_option("--step", "FLEET_STEP", "Seconds a tick.", type=click.IntRange(1, 3600))
@click.option("--history", type=click.FloatRange(0, min_open=True), metavar="HOURS",
              help="Train on the fleet's own history, so many hours of it (default: all that is kept).")  # fmt: skip
@click.option("--simulate", metavar="SERVERSxHOURS[:SCENARIO]", help="Train on simulated servers instead: 20x24, say.")
@click.option("--data", type=PATH, metavar="CSV", help="Train on a table instead: series, timestamp, and the metrics.")
@click.option("--until", metavar="ISO", help="Train on what is before this time only.")
@click.option(
    "--servers", type=POSITIVE_INT, default=100, show_default=True, help="At most so many, those with most data."
)
@click.option("--out", type=PATH, metavar="DIR", help="Where the bundle goes (default: `trained` in FLEET_MODELS_DIR).")
@click.option("--encoder-length", type=POSITIVE_INT, default=288, show_default=True, help="Steps the model looks back.")
@click.option("--encoder-minimum", type=POSITIVE_INT, default=72, show_default=True, help="With how few it is of use.")
@click.option("--horizon", type=POSITIVE_INT, default=96, show_default=True, help="Steps it forecasts.")
@click.option("--hidden-size", type=POSITIVE_INT, default=32, show_default=True, help="Width of the network.")
@click.option(
    "--hidden-continuous-size", type=POSITIVE_INT, default=8, show_default=True, help="Width of a metric in it."
)
@click.option("--heads", "attention_heads", type=POSITIVE_INT, default=1, show_default=True, help="Attention heads.")
@click.option("--layers", "lstm_layers", type=POSITIVE_INT, default=1, show_default=True, help="LSTM layers.")
@click.option("--scored-windows", type=POSITIVE_INT, default=512, show_default=True, help="Forecasts that are scored.")
@click.option("--compared-windows", type=click.IntRange(min=0), default=48, show_default=True,
              help="Those of them that AutoETS, which is slow, makes too.")  # fmt: skip
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
def command(ctx: click.Context, /, as_json: bool, until: str | None, **options: Any) -> None:
    """Train a model for the fleet, and write it as a checked bundle. Ctrl-C keeps what was reached; the same command goes on.

    It learns from the history that `fleet serve` keeps, and is compared with baselines on the newest of it.
    """
    from cli.signals import STOP_SIGNALS, single_interrupt

    interrupts = ctx.with_resource(single_interrupt(*STOP_SIGNALS))
    from cli.fleet.score_tables import show_result
    from cli.times import parse_time
    from forecastd.clock import SystemClock
    from forecastd.fleet.training import FleetTrainingRequest, train_fleet
    from forecastd.settings import load_settings
    from models.fleet.config import FleetTrainingConfig

    setting_values = {name: value for name in ("state_dir", "fleet_step") if (value := options.pop(name)) is not None}
    names = ("out", "history", "simulate", "data", "servers", "finish", "force", "faults")
    request_options = {name: options.pop(name) for name in names}
    request = FleetTrainingRequest(
        FleetTrainingConfig(**options), until=parse_time(until, "--until"), **request_options
    )
    settings = load_settings(**{**(ctx.obj or {}), **setting_values})
    clock = SystemClock()
    screen, trained = run_training(
        ctx, interrupts, lambda listener: train_fleet(settings, request, clock, listener), quiet=as_json
    )
    show_result(screen, trained)
