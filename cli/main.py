"""The root command: a forecast cycle by its options, everything else by its sub-commands.

Sub-commands and everything they need are imported when they are called, so that `--help` costs Click and nothing else.
"""

from __future__ import annotations

import errno
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import click

from forecastd import __version__
from forecastd.errors import ForecastdError
from models.errors import ModelError

COMMANDS = {
    "completion": ("cli.completion", "Print the shell completion script."),
    "data": ("cli.data", "Fetch, inspect and export candles; serve a fake Tiingo."),
    "doctor": ("cli.doctor", "Check everything a worker stands on, with cause and fix."),
    "ledger": ("cli.ledger", "List, export and verify what was submitted."),
    "localnet": ("cli.localnet", "Run a local Allora node in the foreground."),
    "model": ("cli.model", "Check and describe model bundles."),
    "train": ("cli.train", "Train a model and write it as a checked bundle."),
}
INTERRUPTED = 130
EPILOG = """\b
Exit codes:
  0  submitted, already submitted, or dry run done
  1  something unforeseen
  2  wrong usage
  3  no submission window is open
  4  skipped by a guard or bad data
  5  a person is needed (configuration, model, wallet)
  6  missed, or failed to submit
"""
F = TypeVar("F", bound=Callable[..., Any])


class LazyGroup(click.Group):
    """A group that knows its commands' names and one-line helps, and imports one only to run or describe it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


def setting(flag: str, variable: str, text: str, **more: Any) -> Callable[[F], F]:
    """An option that overrides one of the settings; its help names the environment variable."""
    return click.option(flag, variable.lower(), help=f"{text}  [{variable}]", **more)


@click.group(
    cls=LazyGroup,
    name="forecastd",
    invoke_without_command=True,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--once", is_flag=True, help="Run one forecast cycle: serve the newest open epoch, then end.")
@setting("--topic-id", "TOPIC_ID", "The topic to submit to.", type=click.IntRange(min=1), metavar="ID")
@setting("--network", "ALLORA_NETWORK", "The network.", type=click.Choice(["local", "testnet", "mainnet"]))
@setting("--source", "DATA_SOURCE", "sample, tiingo, exchange:NAME[:SYMBOL] or file:PATH.", metavar="SPEC")
@setting("--model", "MODEL", "The model bundle to run.", type=click.Path(path_type=Path), metavar="DIR")
@setting("--features", "FEATURES", "The list of feature names.", type=click.Path(path_type=Path), metavar="FILE")
@setting("--state-dir", "STATE_DIR", "Where state is kept.", type=click.Path(path_type=Path), metavar="DIR")
@setting("--log-dir", "LOG_DIR", "Where the log is written.", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--as-of", metavar="ISO", help="Replay this moment (ISO 8601, UTC); local network only.")
@click.option("--register", is_flag=True, help="Register the worker for the topic when it is not, paying the fee.")
@setting(
    "--topics", "TOPICS_FILE", "Serve the topics of this topics.toml.", type=click.Path(path_type=Path), metavar="FILE"
)
@click.option("--until-closed", is_flag=True, help="Keep trying until the submission window closes.")
@click.option("--dry-run", is_flag=True, help="Do everything but the send, and show what would be signed.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, logs to stderr.")
@click.option("-v", "--verbose", is_flag=True, help="Tell more on stderr, tracebacks included.")
@click.version_option(__version__, prog_name="forecastd", message="%(prog)s %(version)s")
@click.pass_context
def command(
    ctx: click.Context, /, once: bool, verbose: bool, state_dir: Path | None, log_dir: Path | None, **more: Any
) -> None:
    """Runs forecasting models in production: one checked, signed forecast per epoch, submitted exactly once."""
    ctx.obj = {"state_dir": state_dir, "log_dir": log_dir}
    if verbose:
        sys.excepthook = sys.__excepthook__
    if ctx.invoked_subcommand is not None:
        _refuse_cycle_options(ctx, once=once, **more)
        return
    if not once:
        raise click.UsageError("Nothing to do: give --once, or a command.", ctx)
    from cli.cycle import run_cycle_command

    ctx.exit(run_cycle_command(verbose=verbose, **ctx.obj, **more))


def _refuse_cycle_options(ctx: click.Context, **given: Any) -> None:
    """Options of a cycle before a sub-command would be silently ignored; say so instead."""
    used = [name for name, value in given.items() if value not in (None, False)]
    if used:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in used)
        raise click.UsageError(f"{flags} belong to a cycle (--once), not to `{ctx.invoked_subcommand}`.", ctx)


def _one_line(kind: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
    print(f"Unforeseen error: {kind.__name__}: {error}. Run again with -v for the traceback.", file=sys.stderr)  # noqa: T201


def run() -> None:
    """The entry point: runs the command and ends the process with the documented exit code."""
    sys.excepthook = _one_line  # `-v` puts the traceback back
    sys.exit(main(sys.argv[1:]))


def main(arguments: list[str]) -> int:
    """Run the command with these arguments and give its exit code. Errors that were foreseen become one line on stderr."""
    try:
        return int(command.main(arguments, prog_name="forecastd", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return INTERRUPTED
    except ForecastdError as error:
        click.echo(f"Error: {error}", err=True)
        return error.exit_code
    except ModelError as error:
        click.echo(f"Error: {error}", err=True)
        return 5
    except OSError as error:
        if error.errno != errno.EPIPE:
            raise
        return 1
