"""The state of a daemon on one screen of 80 columns, for `status` and for `--continuous`.

Invariant: its reader is woken at 3 a.m. and wants to know whether to act. So health comes first, then what needs attention,
then each topic; what is normal is short.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cli.rows import LABEL_WIDTH, row
from forecastd.clock import to_iso
from forecastd.runtime.formatting import format_count, format_duration
from forecastd.status import DaemonHealth, check_health
from forecastd.status.model import (
    CycleRecord,
    DaemonStatus,
    EndpointStatus,
    ModelStatus,
    StreamStatus,
    SupervisionStatus,
    TopicStatus,
    WindowStatus,
)

MAX_OUTCOMES = 5
UALLO_PER_ALLO = 10**18
MAX_RUNWAY_EPOCHS = 100_000  # a longer runway is not shown exactly
OUTCOME_STYLES = {
    "submitted": "green",
    "already_submitted": "green",
    "skipped": "yellow",
    "missed": "bold red",
    "failed": "bold red",
}
OUTCOME_LABELS = {"already_submitted": "done"}
LOW_RUNWAY_EPOCHS = 100


def status_screen(status: DaemonStatus, now: float, *, alive: bool | None = True) -> RenderableType:
    """The state of a daemon at `now` (unix seconds). `alive` is that of `forecastd.status.check_health`."""
    health = check_health(status, now, alive=alive)
    lines: list[RenderableType] = [row("daemon", _daemon(status, now, alive)), row("health", _health(health, status))]
    if status.attention:
        lines.append(row("attention", Text(printable(status.attention), style="yellow")))
    for topic in status.topics:
        lines += ["", *_topic(topic, status, now, live=alive is not False)]
    lines += ["", *_shared_rows(status, now, live=alive is not False)]
    return Group(*lines)


def _daemon(status: DaemonStatus, now: float, alive: bool | None) -> Text:
    chain = status.chain_id or status.network
    if alive is False:
        label = "ended" if status.state == "ended" else "not running"
        heartbeat = (
            f"last heartbeat {format_ago(status.written_at, now)} on {chain}, {format_time(status.written_at, now)}"
        )
        return Text(f"{label}, {heartbeat}", style="bold" if status.state == "ended" else "bold red")
    state = "" if status.state == "running" else f"{status.state}, "
    until = (
        "" if status.deadline is None else f"\nuntil {to_iso(status.deadline)} ({format_until(status.deadline, now)})"
    )
    mode = "" if status.mode == "daemon" else ", in the foreground"
    since = f"for {format_duration(status.uptime)}, since {format_time(status.started_at, now)}"
    return Text(f"{state}on {chain} {since}, pid {status.pid}{mode}{until}")


def _health(health: DaemonHealth, status: DaemonStatus) -> Text:
    if health.ok:
        return Text("good", style="green")
    return Text("\n".join(health.reasons), style="" if status.state == "ended" else "bold red")


def _topic(topic: TopicStatus, status: DaemonStatus, now: float, *, live: bool) -> Iterable[RenderableType]:
    yield row(f"topic {topic.topic_id}", Text(topic.wallet or "no wallet yet", style="bold"))
    if live:
        yield row("window", _window(topic.window, topic))
        if topic.phase != "waiting":
            nonce = "" if topic.nonce is None else f" for nonce {topic.nonce}"
            elapsed = "" if topic.phase_since is None else f", {format_duration(now - topic.phase_since)} so far"
            yield row("working", Text(f"{printable(topic.phase)}{nonce}{elapsed}"))
    last = topic.last_submitted
    if last is not None:
        block = "" if last.height is None else f", in block {last.height}"
        yield row("submitted", Text(f"nonce {last.nonce}{block}, {format_ago(last.submitted_at, now)}"))
    elif topic.confirmed_nonce is not None:
        yield row("submitted", Text(f"nonce {topic.confirmed_nonce}, by an earlier run"))
    else:
        yield row("submitted", Text("nothing yet", style="yellow"))
    yield row("cycles", _cycles(topic))
    if topic.balance_uallo is not None:
        yield row("balance", _balance(topic))
    if topic.last_outcomes:
        yield _outcomes(topic.last_outcomes[:MAX_OUTCOMES], now)
    if len(status.topics) > 1 and topic.model is not None:
        yield row("model", Text(topic.model))


def _window(window: WindowStatus | None, topic: TopicStatus) -> Text:
    if topic.height is None:
        return Text("unknown: no node has answered yet", style="yellow")
    if topic.active is False:
        return Text("none: the topic is not active", style="yellow")
    if window is None:
        return Text(f"none is open at height {topic.height}")
    parts = []
    if window.seconds_until_change is not None:
        parts.append(f"in about {format_duration(window.seconds_until_change)}")
    if window.blocks_until_change is not None:
        blocks = format_count(window.blocks_until_change, "block")
        parts.append(f"({blocks})" if parts else f"in {blocks}")
    time_text = " ".join(parts)
    if window.open:
        return Text(f"open for nonce {window.nonce}, closes {time_text}".rstrip(), style="bold")
    block = "" if window.first_height is None else f" at height {window.first_height}"
    return Text(f"the next opens {time_text}{block}" if time_text else "closed")


def _cycles(topic: TopicStatus) -> Text:
    text = Text(f"{topic.cycles}: {topic.submitted} submitted, ")
    recently_missed = any(outcome.outcome == "missed" for outcome in topic.last_outcomes)
    text.append(f"{topic.missed} missed", style="bold red" if recently_missed else "")
    other_count = topic.cycles - topic.submitted - topic.missed
    text.append(f", {other_count} other" if other_count > 0 else "")
    lag = topic.submission_lag
    if lag.count:
        text.append(f"; lag {lag.sum / lag.count:.1f}, at most {format_count(round(lag.max), 'block')}")
    return text


def _balance(topic: TopicStatus) -> Text:
    left, runway = f"{(topic.balance_uallo or 0) / UALLO_PER_ALLO:,.6f} ALLO", topic.runway_epochs
    if runway is None:
        return Text(left)
    epochs = f"{runway:,}" if runway <= MAX_RUNWAY_EPOCHS else f"more than {MAX_RUNWAY_EPOCHS:,}"
    style = "bold red" if runway < LOW_RUNWAY_EPOCHS / 4 else "yellow" if runway < LOW_RUNWAY_EPOCHS else ""
    return Text(f"{left}, enough for {epochs} epoch{'' if runway == 1 else 's'}", style=style)


def _outcomes(outcomes: Iterable[CycleRecord], now: float) -> RenderableType:
    """One line per outcome: time, nonce, outcome, and its duration or reason."""
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=LABEL_WIDTH + 2, no_wrap=True)
    table.add_column(min_width=9, justify="right", no_wrap=True)
    table.add_column(width=9, no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    for outcome in outcomes:
        lag = f"{format_count(outcome.lag, 'block')} after it opened" if outcome.lag is not None else ""
        duration = f"{sum(outcome.stages.values()):.1f} s" if outcome.stages else ""
        reason = ": ".join(part for part in (outcome.check, outcome.reason) if part)
        text = ", ".join(part for part in (duration, lag, reason) if part)
        name = Text(OUTCOME_LABELS.get(outcome.outcome, outcome.outcome), style=OUTCOME_STYLES.get(outcome.outcome, ""))
        table.add_row(
            format_time(outcome.ended_at, now),
            "" if outcome.nonce is None else str(outcome.nonce),
            name,
            Text(printable(text)),
        )
    return table


def _shared_rows(status: DaemonStatus, now: float, *, live: bool) -> Iterable[RenderableType]:
    """What the topics share; for a daemon that does not run, only what is still valid."""
    if live:
        for index, endpoint in enumerate(status.endpoints):
            yield row("" if index else "endpoints", _endpoint(endpoint))
        for stream in status.streams:
            yield row("events", _stream(stream))
    for model in status.models:
        yield row("model", _model(model, now))
    if live:
        yield row("processes", _processes(status.supervision))
        if memory_text := _memory_text(status):
            yield row("memory", Text(memory_text))
    for bundle in status.supervision.quarantined:
        yield row("quarantine", Text(printable(bundle), style="bold red"))
    if status.log_file is not None:
        yield row("log", Text(printable(status.log_file)))


def _stream(stream: StreamStatus) -> Text:
    text = Text(f"{printable(stream.endpoint)}  ")
    if stream.connected:
        return text.append("connected", style="green")
    return text.append(f"not connected{f': {printable(stream.error)}' if stream.error else ''}", style="yellow")


def _endpoint(endpoint: EndpointStatus) -> Text:
    is_ok = endpoint.state == "ok"
    text = Text(f"{printable(endpoint.endpoint)}  ")
    text.append(endpoint.state, style="green" if is_ok else "yellow")
    if endpoint.latency is not None and is_ok:
        text.append(f", {1000 * endpoint.latency:.0f} ms")
    if endpoint.lag:
        text.append(f", {format_count(endpoint.lag, 'block')} behind", style="yellow")
    if endpoint.error and not is_ok:
        text.append(f"\n{printable(endpoint.error)}", style="yellow")
    return text


def _model(model: ModelStatus, now: float) -> Text:
    text = Text(f"{printable(model.name)} ({model.sha256[:12]})")
    if model.trained_until is not None:
        age = now - model.trained_until
        limit = "" if model.max_age is None else f", refused at {format_duration(model.max_age)}"
        is_old = model.max_age is not None and age > 0.9 * model.max_age
        text.append(f", trained on data to {format_duration(age)} ago{limit}", style="yellow" if is_old else "")
    return text


def _processes(supervision: SupervisionStatus) -> Text:
    roles = [child.role for child in supervision.children]
    running = ", ".join(f"{roles.count(role)} {role}" for role in dict.fromkeys(roles)) or "none"
    hangs = sum(hang.count for hang in supervision.hangs)
    text = Text(running)
    counters = (
        (hangs, "hung"),
        (supervision.crashes, "crashed"),
        (supervision.replacements, "replaced"),
        (supervision.failovers, "failed over"),
    )
    summary = ", ".join(f"{number} {label}" for number, label in counters if number)
    text.append(f"; {summary}" if summary else "", style="yellow")
    return text


def _memory_text(status: DaemonStatus) -> str:
    parts = []
    if status.memory_bytes is not None:
        parts.append(f"{status.memory_bytes / 1e6:.0f} MB")
    if status.children_memory_bytes:
        parts.append(f"{status.children_memory_bytes / 1e6:.0f} MB in model processes")
    if status.open_files is not None:
        parts.append(format_count(status.open_files, "open file"))
    return ", ".join(parts)


def printable(text: str) -> str:
    """A text from outside on one line, without control characters."""
    return "".join(character if character.isprintable() else " " for character in text)


def format_ago(time: float, now: float) -> str:
    """The time since `time`, such as `3 min ago`."""
    return f"{format_duration(now - time)} ago" if now >= time else f"in {format_duration(time - now)}"


def format_until(time: float, now: float) -> str:
    """The time until `time`, such as `in 3 min`."""
    return f"in {format_duration(time - now)}" if time > now else "over"


def format_time(time: float, now: float) -> str:
    """The time of day in UTC, with the date if it is another day."""
    moment, today = datetime.fromtimestamp(time, UTC), datetime.fromtimestamp(now, UTC)
    return moment.strftime("%H:%M:%SZ" if moment.date() == today.date() else "%m-%d %H:%MZ")
