"""A running fleet on one screen of 80 columns, for `fleet status`.

The one thing to know before changing it: it is read at 3 a.m. by somebody who wants to know whether to get up. So whether it
is well and what is at risk come first, and what is as it should be is short.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cli.fleet.told import Alerts, Forecast, Health, Risk, Risks, Servers, Status, Summary
from cli.pulse_screen import clock_time, plain, since, span
from cli.screen import LABEL, row
from forecastd.clock import from_iso

LEVEL_STYLES = {"critical": "bold red", "warning": "yellow", "watch": "cyan", "early": "cyan"}
SHOWN = 5  # alerts and servers
SERVER = 20  # characters of a server's name


def status_screen(name: str, status: Status, risks: Risks, alerts: Alerts) -> RenderableType:
    """All that is worth knowing of the fleet at `name`."""
    now = moment(status.now) or 0.0
    lines: list[RenderableType] = [row("fleet", _fleet(name, status, now)), row("health", _health(status.health))]
    lines += [row("warning", Text(plain(one), style="yellow")) for one in status.health.warnings]
    lines += ["", row("servers", servers_text(status.servers)), row("risk", risk_text(risks.summary))]
    lines += list(_incidents(risks.summary, status))
    lines += _worst([one for one in risks.servers if one.level != "ok"][:SHOWN])
    lines += ["", *_alerts(alerts, now), "", *_works(status, now)]
    return Group(*lines)


def _fleet(name: str, status: Status, now: float) -> Text:
    up = "" if status.uptime_seconds is None else f", up {span(status.uptime_seconds)}"
    started = moment(status.started_at)
    began = "" if started is None else f", since {clock_time(started, now)}"
    text = Text(f"{plain(name)}, forecastd {plain(status.version)}{up}{began}")
    if status.synthetic:
        text.append("\nthe servers are made up (--demo)", style="yellow")
    if status.speed != 1:
        text.append(f"\nits time runs {status.speed:g} times as fast: a rehearsal", style="yellow")
    return text


def _health(health: Health) -> Text:
    if health.ok:
        return Text("good", style="green")
    return Text("\n".join(plain(reason) for reason in health.reasons) or "not good", style="bold red")


def servers_text(servers: Servers, name: str = "") -> Text:
    """How many there are, and how many of them the model can forecast; `name`: what they are called."""
    text = Text(f"{servers.total}{name}: {servers.ready} ready")
    text.append(f", {servers.warming} warming up" if servers.warming else "")
    text.append(f", {servers.silent} silent" if servers.silent else "", style="yellow")
    return text


def risk_text(summary: Summary) -> Text:
    """How many servers are at which level, the gravest first."""
    text = Text()
    for level in ("critical", "warning", "watch", "ok"):
        number = summary.counts.get(level, 0)
        if number or level == "critical":
            text.append(", " if text else "")
            text.append(f"{number} {level}", style=LEVEL_STYLES.get(level, "") if number else "")
    if summary.maintenance:
        text.append(f", {summary.maintenance} in maintenance")
    return text


def _incidents(summary: Summary, status: Status) -> Iterable[RenderableType]:
    """How probable it is that something happens within the horizon."""
    if summary.incident_probability is None:
        return
    within = span(status.model.horizon_steps * status.step_seconds)
    text = f"an incident now or within {within}: {percent(summary.incident_probability)}"
    if summary.incidents_expected is not None:
        text += f", of {summary.incidents_expected:.1f} servers on average"
    yield row("", Text(text))


def _worst(risks: Sequence[Risk]) -> list[RenderableType]:
    names = [plain(risk.server) for risk in risks]
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=LABEL, no_wrap=True)
    table.add_column(min_width=3, justify="right", no_wrap=True)
    table.add_column(width=min(SERVER, max(map(len, names), default=0)), no_wrap=True, overflow="ellipsis")
    table.add_column(ratio=1, overflow="fold")
    for place, (name, risk) in enumerate(zip(names, risks, strict=True)):
        why = Text("\n".join(plain(reason) for reason in risk.reasons[:2]))
        score = Text(str(int(risk.score)), style=LEVEL_STYLES.get(risk.level, ""))
        table.add_row("" if place else "worst", score, name, why)
    return [table] if table.row_count else []


def _alerts(alerts: Alerts, now: float) -> Iterable[RenderableType]:
    critical = sum(one.severity == "critical" for one in alerts.open)
    text = Text(f"{len(alerts.open)} open" if alerts.open else "none open")
    text.append(f", {critical} critical" if critical else "", style=LEVEL_STYLES["critical"])
    yield row("alerts", text)
    yield from alert_lines(alerts, now, SHOWN)
    if len(alerts.open) > SHOWN:
        yield row("", Text(f"and {len(alerts.open) - SHOWN} more; --json lists them all"))


def alert_lines(alerts: Alerts, now: float, most: int, *, whole: bool = True) -> Iterable[RenderableType]:
    """The gravest alerts, a line each: how grave, what, and for how long. Not `whole`: cut off where it is too wide."""
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=LABEL, no_wrap=True)
    table.add_column(ratio=1, overflow="fold" if whole else "ellipsis", no_wrap=not whole)
    table.add_column(justify="right", no_wrap=True)
    for alert in alerts.open[:most]:
        opened = moment(alert.opened_at)
        age = "" if opened is None else f"for {span(now - opened)}"
        table.add_row(
            Text(plain(alert.severity), style=LEVEL_STYLES.get(alert.severity, "")), plain(alert.message), age
        )
    if table.row_count:
        yield table


def _works(status: Status, now: float) -> Iterable[RenderableType]:
    """The parts of the service itself."""
    yield row("tick", _tick(status))
    yield row("forecast", _forecast(status.forecast, status))
    model, step = status.model, status.step_seconds
    if model.name:
        needs = "" if model.encoder_minimum is None else f", needs {span(model.encoder_minimum * step)} of a server"
        yield row(
            "model", Text(f"{plain(model.name)} ({plain(model.sha256[:12])}), engine {plain(model.engine)}{needs}")
        )
    yield row("rows", _rows(status))
    yield row("window", _window(status, now))
    yield row("processes", _processes(status))


def _tick(status: Status) -> Text:
    if status.tick.newest < 0 or status.tick.age_seconds is None:
        return Text("no rows have come yet", style="yellow")
    age, step = status.tick.age_seconds, status.step_seconds
    return Text(f"every {step} s, the newest {span(max(age, 0))} ago", style="yellow" if age > 6 * step else "")


def _forecast(forecast: Forecast, status: Status) -> Text:
    text = Text()
    if forecast.made_at is None or forecast.age_seconds is None:
        text.append("none yet", style="yellow")
    else:
        took = "" if forecast.seconds is None else f" in {1000 * forecast.seconds:.0f} ms"
        ahead = span(status.model.horizon_steps * status.step_seconds)
        old = forecast.age_seconds > 6 * status.step_seconds * max(status.speed, 1)
        text.append(f"made {span(forecast.age_seconds)} ago{took}, {ahead} ahead", style="yellow" if old else "")
        text.append(f"; {forecast.tft} by the model, {forecast.heuristic} by a heuristic")
    for number, what in ((forecast.skipped_ticks, "ticks passed over"), (forecast.failures, "failed")):
        text.append(f", {number} {what}" if number else "", style="yellow")
    if forecast.last_error:
        text.append(f"\n{plain(forecast.last_error)}", style="yellow")
    return text


def _rows(status: Status) -> Text:
    ingest = status.ingest
    text = Text(f"{ingest.accepted:,} taken")
    text.append(f", {ingest.duplicates:,} duplicates" if ingest.duplicates else "")
    if ingest.refused:
        worst = sorted(ingest.by_reason.items(), key=lambda one: -one[1])[:3]
        why = ", ".join(f"{plain(name)} {number:,}" for name, number in worst)
        text.append(f", {ingest.refused:,} refused{f' ({why})' if why else ''}", style="yellow")
    return text


def _window(status: Status, now: float) -> Text:
    window, oldest = status.window, moment(status.window.oldest)
    back = "" if oldest is None else f", back to {since(oldest, now)}"
    text = Text(f"{window.ticks:,} ticks on disk{back}, {window.disk_bytes / 1e6:,.1f} MB")
    if window.damaged:
        text.append(f"\n{window.damaged} ticks were damaged and are lost", style="yellow")
    if window.last_error:
        text.append(f"\n{plain(window.last_error)}", style="bold red")
    return text


def _processes(status: Status) -> Text:
    told = status.supervision
    phases = [plain(str(child.get("phase", "running"))).replace("_", " ") for child in told.children]
    text = Text(", ".join(f"{phases.count(phase)} {phase}" for phase in dict.fromkeys(phases)) or "none")
    troubles = ((told.crashes, "crashed"), (told.replacements, "replaced"), (told.hand_overs, "jobs moved"))
    happened = ", ".join(f"{number} {what}" for number, what in troubles if number)
    text.append(f"; {happened}" if happened else "", style="yellow")
    return text


def moment(text: str | None) -> float | None:
    """Unix seconds of a service's ISO time, None when it is none."""
    try:
        return None if text is None else from_iso(text)
    except (ValueError, OverflowError):
        return None


def percent(share: float) -> str:
    """A probability for people: never 0 % or 100 % where it is not."""
    if 0 < share < 0.01:
        return "under 1 %"
    return "over 99 %" if 0.99 < share < 1 else f"{100 * share:.0f} %"
