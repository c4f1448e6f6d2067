"""What the training commands share: options, and the run with its screen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from cli.options import POSITIVE_INT, join_faults, json_option
from cli.signals import InterruptCounter
from cli.training_screen import TrainingScreen
from forecastd.errors import ExitCode
from forecastd.training.run import TrainingListener
from models.errors import TrainingInterrupted

T = TypeVar("T")
CommandFunction = Callable[..., None]


def training_options(
    *,
    dropout: float,
    epochs: int,
    patience: int,
    batch_size: int,
    batches: int,
    learning_rate: float,
    learning_rate_name: str,
) -> Callable[[CommandFunction], CommandFunction]:
    """The options of every training run. The arguments are defaults, and `learning_rate_name` begins a help text."""
    number: dict[str, Any] = {"type": POSITIVE_INT, "show_default": True}
    options = [
        click.option("--dropout", type=float, default=dropout, show_default=True, help="Dropout rate."),
        click.option("--levels", default="0.02,0.1,0.25,0.5,0.75,0.9,0.98", show_default=True, callback=_parse_levels,
                     help="Quantile levels, 0.5 included."),
        click.option("--epochs", default=epochs, help="Maximum number of epochs.", **number),
        click.option("--patience", default=patience, help="Stop after N epochs without improvement.", **number),
        click.option("--batch-size", default=batch_size, help="Windows per batch.", **number),
        click.option("--batches-per-epoch", default=batches, help="Maximum number of batches per epoch.", **number),
        click.option("--learning-rate", type=float, default=learning_rate, show_default=True,
                     help=f"{learning_rate_name} of Adam."),
        click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True,
                     help="Seed of all random numbers."),
        click.option("--accelerator", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", show_default=True),
        click.option("--finish", is_flag=True, help="Stop training: write the bundle from the best checkpoint so far."),
        click.option("--force", is_flag=True,
                     help="Replace what is in DIR, and discard an interrupted training run with other options."),
        click.option("--fault", "faults", multiple=True, callback=join_faults, metavar="KIND[:VALUE][@PLACE]",
                     help="Inject a fault into the first training process; may be repeated."),
        json_option("The manifest as one JSON object on stdout."),
    ]  # fmt: skip

    def add(command: CommandFunction) -> CommandFunction:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _parse_levels(_: click.Context, __: click.Parameter, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter("must be numbers separated by commas.") from None


def run_training(
    ctx: click.Context, interrupts: InterruptCounter, train: Callable[[TrainingListener], T], *, quiet: bool
) -> tuple[TrainingScreen, T]:
    """Train with a screen; returns the closed screen and the result. Exits when the training is interrupted."""
    with TrainingScreen(quiet=quiet, verbose=bool(ctx.find_root().params.get("verbose"))) as screen:
        try:
            trained = train(
                TrainingListener(screen.show_data, screen.update, screen.show_warning, interrupts.is_repeated)
            )
        except TrainingInterrupted as interrupted:
            screen.close()
            click.echo(str(interrupted), err=True)
            ctx.exit(ExitCode.INTERRUPTED)
    return screen, trained
