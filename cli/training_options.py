"""What the training commands share: options, and the run with its screen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cli.manifest import score_tables
from cli.options import join_faults, json_option
from cli.signals import InterruptCounter
from cli.training_screen import TrainingScreen
from forecastd.clock import Clock, SystemClock
from forecastd.errors import ExitCode
from forecastd.inference.job_runner import open_job_runner
from forecastd.runtime.jobs import JobRunner
from forecastd.settings import Settings
from forecastd.training.run import TrainedBundle, TrainingListener, TrainingRequest
from models.errors import TrainingInterrupted
from models.training.config import TrainingConfig

CommandFunction = Callable[..., None]
Decorator = Callable[[CommandFunction], CommandFunction]
Train = Callable[[Settings, Any, Clock, TrainingListener, JobRunner], TrainedBundle]


def number_option(config: type[TrainingConfig], flag: str, text: str, name: str = "", low: int = 1) -> Decorator:
    """An option for an integer of the training, with the default of `config`."""
    name = name or flag.removeprefix("--").replace("-", "_")
    default = getattr(config, name)
    return click.option(flag, name, type=click.IntRange(min=low), default=default, show_default=True, help=text)


def training_options(config: type[TrainingConfig], *, layers_flag: str, rate_name: str) -> Decorator:
    """The options of every training run, with the defaults of `config`. `rate_name` begins the help of the learning rate."""
    options: list[Decorator] = [
        number_option(config, "--encoder-length", "Steps of history that the model uses."),
        number_option(config, "--horizon", "Steps that the model forecasts."),
        number_option(config, "--hidden-size", "Width of the network."),
        number_option(config, "--heads", "Number of attention heads.", "attention_heads"),
        number_option(config, layers_flag, "Number of LSTM layers.", "lstm_layers"),
        click.option("--dropout", type=float, default=config.dropout, show_default=True, help="Dropout rate."),
        click.option("--levels", default=",".join(f"{level:g}" for level in config.levels), show_default=True,
                     callback=_parse_levels, help="Quantile levels, 0.5 included."),
        number_option(config, "--epochs", "Maximum number of epochs."),
        number_option(config, "--patience", "Stop after N epochs without improvement."),
        number_option(config, "--batch-size", "Windows per batch."),
        number_option(config, "--batches-per-epoch", "Maximum number of batches per epoch."),
        click.option("--learning-rate", type=float, default=config.learning_rate, show_default=True,
                     help=f"{rate_name} of Adam."),
        click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=config.seed, show_default=True,
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
    ctx: click.Context,
    interrupts: InterruptCounter,
    train: Train,
    settings: Settings,
    request: TrainingRequest,
    *,
    faults: str,
    as_json: bool,
    next_steps: Callable[[Path], str],
) -> None:
    """Train with a screen, then print the manifest (JSON), or the scores and the next steps. Exits when interrupted."""
    clock = SystemClock()
    jobs = open_job_runner(settings, clock, faults=faults)
    with TrainingScreen(quiet=as_json, verbose=bool(ctx.find_root().params.get("verbose"))) as screen:
        try:
            listener = TrainingListener(screen.show_data, screen.update, screen.show_warning, interrupts.is_repeated)
            trained = train(settings, request, clock, listener, jobs)
        except TrainingInterrupted as interrupted:
            screen.close()
            click.echo(str(interrupted), err=True)
            ctx.exit(ExitCode.INTERRUPTED)
    manifest, path = trained.manifest, trained.path
    screen.show_result(manifest.to_json(), score_tables(manifest, "test"), path, manifest.sha256, next_steps(path))
