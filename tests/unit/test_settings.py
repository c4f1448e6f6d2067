"""Settings: the order of precedence, clear refusals without the value, and a documented variable each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from forecastd.errors import NeedsHuman
from forecastd.settings import EMBEDDED_MODEL, Settings, load_settings


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_options_beat_the_environment_which_beats_the_file_which_beats_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_settings().topic_id == 67
    (tmp_path / ".env").write_text("TOPIC_ID=1\n")
    assert load_settings().topic_id == 1
    monkeypatch.setenv("TOPIC_ID", "2")
    assert load_settings().topic_id == 2
    assert load_settings(topic_id=3).topic_id == 3
    assert load_settings(topic_id=None).topic_id == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", ()), ("a:1", ("a:1",)), (" a:1 , b:2,", ("a:1", "b:2")), ('["a:1", "b:2"]', ("a:1", "b:2"))],
)
def test_endpoints_are_a_list_by_commas_or_json(
    monkeypatch: pytest.MonkeyPatch, text: str, expected: tuple[str, ...]
) -> None:
    monkeypatch.setenv("RPC_ENDPOINTS", text)
    assert load_settings().rpc_endpoints == expected


@pytest.mark.parametrize(
    ("variable", "value"),
    [("TOPIC_ID", "abc"), ("TOPIC_ID", "0"), ("ALLORA_NETWORK", "moon"), ("FEE_TIER", "x"), ("RPC_ENDPOINTS", "[1")],
)
def test_a_wrong_value_is_named_but_never_shown(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(NeedsHuman) as caught:
        load_settings()
    assert variable in str(caught.value)
    assert f"'{value}'" not in str(caught.value)


def test_secrets_do_not_print(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNEMONIC", "abandon ability able")
    monkeypatch.setenv("TIINGO_API_KEY", "k3y")
    shown = repr(load_settings()) + str(load_settings())
    assert "abandon" not in shown
    assert "k3y" not in shown


def test_the_embedded_model_serves_the_local_network_only() -> None:
    assert load_settings().model_path == EMBEDDED_MODEL
    with pytest.raises(NeedsHuman, match="local network only"):
        _ = load_settings(allora_network="testnet").model_path


def test_state_and_logs_follow_systemd_and_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert load_settings().state == tmp_path / "xdg" / "forecastd"
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/forecastd")
    monkeypatch.setenv("LOGS_DIRECTORY", "/var/log/forecastd")
    assert load_settings().state == Path("/var/lib/forecastd")
    assert load_settings().logs == Path("/var/log/forecastd")
    assert load_settings(state_dir=tmp_path, log_dir=tmp_path).state == tmp_path


def test_every_setting_is_documented_with_its_default(root: Path) -> None:
    documented = dict(re.findall(r"^([A-Z_]+)=(.*)$", (root / ".env.example").read_text(), re.MULTILINE))
    assert set(documented) == {name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        default = field.default
        assert documented[name.upper()] == ("" if default in (None, ()) else str(default)), name
