"""`train`: train a model on any source's history and write it as a checked bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli.options import SettingOption, faults_of

INTERRUPTED = 130
PATH = click.Path(path_type=Path)
POSITIVE = click.IntRange(min=1)


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
@click.option("--dropout", type=float, default=0.1, show_default=True, help="Dropout rate.")
@click.option("--levels", default="0.02,0.1,0.25,0.5,0.75,0.9,0.98", show_default=True, help="Quantiles, 0.5 included.")
@click.option("--epochs", type=POSITIVE, default=30, show_default=True, help="Epochs at most.")
@click.option("--patience", type=POSITIVE, default=5, show_default=True, help="Stop after so many without progress.")
@click.option("--batch-size", type=POSITIVE, default=64, show_default=True, help="Windows a batch.")
@click.option("--batches-per-epoch", type=POSITIVE, default=50, show_default=True, help="Batches an epoch at most.")
@click.option("--learning-rate", type=float, default=1e-3, show_default=True, help="Learning rate of Adam.")
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Seed of everything random."
)
@click.option("--accelerator", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", show_default=True)
@click.option("--finish", is_flag=True, help="Train no further: write the bundle from the best checkpoint so far.")
@click.option(
    "--force", is_flag=True, help="Replace what is at DIR, throw away an interrupted training with other options."
)
@click.option("--fault", "faults", multiple=True, callback=faults_of, metavar="KIND[:VALUE][@PLACE]",
              help="For a trial: a fault for the training's first process to bring on itself.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The manifest as one JSON object on stdout.")
@click.pass_context
def command(
    ctx: click.Context, /, as_json: bool, levels: str, start: str | None, until: str | None, **more: Any
) -> None:
    """Train a model and write it as a checked bundle. Ctrl-C keeps what was reached; the same command goes on."""
    from cli.interrupt import STOPS, one_interrupt

    interrupts = ctx.with_resource(one_interrupt(*STOPS))
    from cli.progress import TrainingScreen, show_result
    from cli.times import reference_time
    from forecastd.clock import SystemClock
    from forecastd.settings import load_settings
    from forecastd.training import Request, train_model
    from forecastd.trainrun import Listener
    from models.config import TrainingConfig
    from models.errors import TrainingInterrupted

    given = {name: more.pop(name) for name in ("data_source", "features")}
    place = {name: more.pop(name) for name in ("out", "hours", "finish", "force", "faults")}
    config = TrainingConfig(levels=levels_of(levels), **more)
    request = Request(config, start=reference_time(start, "--start"), until=reference_time(until, "--until"), **place)
    settings = load_settings(**(ctx.obj or {}), **given)
    with TrainingScreen(quiet=as_json, verbose=bool(ctx.find_root().params.get("verbose"))) as screen:
        try:
            listener = Listener(screen.tell, screen.update, screen.remark, interrupts.again)
            trained = train_model(settings, request, SystemClock(), listener)
        except TrainingInterrupted as interrupted:
            screen.close()
            click.echo(str(interrupted), err=True)
            ctx.exit(INTERRUPTED)
    show_result(screen, trained)


def levels_of(text: str) -> tuple[float, ...]:
    """Levels as they are written: numbers with commas between."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter("must be numbers with commas between.", param_hint="--levels") from None
