"""The status screen of a daemon: 80 columns, health first, and no control characters."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from cli.status_screen import format_ago, format_time, status_screen
from forecastd.ledger.outcome import Outcome
from forecastd.status.model import (
    DaemonStatus,
    EndpointStatus,
    ModelStatus,
    StreamStatus,
    SupervisionStatus,
    TopicStatus,
    WatchdogStatus,
    WindowStatus,
)

NOW = 1_790_000_000.0  # 2026-09-21T14:13:20Z
DAY = 86_400.0
TOPIC = TopicStatus(
    67, "allo1w0xya4rcpmm5d9zsdmv3fa4k9v9z2wnc8pd6rh", active=True, height=5040738, height_age=2.0, epoch_length=720,
    newest_nonce=5040720, window=WindowStatus(False, None, 5041440, 5041500, 702, 3510.0), balance_uallo=12_345 * 10**15,
    runway_epochs=1234,
).with_outcome(
    Outcome("submitted", nonce=5040720, height=5040723, stages={"data": 1.5, "submit": 2.5}), NOW - 67
)  # fmt: skip
STATUS = DaemonStatus(
    4711, NOW - 2.5 * DAY, NOW - 1, 2.5 * DAY, "daemon", "running", "testnet", chain_id="allora-testnet-1", topics=(TOPIC,),
    models=(ModelStatus("tft-btc-168h", "ab12cd34ef567890", NOW - 12 * DAY, NOW - DAY, 90 * DAY),),
    log_file="/var/log/forecastd/submission.log",
)  # fmt: skip


def render(status: DaemonStatus, *, alive: bool | None = True) -> str:
    console = Console(width=80, file=io.StringIO(), highlight=False)
    console.print(status_screen(status, NOW, alive=alive))
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def test_healthy_daemon_is_rendered_completely() -> None:
    assert (
        render(STATUS)
        == """\
daemon     on allora-testnet-1 for 2 d 12 h, since 09-19 02:13Z, pid 4711
health     good

topic 67   allo1w0xya4rcpmm5d9zsdmv3fa4k9v9z2wnc8pd6rh
window     the next opens in about 58 min 30 s (702 blocks) at height 5041440
submitted  nonce 5040720, in block 5040723, 1 min 7 s ago
cycles     1: 1 submitted, 0 missed; lag 3.0, at most 3 blocks
balance    12.345000 ALLO, enough for 1,234 epochs
14:12:13Z      5040720 submitted 4.0 s, 3 blocks after it opened

model      tft-btc-168h (ab12cd34ef56), trained on data to 12 d ago, refused at
           90 d
processes  none
log        /var/log/forecastd/submission.log"""
    )


def topic_with(**changes: object) -> DaemonStatus:
    return replace(STATUS, topics=(replace(TOPIC, **changes),))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "alive", "line"),
    [
        (STATUS, False, "daemon     not running, last heartbeat 1 s ago on allora-testnet-1, 14:13:19Z"),
        (STATUS, False, "health     The daemon's process 4711 exited unexpectedly. Look at the end of its"),
        (replace(STATUS, state="ended"), False, "daemon     ended, last heartbeat 1 s ago on allora-testnet-1, 14:13:19Z"),
        (replace(STATUS, mode="continuous", state="stopping"), True, "health     The daemon is shutting down."),
        (replace(STATUS, deadline=NOW + 2 * DAY), True, "           until 2026-09-23T14:13:20Z (in 2 d)"),
        (replace(STATUS, attention="No node answers."), True, "attention  No node answers."),
        (replace(STATUS, watchdog=WatchdogStatus(None, 90.0, 60.0, would_fire=True)), True,
         "health     The daemon's loop has made no progress for 1 min 30 s: the watchdog"),
        (topic_with(window=WindowStatus(True, 5040720, 5040720, 5040780, 42, 210.0)), True,
         "window     open for nonce 5040720, closes in about 3 min 30 s (42 blocks)"),
        (topic_with(window=WindowStatus(True, 5040720, blocks_until_change=42)), True,
         "window     open for nonce 5040720, closes in 42 blocks"),
        (topic_with(window=None), True, "window     none is open at height 5040738"),
        (topic_with(active=False), True, "window     none: the topic is not active"),
        (topic_with(height=None), True, "window     unknown: no node has answered yet"),
        (topic_with(phase="forecast", nonce=5040720, phase_since=NOW - 12), True,
         "working    forecast for nonce 5040720, 12 s so far"),
        (topic_with(last_submitted=None), True, "submitted  nonce 5040720, by an earlier run"),
        (topic_with(last_submitted=None, confirmed_nonce=None), True, "submitted  nothing yet"),
        (topic_with(balance_uallo=10**24, runway_epochs=10**18), True,
         "balance    1,000,000.000000 ALLO, enough for more than 100,000 epochs"),
        (topic_with(runway_epochs=None), True, "balance    12.345000 ALLO"),
        (replace(STATUS, endpoints=(EndpointStatus("grpc+https://one:443", "ok", latency=0.0413),)), True,
         "endpoints  grpc+https://one:443  ok, 41 ms"),
        (replace(STATUS, endpoints=(EndpointStatus("rest+https://two", "behind", lag=500, error="slow"),)), True,
         "endpoints  rest+https://two  behind, 500 blocks behind"),
        (replace(STATUS, streams=(StreamStatus("wss://one/websocket", connected=False, error="refused"),)), True,
         "events     wss://one/websocket  not connected: refused"),
        (replace(STATUS, supervision=SupervisionStatus(replacements=3, quarantined=("old",))), True,
         "processes  none; 3 replaced"),
        (replace(STATUS, supervision=SupervisionStatus(quarantined=("old",))), True, "quarantine old"),
        (replace(STATUS, memory_bytes=91_000_000, open_files=31), True, "memory     91 MB, 31 open files"),
    ],
)  # fmt: skip
def test_situation_is_rendered_with_its_line(status: DaemonStatus, alive: bool | None, line: str) -> None:
    assert line in render(status, alive=alive).splitlines()


@pytest.mark.parametrize(
    ("outcome", "line"),
    [
        (Outcome("skipped", nonce=5040720, check="stale", reason="The newest candle is 3 h old."),
         "14:13:20Z      5040720 skipped   stale: The newest candle is 3 h old."),
        (Outcome("missed", nonce=5040720, reason="two\nlines"), "14:13:20Z      5040720 missed    two lines"),
        (Outcome("already_submitted", nonce=5040720, reason="by an earlier run"),
         "14:13:20Z      5040720 done      by an earlier run"),
        (Outcome("failed", reason="no node"), "14:13:20Z              failed    no node"),
    ],
)  # fmt: skip
def test_outcome_is_rendered_with_its_line(outcome: Outcome, line: str) -> None:
    status = replace(STATUS, topics=(TOPIC.with_outcome(outcome, NOW),))
    assert line in render(status).splitlines()


def test_foreign_text_is_escaped_and_fits_80_columns() -> None:
    control_characters = "\x1b[2J\x1b]0;title\x07\r\n[bold]" + "x" * 200
    topic = TOPIC.with_outcome(Outcome("failed", reason=control_characters), NOW)
    status = replace(
        STATUS,
        attention=control_characters,
        topics=(topic,),
        endpoints=(EndpointStatus(control_characters, "quarantined", error=control_characters),),
        streams=(StreamStatus(control_characters, connected=False, error=control_characters),),
        models=(ModelStatus(control_characters, "ab12"),),
        supervision=SupervisionStatus(quarantined=(control_characters,)),
        log_file=control_characters,
    )
    text = render(status)
    assert not re.search(r"[^\n -~]", text)
    assert "[bold]" in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_daemon_without_data_is_rendered() -> None:
    text = render(DaemonStatus(1, NOW, NOW, 0.0, "daemon", "starting", "local", topics=(TopicStatus(67),)))
    assert text.splitlines()[0] == "daemon     starting, on local for 0 s, since 14:13:20Z, pid 1"
    assert "no wallet yet" in text


def test_format_time_of_other_day_has_date_and_tolerates_clock_reset() -> None:
    assert (format_time(NOW, NOW), format_time(NOW - DAY, NOW)) == ("14:13:20Z", "09-20 14:13Z")
    assert format_ago(NOW + 90, NOW) == "in 1 min 30 s"
