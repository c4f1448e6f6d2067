"""Settings: precedence, errors that do not show the value, and a documented variable for each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from forecastd.errors import NeedsHuman
from forecastd.settings import DEFAULTS, DEMO_MODEL, RENAMED_VARIABLES, Settings, load_settings


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_settings_precedence_is_options_environment_file_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_settings().topic.id == 67
    (tmp_path / ".env").write_text("TOPIC_ID=1\n")
    assert load_settings().topic.id == 1
    monkeypatch.setenv("TOPIC_ID", "2")
    assert load_settings().topic.id == 2
    assert load_settings(topic_id=3).topic.id == 3
    assert load_settings(topic_id=None).topic.id == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", ()), ("a:1", ("a:1",)), (" a:1 , b:2,", ("a:1", "b:2")), ('["a:1", "b:2"]', ("a:1", "b:2"))],
)
def test_settings_endpoint_list_accepts_commas_or_json(
    monkeypatch: pytest.MonkeyPatch, text: str, expected: tuple[str, ...]
) -> None:
    monkeypatch.setenv("RPC_ENDPOINTS", text)
    assert load_settings().chain.rpc_endpoints == expected


@pytest.mark.parametrize(
    ("variable", "value"),
    [("TOPIC_ID", "abc"), ("TOPIC_ID", "0"), ("ALLORA_NETWORK", "moon"), ("FEE_TIER", "x"), ("RPC_ENDPOINTS", "[1")],
)
def test_settings_invalid_value_is_named_but_not_shown(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(NeedsHuman) as error:
        load_settings()
    assert variable in str(error.value)
    assert f"'{value}'" not in str(error.value)


def test_settings_secrets_do_not_print(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNEMONIC", "abandon ability able")
    monkeypatch.setenv("TIINGO_API_KEY", "k3y")
    text = repr(load_settings()) + str(load_settings())
    assert "abandon" not in text
    assert "k3y" not in text


def test_settings_demo_model_is_for_local_network_only() -> None:
    assert load_settings().model_path == DEMO_MODEL
    with pytest.raises(NeedsHuman, match="local network only"):
        _ = load_settings(allora_network="testnet").model_path


def test_settings_directories_follow_systemd_and_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert load_settings().state_path == tmp_path / "xdg" / "forecastd"
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/forecastd")
    monkeypatch.setenv("LOGS_DIRECTORY", "/var/log/forecastd")
    assert load_settings().state_path == Path("/var/lib/forecastd")
    assert load_settings().log_path == Path("/var/log/forecastd")
    assert load_settings(state_dir=tmp_path, log_dir=tmp_path).state_path == tmp_path


def test_settings_are_documented_with_defaults(root: Path) -> None:
    documented = dict(re.findall(r"^([A-Z_]+)=(.*)$", (root / ".env.example").read_text(), re.MULTILINE))
    assert set(documented) == set(DEFAULTS)
    for name, default in DEFAULTS.items():
        assert documented[name] == ("" if default in (None, ()) else str(default)), name


def test_settings_empty_value_is_unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = load_settings()
    (tmp_path / ".env").write_text("".join(f"{name}=\n" for name in DEFAULTS))
    assert load_settings() == plain
    (tmp_path / ".env").unlink()
    for empty in ("", "  "):
        for name in DEFAULTS:
            monkeypatch.setenv(name, empty)
        assert load_settings() == plain
    assert load_settings(**dict.fromkeys(map(str.lower, DEFAULTS), "")) == plain


def test_settings_empty_value_falls_back_to_lower_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("TOPIC_ID=5\n")
    monkeypatch.setenv("TOPIC_ID", "")
    assert load_settings(topic_id="").topic.id == 5


def test_settings_example_file_changes_nothing(tmp_path: Path, root: Path) -> None:
    (tmp_path / "mnemonic").write_text("not a real secret")
    plain = load_settings()
    (tmp_path / ".env").write_text((root / ".env.example").read_text())
    assert load_settings() == plain
    assert load_settings().systemd.credentials_directory is None


def test_settings_credentials_directory_must_be_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", ".")
    with pytest.raises(NeedsHuman, match=r"CREDENTIALS_DIRECTORY.*absolute"):
        load_settings()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/forecastd.service")
    assert load_settings().systemd.credentials_directory == Path("/run/credentials/forecastd.service")


@pytest.mark.parametrize(("old", "new"), RENAMED_VARIABLES.items())
@pytest.mark.parametrize("in_file", [False, True])
def test_settings_old_variable_name_is_refused_with_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, in_file: bool
) -> None:
    assert new in DEFAULTS
    if in_file:
        (tmp_path / ".env").write_text(f"{old}=20\n")
    else:
        monkeypatch.setenv(old, "20")
    with pytest.raises(NeedsHuman, match=f"{old}: it is now called {new}"):
        load_settings()


def test_settings_empty_old_variable_is_ignored(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("".join(f"{old}=\n" for old in RENAMED_VARIABLES))
    assert load_settings() == Settings.from_values({})


@pytest.mark.parametrize("symbol", ["BTCUSD", "BTC/USD", "btc-usd", " BtcUsd "])
def test_settings_symbol_is_normalized(symbol: str) -> None:
    assert load_settings(symbol=symbol).source.symbol == "btcusd"


@pytest.mark.parametrize("symbol", ["/", "btc€", "ß"])
def test_settings_invalid_symbol_is_refused(symbol: str) -> None:
    with pytest.raises(NeedsHuman, match=r"SYMBOL.*such as btcusd"):
        load_settings(symbol=symbol)


@pytest.mark.parametrize("value", ["[" * 100_000, "a\0b"])
def test_settings_invalid_endpoint_list_is_refused(value: str) -> None:
    with pytest.raises(NeedsHuman, match="RPC_ENDPOINTS"):
        load_settings(rpc_endpoints=value)
