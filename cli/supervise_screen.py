"""The terminal output of `supervise`: one line per event and, on a terminal, a table of the processes below them.

Log lines go to the same stream, so everything appears in its order.

Invariant: a separate thread prints, because the thread that reports events supervises the processes and must never wait
for a terminal.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from queue import SimpleQueue
from threading import Thread

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cli.rows import console, row
from forecastd.clock import Clock
from forecastd.inference.supervision_run import JobOutcome, ListChildren, SupervisionReport
from forecastd.logs import redacted
from forecastd.supervise.detector import Phase
from forecastd.supervise.events import ProcessEvent
from forecastd.supervise.faults import FAULT_KINDS

STYLES = {logging.ERROR: "red", logging.WARNING: "yellow", logging.DEBUG: "dim"}
MAX_LISTED_JOBS = 10  # the rest is only counted
_TIME_WIDTH = 10
_EVENT_TEXTS = {
    "launched": "process {pid} started",
    "ready": "process {pid} is ready",
    "dispatched": "process {pid} works on {job}",
    "finished": "process {pid} finished {job}",
    "refused": "process {pid} refuses: {text}",
    "exited": "process {pid} exited: {text}",
}  # the other kinds are logged in detail


class SupervisionScreen(logging.Handler):
    """Shows what happens to the processes. With `quiet`, stdout is reserved for one JSON object."""

    def __init__(self, clock: Clock, *, quiet: bool, verbose: bool) -> None:
        super().__init__(logging.DEBUG if verbose else logging.WARNING)
        self._clock, self._quiet, self._verbose = clock, quiet, verbose
        self._start = clock.monotonic()
        self._out = console()
        self._lines: SimpleQueue[tuple[float, str, str] | None] = SimpleQueue()
        self._printer = Thread(target=self._print, name="screen", daemon=True)
        self._live: Live | None = None
        self._children: ListChildren = list

    def __enter__(self) -> SupervisionScreen:
        if not self._quiet:
            logger = logging.getLogger("forecastd")
            logger.addHandler(self)
            logger.propagate = False
            if self._out.is_terminal:
                self._live = Live(console=self._out, get_renderable=self._table, refresh_per_second=8, transient=True)
                self._live.start()
            self._printer.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._quiet:
            logger = logging.getLogger("forecastd")
            logger.removeHandler(self)
            logger.propagate = True
            self._lines.put(None)
            self._printer.join()
            if self._live is not None:
                self._live.stop()

    def set_children(self, children: ListChildren) -> None:
        """Set the function that returns the state of each process."""
        self._children = children

    def emit(self, record: logging.LogRecord) -> None:
        """Add a line of the log."""
        self._add_line(redacted(record.getMessage()), STYLES.get(record.levelno, ""))

    def on_event(self, event: ProcessEvent) -> None:
        """Add a line for an event of a process."""
        template = _EVENT_TEXTS.get(event.kind)
        if template is not None:
            text = event.text or "no reason given"
            self._add_line(template.format(pid=event.pid, job=event.job, text=text), "")
        elif event.kind == "progress" and self._verbose and event.state.total:
            state = event.state
            self._add_line(f"process {event.pid} {state.phase} {state.done:g} of {state.total:g}", "dim")

    def _add_line(self, text: str, style: str) -> None:
        if not self._quiet:
            self._lines.put((self._clock.monotonic() - self._start, text, style))

    def _print(self) -> None:
        while (line := self._lines.get()) is not None:
            seconds, text, style = line
            if not self._out.is_terminal:  # one unwrapped line, for grep
                self._out.print(Text(f"{seconds:8.3f}  {text}".replace("\n", f"\n{'':{_TIME_WIDTH}}")), soft_wrap=True)
                continue
            table = Table.grid(padding=(0, 1), expand=True)
            table.add_column(width=_TIME_WIDTH - 1, justify="right", no_wrap=True)
            table.add_column(ratio=1, overflow="fold")
            table.add_row(f"{seconds:.3f}", Text(text, style=style))
            self._out.print(table)

    def _table(self) -> Table:
        """The table of the processes as they are now."""
        width = self._out.width - 4  # room for the ^C that a terminal echoes: a wrapped line would not be erased
        table = Table(box=None, width=width, padding=(0, 1), header_style="bold")
        for name in ("process", "phase", "", "done", "heartbeat", "progress", "job"):
            table.add_column(name, no_wrap=True, justify="right" if name in {"process", "done"} else "left")
        for child in self._children():
            percent = float(str(child["percent"]))
            is_idle = child["phase"] == Phase.IDLE
            table.add_row(
                str(child["pid"]),
                str(child["phase"]).replace("_", " "),
                "" if is_idle else ProgressBar(total=100, completed=percent, width=10),
                "" if is_idle else f"{percent:.0f} %",
                f"{child['heartbeat_age_s']} s ago",
                "" if is_idle else f"{child['progress_age_s']} s ago",
                str(child["job"] or ""),
            )
        return table

    def result(self, report: SupervisionReport) -> None:
        """Print the outcome of each job, the slowest step of each phase, and the counters."""
        for line in result_rows(report):
            self._out.print(line)


def result_rows(report: SupervisionReport) -> Iterator[Table]:
    """The outcome of a supervised run, in the same form as a cycle's."""
    success_count = sum(job.outcome == "result" for job in report.jobs)
    model_text = Text(f"{report.manifest.name} ({report.manifest.sha256[:12]}), from {report.input_description}")
    yield row("model", model_text)
    text = Text()
    for job in sorted(report.jobs, key=lambda job: job.outcome == "result")[:MAX_LISTED_JOBS]:
        text.append(f"{_job(job)}\n")
    if len(report.jobs) > MAX_LISTED_JOBS:
        text.append(f"and {len(report.jobs) - MAX_LISTED_JOBS} more; --json lists them all\n")
    yield row("jobs", text[:-1])
    limits = report.policy.limits
    slowest = (f"{phase} {seconds:.3f} s of {limits.for_phase(phase):g} s" for phase, seconds in report.slowest.items())
    yield row("slowest", Text("\n".join(slowest) or "no step was finished"))
    counts = {name: count for name, count in vars(report.counts).items() if isinstance(count, int) and count}
    counts |= {f"hangs in {phase}": count for (phase, _), count in report.counts.hangs.items()}
    yield row("counts", Text(", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts.items())))
    if report.counts.quarantines:
        yield row("quarantine", Text("in this run only; workers are not affected"))
    style = "bold yellow" if report.exit_code else "bold green"
    outcome = Text("skipped" if report.exit_code else "served", style=style)
    outcome.append(f": {success_count} of {len(report.jobs)} jobs got their result", style="default")
    yield row("outcome", outcome, f"{sum(job.seconds for job in report.jobs):.3f} s")


def _job(job: JobOutcome) -> str:
    if job.outcome == "result":
        return f"{job.name}: {job.value:+.5f} by process {job.pid}, {job.seconds:.3f} s"
    return f"{job.name}: {job.outcome}, {job.reason}"


def print_faults() -> None:
    """Print every fault with its syntax and its effect."""
    output = Console(highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, kind in FAULT_KINDS.items():
        table.add_row(name, kind.effect)
    output.print(table)
    output.print(
        "\nA fault is KIND[:VALUE][@PLACE]. A place is a percentage of the prediction (default 50) or the name of a "
        "phase: loading, warming_up, predicting, post_processing, stopping. hang@99 stops at 99 % of the prediction, "
        "raise@loading fails at import, exit:7 exits with status 7, hang@50,ignore-term hangs and ignores SIGTERM.",
        markup=False,
    )
