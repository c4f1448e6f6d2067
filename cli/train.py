"""`train`: train a model on any source's history and write it as a checked bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli.options import SettingOption
from cli.trainoptions import POSITIVE, run_training, training_options

PATH = click.Path(path_type=Path)


@click.command(name="train")
@click.option(
    "--source", "data_source", cls=SettingOption, metavar="SPEC", help="Where the candles come from.  [DATA_SOURCE]"
)
@click.option("--features", cls=SettingOption, type=PATH, metavar="FILE", help="The list of feature names.  [FEATURES]")
@click.option("--out", type=PATH, metavar="DIR", help="Where the bundle goes (default: below the state directory).")
@click.option("--start", metavar="ISO", help="Train on candles from this time on.")
@click.option("--until", metavar="ISO", help="Train on candles before this time only.")
@click.option("--hours", type=POSITIVE, default=17_520, show_default=True, help="Without --start: how much history.")
@click.option("--encoder-length", type=POSITIVE, default=336, show_default=True, help="Steps the model looks back.")
@click.option("--horizon", type=POSITIVE, default=168, show_default=True, help="Steps it forecasts.")
@click.option("--hidden-size", type=POSITIVE, default=16, show_default=True, help="Width of the network.")
@click.option("--heads", "attention_heads", type=POSITIVE, default=4, show_default=True, help="Attention heads.")
@click.option("--lstm-layers", type=POSITIVE, default=1, show_default=True, help="LSTM layers.")
@training_options(dropout=0.1, epochs=30, patience=5, batch_size=64, batches=50, rate=1e-3, rates="Learning rate")
@click.pass_context
def command(ctx: click.Context, /, as_json: bool, start: str | None, until: str | None, **more: Any) -> None:
    """Train a model and write it as a checked bundle. Ctrl-C keeps what was reached; the same command goes on."""
    from cli.interrupt import STOPS, one_interrupt

    interrupts = ctx.with_resource(one_interrupt(*STOPS))
    from cli.manifest import score_rows
    from cli.times import reference_time
    from forecastd.clock import SystemClock
    from forecastd.settings import load_settings
    from forecastd.training import Request, train_model
    from models.config import TrainingConfig
    from models.manifest import to_json

    given = {name: more.pop(name) for name in ("data_source", "features")}
    place = {name: more.pop(name) for name in ("out", "hours", "finish", "force", "faults")}
    config = TrainingConfig(**more)
    request = Request(config, start=reference_time(start, "--start"), until=reference_time(until, "--until"), **place)
    settings = load_settings(**(ctx.obj or {}), **given)
    clock = SystemClock()
    screen, trained = run_training(
        ctx, interrupts, lambda listener: train_model(settings, request, clock, listener), quiet=as_json
    )
    manifest, path = trained.manifest, trained.path
    after = f"forecastd model check {path}\nforecastd --once --model {path}"
    screen.show(to_json(manifest), score_rows("test", manifest.metrics["test"]), path, manifest.sha256, after)
