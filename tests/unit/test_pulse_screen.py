"""What the screen says of a daemon, in 80 columns: the verdict first, and nothing that a terminal would obey."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from cli.pulse_screen import clock_time, pulse_screen, since, span
from forecastd.outcome import Outcome
from forecastd.pulse import (
    EndpointPulse,
    ModelPulse,
    Pulse,
    StreamPulse,
    SupervisionPulse,
    TopicPulse,
    WatchdogPulse,
    WindowPulse,
)

NOW = 1_790_000_000.0  # 2026-09-21T14:13:20Z
DAY = 86_400.0
TOPIC = TopicPulse(
    67, "allo1w0xya4rcpmm5d9zsdmv3fa4k9v9z2wnc8pd6rh", active=True, height=5040738, height_age=2.0, epoch_length=720,
    newest_nonce=5040720, window=WindowPulse(False, None, 5041440, 5041500, 702, 3510.0), balance_uallo=12_345 * 10**15,
    runway_epochs=1234,
).after(Outcome("submitted", nonce=5040720, height=5040723, stages={"data": 1.5, "submit": 2.5}), NOW - 67)  # fmt: skip
PULSE = Pulse(
    4711, NOW - 2.5 * DAY, NOW - 1, 2.5 * DAY, "daemon", "running", "testnet", chain_id="allora-testnet-1", topics=(TOPIC,),
    models=(ModelPulse("tft-btc-168h", "ab12cd34ef567890", NOW - 12 * DAY, NOW - DAY, 90 * DAY),),
    log="/var/log/forecastd/submission.log",
)  # fmt: skip


def shown(pulse: Pulse, *, alive: bool | None = True) -> str:
    console = Console(width=80, file=io.StringIO(), highlight=False)
    console.print(pulse_screen(pulse, NOW, alive=alive))
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def test_a_daemon_that_is_well() -> None:
    assert (
        shown(PULSE)
        == """\
daemon     on allora-testnet-1 for 2 d 12 h, since 09-19 02:13Z, pid 4711
health     good

topic 67   allo1w0xya4rcpmm5d9zsdmv3fa4k9v9z2wnc8pd6rh
window     the next opens in about 58 min 30 s (702 blocks) at height 5041440
submitted  nonce 5040720, in block 5040723, 1 min 7 s ago
cycles     1: 1 submitted, 0 missed; lag 3.0, at most 3 blocks
balance    12.345000 ALLO, enough for 1,234 epochs
14:12:13Z      5040720 submitted 4.0 s, 3 blocks after it opened

model      tft-btc-168h (ab12cd34ef56), learnt from data to 12 d ago, refused at
           90 d
processes  none
log        /var/log/forecastd/submission.log"""
    )


def of(**changes: object) -> Pulse:
    return replace(PULSE, topics=(replace(TOPIC, **changes),))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pulse", "alive", "line"),
    [
        (PULSE, False, "daemon     not running, last heard of 1 s ago on allora-testnet-1, 14:13:19Z"),
        (PULSE, False, "health     The daemon's process 4711 is gone, and it had not been told to end."),
        (replace(PULSE, state="ended"), False, "daemon     ended, last heard of 1 s ago on allora-testnet-1, 14:13:19Z"),
        (replace(PULSE, mode="continuous", state="stopping"), True, "health     The daemon is ending."),
        (replace(PULSE, deadline=NOW + 2 * DAY), True, "           until 2026-09-23T14:13:20Z (in 2 d)"),
        (replace(PULSE, trouble="No node answers."), True, "trouble    No node answers."),
        (replace(PULSE, watchdog=WatchdogPulse(None, 90.0, 60.0, would_fire=True)), True,
         "health     The daemon's loop has made no progress for 90 s: the watchdog would"),
        (of(window=WindowPulse(True, 5040720, 5040720, 5040780, 42, 210.0)), True,
         "window     open for nonce 5040720, closes in about 3 min 30 s (42 blocks)"),
        (of(window=WindowPulse(True, 5040720, changes_in_blocks=42)), True,
         "window     open for nonce 5040720, closes in 42 blocks"),
        (of(window=None), True, "window     none is open at height 5040738"),
        (of(active=False), True, "window     none: the topic is not active"),
        (of(height=None), True, "window     not known: no node has answered yet"),
        (of(phase="forecast", nonce=5040720, phase_since=NOW - 12), True,
         "at work    forecast for nonce 5040720, 12 s so far"),
        (of(last_submitted=None), True, "submitted  nonce 5040720, by an earlier run"),
        (of(last_submitted=None, confirmed_nonce=None), True, "submitted  nothing yet"),
        (of(balance_uallo=10**24, runway_epochs=10**18), True,
         "balance    1,000,000.000000 ALLO, enough for more than 100,000 epochs"),
        (of(runway_epochs=None), True, "balance    12.345000 ALLO"),
        (replace(PULSE, endpoints=(EndpointPulse("grpc+https://one:443", "ok", latency=0.0413),)), True,
         "endpoints  grpc+https://one:443  ok, 41 ms"),
        (replace(PULSE, endpoints=(EndpointPulse("rest+https://two", "behind", lag=500, error="slow"),)), True,
         "endpoints  rest+https://two  behind, 500 blocks behind"),
        (replace(PULSE, streams=(StreamPulse("wss://one/websocket", connected=False, error="refused"),)), True,
         "events     wss://one/websocket  not connected: refused"),
        (replace(PULSE, supervision=SupervisionPulse(replacements=3, quarantined=("old",))), True,
         "processes  none; 3 replaced"),
        (replace(PULSE, supervision=SupervisionPulse(quarantined=("old",))), True, "quarantine old"),
        (replace(PULSE, memory_bytes=91_000_000, open_files=31), True, "memory     91 MB, 31 files open"),
    ],
)  # fmt: skip
def test_what_is_told_of_each_situation(pulse: Pulse, alive: bool | None, line: str) -> None:
    assert line in shown(pulse, alive=alive).splitlines()


@pytest.mark.parametrize(
    ("outcome", "line"),
    [
        (Outcome("skipped", nonce=5040720, check="stale", reason="The newest candle is 3 h old."),
         "14:13:20Z      5040720 skipped   stale: The newest candle is 3 h old."),
        (Outcome("missed", nonce=5040720, reason="two\nlines"), "14:13:20Z      5040720 missed    two lines"),
        (Outcome("already_submitted", nonce=5040720, reason="by an earlier run"),
         "14:13:20Z      5040720 was there by an earlier run"),
        (Outcome("failed", reason="no node"), "14:13:20Z              failed    no node"),
    ],
)  # fmt: skip
def test_how_each_outcome_looks(outcome: Outcome, line: str) -> None:
    pulse = replace(PULSE, topics=(TOPIC.after(outcome, NOW),))
    assert line in shown(pulse).splitlines()


def test_what_others_wrote_is_no_command_to_the_terminal_and_nothing_is_wider_than_80_columns() -> None:
    nasty = "\x1b[2J\x1b]0;title\x07\r\n[bold]" + "x" * 200
    topic = TOPIC.after(Outcome("failed", reason=nasty), NOW)
    pulse = replace(
        PULSE,
        trouble=nasty,
        topics=(topic,),
        endpoints=(EndpointPulse(nasty, "quarantined", error=nasty),),
        streams=(StreamPulse(nasty, connected=False, error=nasty),),
        models=(ModelPulse(nasty, "ab12"),),
        supervision=SupervisionPulse(quarantined=(nasty,)),
        log=nasty,
    )
    text = shown(pulse)
    assert not re.search(r"[^\n -~]", text)
    assert "[bold]" in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_a_daemon_that_knows_nothing_yet_is_shown() -> None:
    text = shown(Pulse(1, NOW, NOW, 0.0, "daemon", "starting", "local", topics=(TopicPulse(67),)))
    assert text.splitlines()[0] == "daemon     starting, on local for 0 s, since 14:13:20Z, pid 1"
    assert "no wallet yet" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s"), (0, "0 s"), (0.6, "1 s"), (59.6, "1 min"), (61, "1 min 1 s"), (3600, "1 h"), (3605, "1 h"),
     (7260, "2 h 1 min"), (86_400, "1 d"), (90_000, "1 d 1 h"), (400 * DAY, "400 d")],
)  # fmt: skip
def test_a_length_of_time_in_two_units(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_times_of_another_day_bear_their_date_and_a_clock_that_was_put_back_is_no_error() -> None:
    assert (clock_time(NOW, NOW), clock_time(NOW - DAY, NOW)) == ("14:13:20Z", "09-20 14:13Z")
    assert since(NOW + 90, NOW) == "in 1 min 30 s"
