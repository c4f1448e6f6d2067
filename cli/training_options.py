"""What the commands that train have in common: how a fit is told to go, and how its end is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.options import join_faults

if TYPE_CHECKING:
    from cli.signals import InterruptCounter
    from cli.training_screen import TrainingScreen
    from forecastd.training.run import TrainingListener

EXIT_INTERRUPTED = 130
POSITIVE_INT = click.IntRange(min=1)
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
    """The options of every training, with a kind's own defaults; `rates`: what its learning rate is."""
    number: dict[str, Any] = {"type": POSITIVE_INT, "show_default": True}
    options = [
        click.option("--dropout", type=float, default=dropout, show_default=True, help="Dropout rate."),
        click.option("--levels", default="0.02,0.1,0.25,0.5,0.75,0.9,0.98", show_default=True, callback=_levels,
                     help="Quantiles, 0.5 included."),
        click.option("--epochs", default=epochs, help="Epochs at most.", **number),
        click.option("--patience", default=patience, help="Stop after so many without progress.", **number),
        click.option("--batch-size", default=batch_size, help="Windows a batch.", **number),
        click.option("--batches-per-epoch", default=batches, help="Batches an epoch at most.", **number),
        click.option("--learning-rate", type=float, default=learning_rate, show_default=True, help=f"{learning_rate_name} of Adam."),
        click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True,
                     help="Seed of everything random."),
        click.option("--accelerator", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", show_default=True),
        click.option("--finish", is_flag=True, help="Train no further: write the bundle from the best checkpoint so far."),
        click.option("--force", is_flag=True,
                     help="Replace what is at DIR, throw away an interrupted training with other options."),
        click.option("--fault", "faults", multiple=True, callback=join_faults, metavar="KIND[:VALUE][@PLACE]",
                     help="For a trial: a fault for the training's first process to bring on itself."),
        click.option("--json", "as_json", is_flag=True, help="The manifest as one JSON object on stdout."),
    ]  # fmt: skip

    def add(command: CommandFunction) -> CommandFunction:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _levels(_: click.Context, __: click.Parameter, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter("must be numbers with commas between.") from None


def run_training(
    ctx: click.Context, interrupts: InterruptCounter, train: Callable[[TrainingListener], T], *, quiet: bool
) -> tuple[TrainingScreen, T]:
    """Show a training that goes on; gives the closed screen and what was trained. Ends the command when it is interrupted."""
    from cli.training_screen import TrainingScreen
    from forecastd.training.run import TrainingListener
    from models.errors import TrainingInterrupted

    with TrainingScreen(quiet=quiet, verbose=bool(ctx.find_root().params.get("verbose"))) as screen:
        try:
            trained = train(
                TrainingListener(screen.show_data, screen.update, screen.show_warning, interrupts.is_repeated)
            )
        except TrainingInterrupted as interrupted:
            screen.close()
            click.echo(str(interrupted), err=True)
            ctx.exit(EXIT_INTERRUPTED)
    return screen, trained
