"""What the doctor makes of figures: pure functions, and the runner's way with checks that fail or hang."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from forecastd.chain.endpoints import EndpointReport
from forecastd.chain.health import Standing
from forecastd.clock import SystemClock
from forecastd.doctor import Finding, Level, worst
from forecastd.doctor.finding import Check, Running, split
from forecastd.doctor.host import check_services, check_settings, misspelt
from forecastd.doctor.network import judge_balance, judge_clock, judge_endpoints
from forecastd.errors import NeedsHuman, SkipEpoch
from forecastd.settings import Settings

NAMES = {name.upper() for name in Settings.model_fields}
NOON = 1_700_000_000.0


@pytest.mark.parametrize(
    ("ahead", "level", "words"),
    [
        (0, Level.OK, "0 s after"),
        (30, Level.OK, "30 s after"),
        (-30, Level.OK, "30 s before"),
        (31, Level.WARN, "31 s after"),
        (-31, Level.WARN, "31 s before"),
        (86_400, Level.WARN, "after"),
        (-86_401, Level.FAIL, "1.0 days"),
        (3 * 86_400, Level.FAIL, "3.0 days"),
    ],
)
def test_the_clock_is_judged_by_the_latest_block(ahead: float, level: Level, words: str) -> None:
    finding = judge_clock(NOON + ahead, NOON)
    assert finding.level is level
    assert words in finding.found
    assert bool(finding.fix) is (level is not Level.OK)
    assert ("stands still" in finding.fix) is (ahead > 30), "only a clock ahead looks like a chain that stands still"


@pytest.mark.parametrize(
    ("balance", "each", "level", "words"),
    [
        (0, 10, Level.FAIL, "enough for 0 epochs"),
        (9, 10, Level.FAIL, "enough for 0 epochs"),
        (10, 10, Level.WARN, "enough for 1 epochs"),
        (999, 10, Level.WARN, "enough for 99 epochs"),
        (1000, 10, Level.OK, "enough for 100 epochs"),
        (10**30, 10, Level.OK, "more than 100000 epochs"),
        (0, 0, Level.OK, "costs nothing"),
    ],
)
def test_the_runway_is_told_in_epochs(balance: int, each: int, level: Level, words: str) -> None:
    finding = judge_balance("allo1x", balance, each, "the last fee")
    assert finding.level is level
    assert words in finding.found


def report(state: Standing, *, error: str = "") -> EndpointReport:
    return EndpointReport("a:1", state, "localnet", 7, 12, 0.02, 0, error)


@pytest.mark.parametrize(
    ("states", "levels"),
    [
        ((Standing.OK,), (Level.OK,)),
        ((Standing.QUARANTINED,), (Level.FAIL,)),
        ((Standing.WRONG_CHAIN, Standing.UNTRIED), (Level.FAIL, Level.FAIL)),
        ((Standing.OK, Standing.QUARANTINED), (Level.OK, Level.WARN)),
        ((Standing.BEHIND, Standing.WRONG_CHAIN), (Level.WARN, Level.WARN)),
    ],
)
def test_a_bad_endpoint_fails_only_when_there_is_no_usable_one(
    states: tuple[Standing, ...], levels: tuple[Level, ...]
) -> None:
    found = judge_endpoints([report(state, error="refused") for state in states])
    assert tuple(finding.level for finding in found) == levels
    assert all(finding.fix for finding in found if finding.level is not Level.OK)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("TOPICID", "TOPIC_ID"), ("RPC_ENDPOINT", "RPC_ENDPOINTS"), ("TIINGO_KEY", None), ("ALLORA_NETWRK", "ALLORA_NETWORK"),
        ("MNEMONICS", "MNEMONIC"), ("DATASOURCE", "DATA_SOURCE"), ("ALLORA_CHAIN", None), ("FORECASTD_HOME", None),
    ],
)  # fmt: skip
def test_a_misspelt_setting_is_noticed_with_the_one_that_is_meant(name: str, meant: str | None) -> None:
    assert misspelt([name], NAMES) == {name: meant}


@pytest.mark.parametrize(
    "name", ["HOME", "PATH", "LANG", "LC_ALL", "TERM", "XDG_STATE_HOME", "LOGNAME", "MAIL", *sorted(NAMES)]
)
def test_a_variable_of_something_else_or_a_true_setting_is_none(name: str) -> None:
    assert misspelt([name], NAMES) == {}


def test_a_value_that_does_not_fit_is_named_with_where_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = check_settings({"TOPIC_ID": "not a number"}, {"TOPIC_ID": "the environment", "TOPICID": ".env"})
    assert [finding.level for finding in found] == [Level.FAIL, Level.WARN]
    assert "TOPIC_ID from the environment: not a number" in found[0].found
    assert "TOPICID in .env" in found[1].found


def test_an_env_file_with_a_secret_that_others_can_read_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / ".env"
    file.write_text("MNEMONIC=abandon ability\n")
    for mode, levels in ((0o644, [Level.WARN, Level.OK]), (0o600, [Level.OK])):
        file.chmod(mode)
        found = check_settings({}, {"MNEMONIC": ".env"})
        assert [finding.level for finding in found] == levels
        assert not any("abandon" in finding.found + finding.fix for finding in found)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def test_checks_go_on_beside_one_that_fails_and_one_that_hangs(threads: ThreadPoolExecutor) -> None:
    never = Event()

    def hang() -> list[Finding]:
        never.wait()
        return []

    def fail() -> list[Finding]:
        raise NeedsHuman("The disk is gone. Put it back.")

    def skip() -> list[Finding]:
        raise SkipEpoch("Stale.")

    def good() -> list[Finding]:
        return [Finding("good", Level.OK, "fine"), Finding("good", Level.WARN, "nearly")]

    checks = [Check("hangs", hang, 0.0), Check("fails", fail), Check("skips", skip), Check("good", good)]
    try:
        found = list(Running(checks, threads, SystemClock()).findings())
    finally:
        never.set()
    assert [(finding.check, finding.level) for finding in found] == [
        ("hangs", Level.FAIL), ("fails", Level.FAIL), ("skips", Level.FAIL), ("good", Level.OK), ("good", Level.WARN),
    ]  # fmt: skip
    assert (found[1].found, found[1].fix) == ("The disk is gone.", "Put it back.")


def test_a_defect_in_a_check_is_not_hidden(threads: ThreadPoolExecutor) -> None:
    def broken() -> list[Finding]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(Running([Check("broken", broken)], threads, SystemClock()).findings())


@pytest.mark.parametrize(
    ("levels", "expected"),
    [((), Level.OK), ((Level.OK, Level.SKIP), Level.OK), ((Level.WARN, Level.OK), Level.WARN),
     ((Level.WARN, Level.FAIL), Level.FAIL)],
)  # fmt: skip
def test_the_gravest_finding_decides(levels: tuple[Level, ...], expected: Level) -> None:
    assert worst([Finding("x", level, "") for level in levels]) is expected


@pytest.mark.parametrize(
    ("message", "parts"),
    [("One sentence.", ("One sentence.", "")), ("It is so. Do that. Or this.", ("It is so.", "Do that. Or this."))],
)
def test_a_message_is_cause_and_fix(message: str, parts: tuple[str, str]) -> None:
    assert split(message) == parts


UNIT = "[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart=-{program} --daemon\nWorkingDirectory={directory}\n"
PROGRAM = "[program:forecastd]\ncommand={program} --continuous ; why\ndirectory={directory}\n"


@pytest.mark.parametrize("text", [UNIT, PROGRAM])
@pytest.mark.parametrize(
    ("program", "directory", "level"),
    [("/bin/sh", "/", Level.OK), ("/nowhere/python", "/", Level.FAIL), ("/bin/sh", "/nowhere", Level.FAIL),
     ("sh", "%h", Level.OK)],
)  # fmt: skip
def test_a_service_file_is_read_for_what_it_names(
    tmp_path: Path, text: str, program: str, directory: str, level: Level
) -> None:
    file = tmp_path / "a.service"
    file.write_text(text.format(program=program, directory=directory))
    (finding,) = check_services([file, tmp_path / "absent"])
    assert finding.level is level
    assert level is Level.OK or "/nowhere" in finding.found


def test_no_service_file_is_nothing_to_look_at_and_a_broken_one_is_told(tmp_path: Path) -> None:
    assert check_services([tmp_path / "absent"])[0].level is Level.SKIP
    file = tmp_path / "a.service"
    file.write_text("ExecStart before any section\n")
    assert check_services([file])[0].level is Level.FAIL
