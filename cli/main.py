"""The root command: a forecast cycle by its options, everything else by its sub-commands.

Invariant: the module of a sub-command and what it needs are imported only when it is called, so `--help` imports little more
than Click.
"""

from __future__ import annotations

import errno
import json
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import click

from cli.lazy import LazyGroup
from cli.options import POSITIVE_INT, TIME, json_option, setting_option
from cli.output import install_output
from forecastd import __version__
from forecastd.errors import ExitCode, ForecastdError
from forecastd.logs import configure_console, redacted
from models.errors import ModelError

COMMANDS = {
    "completion": ("cli.completion", "Print the shell completion script."),
    "data": ("cli.data", "Fetch, inspect and export candles; serve a fake Tiingo."),
    "doctor": ("cli.doctor", "Check the wallet, network, data and model; explain each problem and its fix."),
    "fleet": ("cli.fleet", "Forecast a fleet of servers over HTTP."),
    "ledger": ("cli.ledger", "List, export and verify submissions."),
    "localnet": ("cli.localnet", "Run a local Allora node in the foreground."),
    "model": ("cli.model", "Check and describe model bundles."),
    "service": ("cli.service", "Install the daemon or the fleet under systemd or supervisord."),
    "status": ("cli.status", "Show the state of the daemon, once or live (--watch)."),
    "supervise": ("cli.supervise", "Run a model under supervision, with or without injected faults."),
    "train": ("cli.train", "Train a model and write it as a verified bundle."),
}
ONCE_OPTIONS = ("as_of", "dry_run", "until_closed", "as_json")
DAEMON_OPTIONS = ("submission_deadline", "submission_interval", "health_port")
EPILOG = """\b
Exit codes:
  0  submitted, already submitted, or dry run done
  1  unexpected error
  2  wrong usage
  3  no submission window is open
  4  skipped by a guard or bad data
  5  a person must act (configuration, model, wallet)
  6  missed, or failed to submit
"""


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    name="forecastd",
    invoke_without_command=True,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--once", is_flag=True, help="Run one forecast cycle: serve the newest open epoch, then exit.")
@click.option("--continuous", is_flag=True, help="Serve every epoch in the foreground with a live view, until Ctrl-C.")
@click.option("--daemon", is_flag=True, help="Serve every epoch until the deadline or a signal, for a service manager.")
@setting_option("--topic-id", text="The topic to submit to.")
@setting_option("--network")
@setting_option("--source", text="sample, tiingo, exchange:NAME[:SYMBOL] or file:PATH.")
@setting_option("--model", text="The model bundle to run.")
@setting_option("--features")
@setting_option("--state-dir")
@setting_option("--log-dir")
@click.option("--as-of", type=TIME, metavar="ISO", help="Replay this time (ISO 8601, UTC); local network only.")
@click.option("--register", is_flag=True, help="Register the worker for the topic if needed, and pay the fee.")
@setting_option("--topics", text="Serve the topics of this topics.toml.")
@setting_option(
    "--deadline", "SUBMISSION_DEADLINE", "The time (ISO 8601, UTC) after which no cycle starts.", metavar="ISO"
)
@setting_option("--interval", "SUBMISSION_INTERVAL", "Maximum seconds between two polls.", type=POSITIVE_INT)
@setting_option(
    "--health-port", "HEALTH_PORT", "Serve /healthz, /metrics and /status here.", type=click.IntRange(0, 65535)
)
@click.option("--until-closed", is_flag=True, help="Retry until the submission window closes.")
@click.option("--dry-run", is_flag=True, help="Do everything except sending, and show what would be signed.")
@json_option("One JSON object on stdout, logs on stderr.")
@click.option("-v", "--verbose", is_flag=True, help="Print more on stderr, tracebacks included.")
@click.version_option(__version__, prog_name="forecastd", message="%(prog)s %(version)s")
@click.pass_context
def command(
    ctx: click.Context, /, once: bool, continuous: bool, daemon: bool, verbose: bool, state_dir: Path | None,
    log_dir: Path | None, **options: Any,
) -> None:  # fmt: skip
    """Run forecasting models in production: one checked, signed forecast per epoch, submitted exactly once."""
    ctx.obj = {"state_dir": state_dir, "log_dir": log_dir}
    if verbose:
        sys.excepthook = _print_traceback
    modes = {"once": once, "continuous": continuous, "daemon": daemon}
    if ctx.invoked_subcommand is not None:
        _refuse_ignored(ctx, modes | options, f"before `{ctx.invoked_subcommand}`", "These are options of a cycle (--once). "
                        "Write the options of a command after its name.")  # fmt: skip
        prints_findings = ctx.invoked_subcommand == "doctor"  # it prints warnings as findings itself
        configure_console(verbose=verbose, warnings=not prints_findings)
        return
    mode = _select_mode(ctx, modes)
    ignored = {name: options.pop(name) for name in (DAEMON_OPTIONS if once else ONCE_OPTIONS)}
    _refuse_ignored(ctx, ignored, f"with --{mode}")
    if once:
        from cli.cycle import run_cycle_command  # lazy: `--help` must not import the product

        ctx.exit(run_cycle_command(verbose=verbose, **ctx.obj, **options))
    from cli.daemon import run_daemon_command  # lazy, as above

    ctx.exit(run_daemon_command(mode, verbose=verbose, **ctx.obj, **options))


def _select_mode(ctx: click.Context, modes: Mapping[str, bool]) -> Any:
    """The selected mode."""
    selected = [name for name, enabled in modes.items() if enabled]
    if not selected:
        raise click.UsageError("Nothing to do: use --once, --continuous or --daemon, or a command.", ctx)
    if len(selected) > 1:
        raise click.UsageError(f"{' and '.join(f'--{name}' for name in selected)} exclude each other.", ctx)
    return selected[0]


def _refuse_ignored(ctx: click.Context, options: Mapping[str, Any], place: str, fix: str = "") -> None:
    """Options that would be silently ignored are an error."""
    flags = {param.name: param.opts[0] for param in ctx.command.params}
    ignored_flags = [flags[name] for name, value in options.items() if value not in (None, False)]
    if ignored_flags:
        raise click.UsageError(f"No effect {place}: {', '.join(ignored_flags)}. {fix}".rstrip(), ctx)


def _print_error_line(error_type: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
    message = f"Unexpected error: {error_type.__name__}: {error}. Run again with -v for the traceback."
    _report_failure(message, ExitCode.UNEXPECTED, sys.argv[1:])


def _print_traceback(error_type: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    text = "".join(traceback.format_exception(error_type, error, trace)).rstrip()
    _report_failure(text, ExitCode.UNEXPECTED, sys.argv[1:], reason=str(error))


def run() -> None:
    """The entry point: run the command and exit with the documented exit code."""
    output = install_output()
    sys.excepthook = _print_error_line  # -v replaces it
    code = main(sys.argv[1:])
    output.finish()
    if output.broken is not None and code == ExitCode.SUCCESS and "--once" not in sys.argv:
        if output.broken.errno != errno.EPIPE:
            click.echo(f"Error: cannot write the output: {output.broken.strerror}.", err=True)
        code = ExitCode.UNEXPECTED
    sys.exit(code)


def main(arguments: list[str]) -> int:
    """Run the command with these arguments and return its exit code. Expected errors become one line on stderr."""
    try:
        return int(command.main(arguments, prog_name="forecastd", standalone_mode=False) or ExitCode.SUCCESS)
    except click.ClickException as error:
        error.show()
        return _report_failure("", error.exit_code, arguments, reason=error.format_message())
    except (click.Abort, KeyboardInterrupt):
        return _report_failure("Interrupted.", ExitCode.INTERRUPTED, arguments)
    except ForecastdError as error:
        return _report_failure(f"Error: {error}", error.exit_code, arguments, reason=str(error))
    except ModelError as error:
        return _report_failure(f"Error: {error}", ExitCode.NEEDS_HUMAN, arguments, reason=str(error))


def _report_failure(message: str, code: int, arguments: list[str], *, reason: str = "") -> int:
    """Print the error on stderr and, with `--json`, as an object on stdout; returns the exit code."""
    if message:
        click.echo(redacted(message), err=True)
    if "--json" in arguments:
        click.echo(json.dumps({"outcome": "failed", "reason": redacted(reason or message), "exit_code": code}))
    return code
