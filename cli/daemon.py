"""`--daemon` and `--continuous`: serve every epoch. At a terminal, `--continuous` shows the view of `status` live."""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TextIO, cast

from rich.live import Live

from cli.rows import console
from cli.status_screen import status_screen
from forecastd.clock import SystemClock
from forecastd.daemon.loop import Daemon
from forecastd.errors import NeedsHuman
from forecastd.logs import configure, hide, install_hooks
from forecastd.settings import Settings, load_valid_settings, variable_sources
from forecastd.status.model import DaemonMode, DaemonStatus
from forecastd.submission.topics import load_topics

THREAD_EXIT_SECONDS = 0.5  # how long to wait for threads that still close connections at the end


def run_daemon_command(mode: DaemonMode, *, verbose: bool, register: bool, **options: str | int | Path | None) -> int:
    """Run until a signal, the deadline, or an error that needs a restart. Returns the exit code."""

    def load() -> tuple[list[Settings], list[str]]:
        return _load(options)

    settings = load_valid_settings(**options)[0]
    is_live = mode == "continuous" and sys.stdout.isatty()
    with _live_output() if is_live else nullcontext((None, None)) as (stream, on_status):
        configure(
            settings.log_path,
            verbose=verbose,
            json=settings.files.log_format == "json",
            console_level=logging.INFO,
            timestamps=True,
            stream=stream,
        )
        install_hooks()
        code = Daemon(load, SystemClock(), mode=mode, register=register, on_status=on_status).run()
    _exit_if_blocked(code)
    return code


def _load(options: dict[str, Any]) -> tuple[list[Settings], list[str]]:
    """The settings of each topic, and their problems. An invalid setting has its default in the meantime."""
    settings, invalid = load_valid_settings(**options)
    origins = variable_sources() if invalid else {}
    problems = [
        f"{name} from {origins.get(name, 'an option')}: {reason}. See .env.example." for name, reason in invalid.items()
    ]
    topics = [settings]
    if settings.topic.file is not None:
        try:
            topics = load_topics(settings.topic.file, settings)
        except NeedsHuman as error:
            problems.append(str(error))
    for topic in topics:
        hide(*topic.secret_values)
    return topics, problems


def _exit_if_blocked(code: int) -> None:
    """Exit at once if a thread that hangs in a call would keep the interpreter from exiting; everything is on disk."""
    blocking_threads = [
        thread for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon
    ]
    for thread in blocking_threads:
        thread.join(THREAD_EXIT_SECONDS / len(blocking_threads))
    if any(thread.is_alive() for thread in blocking_threads):
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)


@contextmanager
def _live_output() -> Iterator[tuple[TextIO | None, Callable[[DaemonStatus], None] | None]]:
    """A live view at the bottom of the terminal, with the log lines above it."""
    clock, terminal = SystemClock(), console()
    with Live(console=terminal, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:

        class LogWriter(io.StringIO):
            """Prints above the live view."""

            def write(self, text: str) -> int:
                terminal.print(text.rstrip("\n"), markup=False, soft_wrap=True)
                return len(text)

        def on_status(status: DaemonStatus) -> None:
            live.update(status_screen(status, clock.now()), refresh=True)

        yield cast(TextIO, LogWriter()), on_status
