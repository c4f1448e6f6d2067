"""The `data` commands: ranges, exports, exit codes, and the fake Tiingo over HTTP."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import main
from forecastd.market.sources.file import FileSource

REFERENCE_TIME = "2023-11-14T22:00:30Z"


@pytest.fixture(autouse=True)
def own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STATE_DIR", str(tmp_path / "state"))


def test_inspect_prints_description_and_checks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", "--source", "sample", "--as-of", REFERENCE_TIME, "--hours", "48"]) == 0
    text = capsys.readouterr().out
    assert "48, 2023-11-12T22:00:00Z to 2023-11-14T22:00:00Z" in text
    assert "synthetic" in text
    assert "refused" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_inspect_refused_candles_exit_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        f"2023-11-14 {hour:02d}:00,9,9,9,{price},1"
        for hour, price in enumerate([9, 9, 900, 9, 9, 9, 9, 9, 9])
        if hour != 5
    ]
    (tmp_path / "bad.csv").write_text("\n".join(["time,open,high,low,close,volume", *rows]))
    assert main(["data", "inspect", "--source", "file:bad.csv", "--as-of", "2023-11-14T09:00:00Z", "--json"]) == 4
    document = json.loads(capsys.readouterr().out)
    assert document["gaps"] == [["2023-11-14T05:00:00Z", 1]]
    assert {name for name, reason in document["checks"].items() if reason} == {"gap", "inconsistent", "spike"}


def test_fetch_json_prints_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "fetch", "--source", "sample:4", "--as-of", REFERENCE_TIME, "--hours", "5", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["source"], document["rows"], document["synthetic"]) == ("sample:4", 5, True)
    assert document["end"] == "2023-11-14T22:00:00Z"


def test_export_range_is_half_open(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--start", "2023-11-14T05:00:00Z", "--end", "2023-11-14T09:00:00Z", "--as-of", REFERENCE_TIME]
    assert main(["data", "export", "-", "--source", "sample", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("# forecastd source=sample synthetic=true")
    assert [line[:20] for line in lines[2:]] == [f"2023-11-14T{hour:02d}:00:00Z" for hour in (5, 6, 7, 8)]


def test_exported_file_is_a_source(tmp_path: Path) -> None:
    path = "out/candles.parquet"
    arguments = ["data", "export", path, "--source", "sample", "--as-of", REFERENCE_TIME, "--hours", "30"]
    assert main(arguments) == 0
    assert len(FileSource(tmp_path / "out" / "candles.parquet", "btcusd").fetch(0, 2**33, 4e9)) == 30
    assert main(arguments) == 5
    assert main([*arguments, "--force"]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--source", "file:none.csv"], 5, "no file"),
        (["--source", "file:."], 5, "directory"),
        (["--source", "nowhere"], 5, "The allowed forms are"),
        (["--source", "tiingo"], 5, "TIINGO_API_KEY"),
        (["--as-of", "noon"], 2, "ISO 8601"),
        (["--hours", "0"], 2, "hours"),
    ],
)
def test_invalid_options_have_their_exit_code(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "inspect", *arguments]) == code
    output = capsys.readouterr()
    assert message in output.err
    assert output.out == ""


def test_fetch_from_fake_tiingo_over_http(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TIINGO_API_KEY", "k3y-of-a-test")
    serve = ["data", "fake-tiingo", "--source", "sample", "--port", "0", "--require-key", "--json"]
    serve += ["--as-of", REFERENCE_TIME, "--fault", "html@first=1"]
    command = [sys.executable, "-c", "from cli.main import run; run()", *serve]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        document = json.loads(server.stdout.readline())
        monkeypatch.setenv("TIINGO_URL", document["url"])
        fetch = ["data", "fetch", "--source", "tiingo", "--as-of", REFERENCE_TIME, "--hours", "24", "--json"]
        assert main(fetch) == 0
        first = json.loads(capsys.readouterr().out)
        assert main(fetch) == 0
        assert json.loads(capsys.readouterr().out)["sha256"] == first["sha256"]
        server.send_signal(signal.SIGTERM)
        _, summary = server.communicate(timeout=30)
    assert server.returncode == 0
    assert summary.startswith("Served 2 requests")
    assert first["rows"] == 24
    assert first["synthetic"]
    assert first["start"] == "2023-11-13T22:00:00Z"


def test_fetch_from_unreachable_server_exits_6(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TIINGO_URL", "http://127.0.0.1:9")
    assert main(["data", "fetch", "--source", "tiingo"]) == 6
    assert "cannot be reached" in capsys.readouterr().err
