"""How the doctor evaluates its inputs: pure functions and checks of small files."""

from __future__ import annotations

from pathlib import Path

import pytest

from forecastd.chain.endpoint_health import EndpointState
from forecastd.chain.endpoint_pool import EndpointReport
from forecastd.doctor import Finding, Level, worst_level
from forecastd.doctor.finding import split_message
from forecastd.doctor.host import check_services, check_settings, find_misspelled
from forecastd.doctor.network import evaluate_balance, evaluate_clock, evaluate_endpoints
from forecastd.settings import DEFAULTS

NAMES = set(DEFAULTS)
NOON = 1_700_000_000.0


@pytest.mark.parametrize(
    ("offset", "level", "words"),
    [
        (0, Level.OK, "0 s after"),
        (30, Level.OK, "30 s after"),
        (-30, Level.OK, "30 s before"),
        (31, Level.WARN, "31 s after"),
        (-31, Level.WARN, "31 s before"),
        (86_400, Level.WARN, "after"),
        (-86_401, Level.FAIL, "1 d before"),
        (3 * 86_400, Level.FAIL, "3 d after"),
    ],
)
def test_clock_offset_sets_the_level(offset: float, level: Level, words: str) -> None:
    finding = evaluate_clock(NOON + offset, NOON)
    assert finding.level is level
    assert words in finding.message
    assert bool(finding.fix) is (level is not Level.OK)
    assert ("stalled" in finding.fix) is (offset > 30), "only a clock ahead looks like a stalled chain"


@pytest.mark.parametrize(
    ("balance", "cost", "level", "words"),
    [
        (0, 10, Level.FAIL, "enough for 0 epochs"),
        (9, 10, Level.FAIL, "enough for 0 epochs"),
        (10, 10, Level.WARN, "enough for 1 epoch at"),
        (999, 10, Level.WARN, "enough for 99 epochs"),
        (1000, 10, Level.OK, "enough for 100 epochs"),
        (10**30, 10, Level.OK, "more than 100000 epochs"),
        (0, 0, Level.OK, "free on this network"),
    ],
)
def test_balance_runway_is_reported_in_epochs(balance: int, cost: int, level: Level, words: str) -> None:
    finding = evaluate_balance("allo1x", balance, cost, "the last fee")
    assert finding.level is level
    assert words in finding.message


def report(state: EndpointState, *, error: str = "") -> EndpointReport:
    return EndpointReport("a:1", state, "localnet", 7, 12, 0.02, 0, error)


@pytest.mark.parametrize(
    ("states", "levels"),
    [
        ((EndpointState.OK,), (Level.OK,)),
        ((EndpointState.QUARANTINED,), (Level.FAIL,)),
        ((EndpointState.WRONG_CHAIN, EndpointState.UNTRIED), (Level.FAIL, Level.FAIL)),
        ((EndpointState.OK, EndpointState.QUARANTINED), (Level.OK, Level.WARN)),
        ((EndpointState.BEHIND, EndpointState.WRONG_CHAIN), (Level.WARN, Level.WARN)),
    ],
)
def test_endpoint_bad_fails_only_without_a_usable_one(
    states: tuple[EndpointState, ...], levels: tuple[Level, ...]
) -> None:
    findings = evaluate_endpoints([report(state, error="refused") for state in states])
    assert tuple(finding.level for finding in findings) == levels
    assert all(finding.fix for finding in findings if finding.level is not Level.OK)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("TOPICID", "TOPIC_ID"), ("RPC_ENDPOINT", "RPC_ENDPOINTS"), ("TIINGO_KEY", None), ("ALLORA_NETWRK", "ALLORA_NETWORK"),
        ("MNEMONICS", "MNEMONIC"), ("DATASOURCE", "DATA_SOURCE"), ("ALLORA_CHAIN", None), ("FORECASTD_HOME", None),
    ],
)  # fmt: skip
def test_settings_check_misspelled_name_suggests_setting(name: str, suggestion: str | None) -> None:
    assert find_misspelled([name], NAMES) == {name: suggestion}


@pytest.mark.parametrize(
    "name", ["HOME", "PATH", "LANG", "LC_ALL", "TERM", "XDG_STATE_HOME", "LOGNAME", "MAIL", *sorted(NAMES)]
)
def test_settings_check_ignores_unrelated_variables(name: str) -> None:
    assert find_misspelled([name], NAMES) == {}


def test_settings_check_invalid_value_names_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    findings = check_settings({"TOPIC_ID": "not a number"}, {"TOPIC_ID": "the environment", "TOPICID": ".env"})
    assert [finding.level for finding in findings] == [Level.FAIL, Level.WARN]
    assert "TOPIC_ID from the environment: not a number" in findings[0].message
    assert "TOPICID in .env" in findings[1].message


def test_settings_check_readable_secret_file_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / ".env"
    file.write_text("MNEMONIC=abandon ability\n")
    for mode, levels in ((0o644, [Level.WARN, Level.OK]), (0o600, [Level.OK])):
        file.chmod(mode)
        findings = check_settings({}, {"MNEMONIC": ".env"})
        assert [finding.level for finding in findings] == levels
        assert not any("abandon" in finding.message + finding.fix for finding in findings)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [((), Level.OK), ((Level.OK, Level.SKIP), Level.OK), ((Level.WARN, Level.OK), Level.WARN),
     ((Level.WARN, Level.FAIL), Level.FAIL)],
)  # fmt: skip
def test_worst_level_is_the_most_severe(levels: tuple[Level, ...], expected: Level) -> None:
    assert worst_level([Finding("x", level, "") for level in levels]) is expected


@pytest.mark.parametrize(
    ("message", "parts"),
    [
        ("One sentence.", ("One sentence.", "")),
        ("The cause. The fix. Another fix.", ("The cause.", "The fix. Another fix.")),
    ],
)
def test_split_message_gives_cause_and_fix(message: str, parts: tuple[str, str]) -> None:
    assert split_message(message) == parts


UNIT = "[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart=-{program} --daemon\nWorkingDirectory={directory}\n"
PROGRAM = "[program:forecastd]\ncommand={program} --continuous ; why\ndirectory={directory}\n"


@pytest.mark.parametrize("text", [UNIT, PROGRAM])
@pytest.mark.parametrize(
    ("program", "directory", "level"),
    [("/bin/sh", "/", Level.OK), ("/nowhere/python", "/", Level.FAIL), ("/bin/sh", "/nowhere", Level.FAIL),
     ("sh", "%h", Level.OK)],
)  # fmt: skip
def test_service_check_reports_missing_paths(
    tmp_path: Path, text: str, program: str, directory: str, level: Level
) -> None:
    file = tmp_path / "a.service"
    file.write_text(text.format(program=program, directory=directory))
    (finding,) = check_services([file, tmp_path / "absent"])
    assert finding.level is level
    assert level is Level.OK or "/nowhere" in finding.message


def test_service_check_without_file_skips_and_broken_fails(tmp_path: Path) -> None:
    assert check_services([tmp_path / "absent"])[0].level is Level.SKIP
    file = tmp_path / "a.service"
    file.write_text("ExecStart before any section\n")
    assert check_services([file])[0].level is Level.FAIL
