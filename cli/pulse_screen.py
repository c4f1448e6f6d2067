"""A running daemon on one screen of 80 columns: for `status`, and for `--continuous` while it runs.

The one thing to know before changing it: it is read at 3 a.m. by somebody who wants to know whether to get up. So whether it
is well comes first, then what to do, then each topic; what is as it should be is short.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cli.screen import LABEL, row
from forecastd.clock import iso
from forecastd.health import Health, judge
from forecastd.pulse import (
    Ended,
    EndpointPulse,
    ModelPulse,
    Pulse,
    StreamPulse,
    SupervisionPulse,
    TopicPulse,
    WindowPulse,
)

SHOWN_OUTCOMES = 5
ALLO = 10**18  # uallo
LONG_RUNWAY = 100_000  # epochs; nobody counts further
STYLES = {
    "submitted": "green",
    "already_submitted": "green",
    "skipped": "yellow",
    "missed": "bold red",
    "failed": "bold red",
}
NAMES = {"already_submitted": "was there"}
LOW_RUNWAY = 100  # epochs


def pulse_screen(pulse: Pulse, now: float, *, alive: bool | None = True) -> RenderableType:
    """All that is worth knowing of a daemon at `now` (unix seconds). `alive` as `forecastd.health.judge` takes it."""
    health = judge(pulse, now, alive=alive)
    lines: list[RenderableType] = [row("daemon", _daemon(pulse, now, alive)), row("health", _health(health, pulse))]
    if pulse.trouble:
        lines.append(row("trouble", Text(plain(pulse.trouble), style="yellow")))
    for topic in pulse.topics:
        lines += ["", *_topic(topic, pulse, now, live=alive is not False)]
    lines += ["", *_below(pulse, now, live=alive is not False)]
    return Group(*lines)


def _daemon(pulse: Pulse, now: float, alive: bool | None) -> Text:
    chain = pulse.chain_id or pulse.network
    if alive is False:
        how = "ended" if pulse.state == "ended" else "not running"
        last = f"last heard of {since(pulse.written, now)} on {chain}, {clock_time(pulse.written, now)}"
        return Text(f"{how}, {last}", style="bold" if pulse.state == "ended" else "bold red")
    state = "" if pulse.state == "running" else f"{pulse.state}, "
    until = "" if pulse.deadline is None else f"\nuntil {iso(pulse.deadline)} ({ahead(pulse.deadline, now)})"
    mode = "" if pulse.mode == "daemon" else ", in the foreground"
    return Text(
        f"{state}on {chain} for {span(pulse.up)}, since {clock_time(pulse.started, now)}, pid {pulse.pid}{mode}{until}"
    )


def _health(health: Health, pulse: Pulse) -> Text:
    if health.ok:
        return Text("good", style="green")
    return Text("\n".join(health.reasons), style="" if pulse.state == "ended" else "bold red")


def _topic(topic: TopicPulse, pulse: Pulse, now: float, *, live: bool) -> Iterable[RenderableType]:
    yield row(f"topic {topic.topic_id}", Text(topic.wallet or "no wallet yet", style="bold"))
    if live:
        yield row("window", _window(topic.window, topic))
        if topic.phase != "waiting":
            nonce = "" if topic.nonce is None else f" for nonce {topic.nonce}"
            spent = "" if topic.phase_since is None else f", {span(now - topic.phase_since)} so far"
            yield row("at work", Text(f"{plain(topic.phase)}{nonce}{spent}"))
    last = topic.last_submitted
    if last is not None:
        block = "" if last.height is None else f", in block {last.height}"
        yield row("submitted", Text(f"nonce {last.nonce}{block}, {since(last.at, now)}"))
    elif topic.confirmed_nonce is not None:
        yield row("submitted", Text(f"nonce {topic.confirmed_nonce}, by an earlier run"))
    else:
        yield row("submitted", Text("nothing yet", style="yellow"))
    yield row("cycles", _cycles(topic))
    if topic.balance_uallo is not None:
        yield row("balance", _balance(topic))
    if topic.last_outcomes:
        yield _outcomes(topic.last_outcomes[:SHOWN_OUTCOMES], now)
    if len(pulse.topics) > 1 and topic.model is not None:
        yield row("model", Text(topic.model))


def _window(window: WindowPulse | None, topic: TopicPulse) -> Text:
    if topic.height is None:
        return Text("not known: no node has answered yet", style="yellow")
    if topic.active is False:
        return Text("none: the topic is not active", style="yellow")
    if window is None:
        return Text(f"none is open at height {topic.height}")
    when = []
    if window.changes_in_seconds is not None:
        when.append(f"in about {span(window.changes_in_seconds)}")
    if window.changes_in_blocks is not None:
        when.append(f"in {window.changes_in_blocks} blocks" if not when else f"({window.changes_in_blocks} blocks)")
    soon = " ".join(when)
    if window.open:
        return Text(f"open for nonce {window.nonce}, closes {soon}".rstrip(), style="bold")
    block = "" if window.first_height is None else f" at height {window.first_height}"
    return Text(f"the next opens {soon}{block}" if soon else "closed")


def _cycles(topic: TopicPulse) -> Text:
    text = Text(f"{topic.cycles}: {topic.submitted} submitted, ")
    lately = any(one.outcome == "missed" for one in topic.last_outcomes)
    text.append(f"{topic.missed} missed", style="bold red" if lately else "")
    others = topic.cycles - topic.submitted - topic.missed
    text.append(f", {others} ended otherwise" if others > 0 else "")
    if topic.lags.count:
        text.append(f"; lag {topic.lags.sum / topic.lags.count:.1f}, at most {topic.lags.largest:.0f} blocks")
    return text


def _balance(topic: TopicPulse) -> Text:
    left, runway = f"{(topic.balance_uallo or 0) / ALLO:,.6f} ALLO", topic.runway_epochs
    if runway is None:
        return Text(left)
    epochs = f"{runway:,}" if runway <= LONG_RUNWAY else f"more than {LONG_RUNWAY:,}"
    style = "bold red" if runway < LOW_RUNWAY / 4 else "yellow" if runway < LOW_RUNWAY else ""
    return Text(f"{left}, enough for {epochs} epochs", style=style)


def _outcomes(latest: Iterable[Ended], now: float) -> RenderableType:
    """A line an outcome: when, the nonce, how it ended, and how long it took or why."""
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=LABEL + 2, no_wrap=True)
    table.add_column(min_width=9, justify="right", no_wrap=True)
    table.add_column(width=9, no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    for one in latest:
        lag = f"{one.lag} blocks after it opened" if one.lag is not None else ""
        took = f"{sum(one.stages.values()):.1f} s" if one.stages else ""
        why = ": ".join(part for part in (one.check, one.reason) if part)
        text = ", ".join(part for part in (took, lag, why) if part)
        name = Text(NAMES.get(one.outcome, one.outcome), style=STYLES.get(one.outcome, ""))
        table.add_row(clock_time(one.at, now), "" if one.nonce is None else str(one.nonce), name, Text(plain(text)))
    return table


def _below(pulse: Pulse, now: float, *, live: bool) -> Iterable[RenderableType]:
    """What the topics share; of a daemon that is gone, only what outlives it."""
    if live:
        for place, endpoint in enumerate(pulse.endpoints):
            yield row("" if place else "endpoints", _endpoint(endpoint))
        for stream in pulse.streams:
            yield row("events", _stream(stream))
    for model in pulse.models:
        yield row("model", _model(model, now))
    if live:
        yield row("processes", _processes(pulse.supervision))
        if told := _house(pulse):
            yield row("memory", Text(told))
    for bundle in pulse.supervision.quarantined:
        yield row("quarantine", Text(plain(bundle), style="bold red"))
    if pulse.log is not None:
        yield row("log", Text(plain(pulse.log)))


def _stream(stream: StreamPulse) -> Text:
    text = Text(f"{plain(stream.endpoint)}  ")
    if stream.connected:
        return text.append("connected", style="green")
    return text.append(f"not connected{f': {plain(stream.error)}' if stream.error else ''}", style="yellow")


def _endpoint(endpoint: EndpointPulse) -> Text:
    good = endpoint.state == "ok"
    text = Text(f"{plain(endpoint.endpoint)}  ")
    text.append(endpoint.state, style="green" if good else "yellow")
    if endpoint.latency is not None and good:
        text.append(f", {1000 * endpoint.latency:.0f} ms")
    if endpoint.lag:
        text.append(f", {endpoint.lag} blocks behind", style="yellow")
    if endpoint.error and not good:
        text.append(f"\n{plain(endpoint.error)}", style="yellow")
    return text


def _model(model: ModelPulse, now: float) -> Text:
    text = Text(f"{plain(model.name)} ({model.sha256[:12]})")
    if model.trained_until is not None:
        age = now - model.trained_until
        limit = "" if model.most_age is None else f", refused at {span(model.most_age)}"
        old = model.most_age is not None and age > 0.9 * model.most_age
        text.append(f", learnt from data to {span(age)} ago{limit}", style="yellow" if old else "")
    return text


def _processes(told: SupervisionPulse) -> Text:
    roles = [child.role for child in told.children]
    running = ", ".join(f"{roles.count(role)} {role}" for role in dict.fromkeys(roles)) or "none"
    hangs = sum(one.count for one in told.hangs)
    text = Text(running)
    troubles = (
        (hangs, "hung"),
        (told.crashes, "crashed"),
        (told.replacements, "replaced"),
        (told.hand_overs, "jobs moved"),
    )
    happened = ", ".join(f"{number} {what}" for number, what in troubles if number)
    text.append(f"; {happened}" if happened else "", style="yellow")
    return text


def _house(pulse: Pulse) -> str:
    parts = []
    if pulse.memory_bytes is not None:
        parts.append(f"{pulse.memory_bytes / 1e6:.0f} MB")
    if pulse.children_memory_bytes:
        parts.append(f"{pulse.children_memory_bytes / 1e6:.0f} MB in the models' processes")
    if pulse.open_files is not None:
        parts.append(f"{pulse.open_files} files open")
    return ", ".join(parts)


def plain(text: str) -> str:
    """A text that others wrote, on one line, without anything that a terminal would obey."""
    return "".join(character if character.isprintable() else " " for character in text)


def span(seconds: float) -> str:
    """A length of time in its two largest units."""
    left = max(0, round(seconds))
    units = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    found: list[str] = []
    for name, size in units:
        number, left = divmod(left, size)
        if number or found:
            found.append(f"{number} {name}")
    return " ".join(part for part in found[:2] if not part.startswith("0 ")) or "0 s"


def since(at: float, now: float) -> str:
    """How long ago, for people."""
    return f"{span(now - at)} ago" if now >= at else f"in {span(at - now)}"


def ahead(at: float, now: float) -> str:
    """How long until, for people."""
    return f"in {span(at - now)}" if at > now else "over"


def clock_time(at: float, now: float) -> str:
    """The time of day in UTC, with the date when it was another day."""
    moment, today = datetime.fromtimestamp(at, UTC), datetime.fromtimestamp(now, UTC)
    return moment.strftime("%H:%M:%SZ" if moment.date() == today.date() else "%m-%d %H:%MZ")
