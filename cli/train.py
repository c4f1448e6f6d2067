"""`train`: train a model on any source's history and write it as a checked bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli.options import SettingOption
from cli.training_options import POSITIVE_INT, run_training, training_options

PATH_TYPE = click.Path(path_type=Path)


@click.command(name="train")
@click.option(
    "--source", "data_source", cls=SettingOption, metavar="SPEC", help="Where the candles come from.  [DATA_SOURCE]"
)
@click.option(
    "--features", cls=SettingOption, type=PATH_TYPE, metavar="FILE", help="The list of feature names.  [FEATURES]"
)
@click.option(
    "--out", type=PATH_TYPE, metavar="DIR", help="Where the bundle goes (default: below the state directory)."
)
@click.option("--start", metavar="ISO", help="Train on candles from this time on.")
@click.option("--until", metavar="ISO", help="Train on candles before this time only.")
@click.option(
    "--hours", type=POSITIVE_INT, default=17_520, show_default=True, help="Without --start: how much history."
)
@click.option("--encoder-length", type=POSITIVE_INT, default=336, show_default=True, help="Steps the model looks back.")
@click.option("--horizon", type=POSITIVE_INT, default=168, show_default=True, help="Steps it forecasts.")
@click.option("--hidden-size", type=POSITIVE_INT, default=16, show_default=True, help="Width of the network.")
@click.option("--heads", "attention_heads", type=POSITIVE_INT, default=4, show_default=True, help="Attention heads.")
@click.option("--lstm-layers", type=POSITIVE_INT, default=1, show_default=True, help="LSTM layers.")
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
def command(ctx: click.Context, /, as_json: bool, start: str | None, until: str | None, **options: Any) -> None:
    """Train a model and write it as a checked bundle. Ctrl-C keeps what was reached; the same command goes on."""
    from cli.signals import STOP_SIGNALS, single_interrupt

    interrupts = ctx.with_resource(single_interrupt(*STOP_SIGNALS))
    from cli.manifest import score_rows
    from cli.times import parse_time
    from forecastd.clock import SystemClock
    from forecastd.settings import load_settings
    from forecastd.training.market import TrainingRequest, train_model
    from models.market.manifest import to_json
    from models.training.config import TrainingConfig

    setting_options = {name: options.pop(name) for name in ("data_source", "features")}
    request_options = {name: options.pop(name) for name in ("out", "hours", "finish", "force", "faults")}
    config = TrainingConfig(**options)
    request = TrainingRequest(
        config, start=parse_time(start, "--start"), until=parse_time(until, "--until"), **request_options
    )
    settings = load_settings(**(ctx.obj or {}), **setting_options)
    clock = SystemClock()
    screen, trained = run_training(
        ctx, interrupts, lambda listener: train_model(settings, request, clock, listener), quiet=as_json
    )
    manifest, path = trained.manifest, trained.path
    next_commands = f"forecastd model check {path}\nforecastd --once --model {path}"
    screen.show_result(
        to_json(manifest), score_rows("test", manifest.metrics["test"]), path, manifest.sha256, next_commands
    )
