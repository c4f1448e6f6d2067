"""`--daemon` and `--continuous`: options in, lines out; at a terminal `--continuous` shows what `status` shows, live."""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast

from forecastd.clock import SystemClock
from forecastd.daemon.loop import Daemon
from forecastd.errors import NeedsHuman
from forecastd.logs import configure, hide, install_hooks
from forecastd.pulse import Mode, Pulse
from forecastd.settings import Settings, given_names, load_fitting
from forecastd.topics import load_topics

LAST_SECONDS = 0.5  # for threads that are still closing connections when all is said


def run_daemon_command(mode: Mode, *, verbose: bool, register: bool, **options: str | int | Path | None) -> int:
    """Run until a signal, the deadline, or something that a new start has to mend; the exit code."""

    def load() -> tuple[list[Settings], list[str]]:
        return _load(options)

    settings = load_fitting(**options)[0]
    live = mode == "continuous" and sys.stdout.isatty()
    with _screen() if live else _no_screen() as (stream, watch):
        configure(
            settings.logs, verbose=verbose, json=settings.log_format == "json", console=logging.INFO, times=True,
            stream=stream,
        )  # fmt: skip
        install_hooks()
        code = Daemon(load, SystemClock(), mode=mode, register=register, watch=watch).run()
    _end_if_held(code)
    return code


def _load(options: dict[str, Any]) -> tuple[list[Settings], list[str]]:
    """The settings of each topic with everything that is wrong with them; what does not fit has its default meanwhile."""
    settings, unfit = load_fitting(**options)
    given = given_names() if unfit else {}
    wrong = [f"{name} from {given.get(name, 'an option')}: {why}. See .env.example." for name, why in unfit.items()]
    topics = [settings]
    if settings.topics_file is not None:
        try:
            topics = load_topics(settings.topics_file, settings)
        except NeedsHuman as error:
            wrong.append(str(error))
    for one in topics:
        hide(*one.secrets)
    return topics, wrong


def _end_if_held(code: int) -> None:
    """End now where a thread that hangs in a call would keep the interpreter from ending; all is said and on disk."""
    others = [one for one in threading.enumerate() if one is not threading.main_thread() and not one.daemon]
    for thread in others:
        thread.join(LAST_SECONDS / len(others))
    if any(thread.is_alive() for thread in others):
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)


@contextmanager
def _no_screen() -> Iterator[tuple[TextIO | None, Callable[[Pulse], None] | None]]:
    yield None, None


@contextmanager
def _screen() -> Iterator[tuple[TextIO | None, Callable[[Pulse], None] | None]]:
    """A live picture at the bottom of the terminal, with the log's lines above it."""
    from rich.live import Live

    from cli.pulse_screen import pulse_screen
    from cli.screen import console

    clock, terminal = SystemClock(), console()
    with Live(console=terminal, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:

        class Above(io.StringIO):
            """Prints above the picture."""

            def write(self, text: str) -> int:
                terminal.print(text.rstrip("\n"), markup=False, soft_wrap=True)
                return len(text)

        def watch(pulse: Pulse) -> None:
            live.update(pulse_screen(pulse, clock.now()), refresh=True)

        yield cast(TextIO, Above()), watch
