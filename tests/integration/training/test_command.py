"""The `train` command: any source in, a bundle out, and a clear message when it cannot work."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from cli.main import main
from forecastd.market import features
from forecastd.market.features import FeatureList, load_features, past_matrix
from forecastd.market.sources.sample import SampleSource
from forecastd.training.market import make_training_data
from models.market.bundle import load_market_bundle
from models.market.engine import MarketEngine, verify_market_canary
from models.training import state
from tests.support.training import train_in_process

TINY = (
    "--encoder-length", "12", "--horizon", "6", "--hidden-size", "4", "--epochs", "1", "--batches-per-epoch", "2",
    "--batch-size", "8", "--accelerator", "cpu",
)  # fmt: skip
SAMPLE = ("train", "--source", "sample", "--hours", "500", "--until", "2025-01-01T00:00:00Z", *TINY)


def test_train_on_sample_writes_and_describes_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_in_process(monkeypatch)
    monkeypatch.chdir(tmp_path)
    out = Path("models/mine")
    assert main([*SAMPLE, "--out", str(out)]) == 0
    output = capsys.readouterr().out
    assert "500 rows" in output
    assert "zero return" in output
    assert "forecastd --once --model models/mine" in output
    bundle = load_market_bundle(out)
    assert verify_market_canary(bundle, MarketEngine(bundle)) < 1e-5
    manifest, feature_list = bundle.manifest, load_features(root / "features.json")
    assert (manifest.past, manifest.known) == (feature_list.past, feature_list.known)
    assert (manifest.name, manifest.step, manifest.training.rows) == ("mine", 3600, 500)
    assert (manifest.training.source, manifest.training.synthetic) == ("sample", True)
    assert manifest.training.end == 1_735_689_600
    assert max(len(line) for line in output.splitlines()) <= 80


def test_json_prints_manifest_and_default_output_is_in_state_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--state-dir", str(tmp_path), *SAMPLE, "--json", "--fault", "crash@4"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out) == json.loads((tmp_path / "models" / "btcusd-6h" / "manifest.json").read_text())
    assert re.fullmatch(  # one line on the replaced process
        r"training process \d+ died in phase training, killed by SIGSEGV; process \d+ resumes from the last checkpoint",
        " ".join(output.err.split()),
    )


def test_old_file_is_trained_up_to_its_end(real_candles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_in_process(monkeypatch)
    until = "2019-10-01T00:00:00Z"
    arguments = ["train", "--source", f"file:{real_candles}", "--until", until, "--hours", "600", *TINY]
    assert main([*arguments, "--out", str(tmp_path / "b"), "--json"]) == 0
    training = load_market_bundle(tmp_path / "b").manifest.training
    assert training.end == 1_569_888_000
    assert training.rows == 600
    assert not training.synthetic


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--source", "sample", "--hours", "40"], 5, "at least"),
        (["--source", "nowhere"], 5, "no data source"),
        (["--source", "file:/does/not/exist.csv"], 5, "exist"),
        (["--source", "sample", "--until", "soon"], 2, "--until"),
        (["--levels", "a,b"], 2, "--levels"),
        (["--levels", "0.1,0.9"], 5, "0.5"),
        (["--epochs", "0"], 2, "--epochs"),
        (["--features", "/does/not/exist.json"], 5, "--features"),
        (["--finish"], 5, "without --finish"),
        (["--seed", "4294967296"], 2, "--seed"),
        (["--fault", "headache"], 2, "unknown fault 'headache'"),
    ],
)
def test_impossible_training_exits_with_code_and_reason(
    arguments: list[str], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SAMPLE, *arguments, "--out", str(tmp_path / "b")]) == code
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--levels", "0.5,nan"),
        ("--levels", "inf,0.5"),
        ("--learning-rate", "inf"),
        ("--learning-rate", "nan"),
        ("--dropout", "nan"),
        ("--hidden-size", "5000"),
    ],
)
def test_invalid_option_is_reported_before_fetching(
    option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = f"file:{tmp_path / 'missing.csv'}"
    assert main([*SAMPLE, "--source", source, option, value, "--out", str(tmp_path / "b")]) == 5
    assert option in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_feature_with_lookahead_stops_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peek = features.PastFeature(lambda grid: np.append(grid.close[1:], np.nan), 1)
    monkeypatch.setitem(features.PAST_FEATURES, "peek", peek)
    (tmp_path / "list.json").write_text('["ret_1h", "peek", "hour_sin"]')
    out = tmp_path / "below" / "b"
    assert main([*SAMPLE, "--features", str(tmp_path / "list.json"), "--out", str(out)]) == 5
    assert "peek looks into the future" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["list.json"]


def test_concurrent_training_is_reported_before_fetching(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "b"
    with state.lock_output(out):
        assert main([*SAMPLE, "--source", f"file:{tmp_path / 'missing.csv'}", "--out", str(out), "--force"]) == 5
        assert "Another training run is active" in capsys.readouterr().err.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []


def test_unusable_output_is_reported_before_fetching(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "bundle").mkdir()
    for out, flags, message in (("bundle", [], "--force"), ("file", [], "--force"), ("file", ["--force"], "is a file"),
                             ("file/below", [], "Cannot write to")):  # fmt: skip
        assert main([*SAMPLE, "--source", "file:/does/not/exist", "--out", str(tmp_path / out), *flags]) == 5
        assert message in capsys.readouterr().err.replace("\n", " ")
    assert (tmp_path / "file").read_text() == "mine"


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Limit the size of files for this process and those it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "b"
    for limit in (10_000, 100_000):  # too small for the rows; enough for the rows, too small for a checkpoint
        with full_disk(limit):
            assert main([*SAMPLE, "--out", str(out)]) == 5
        output = capsys.readouterr().err.replace("\n", " ")
        assert f"Cannot write {out}: " in output
        assert "Make room" in output
    assert state.load(out) is not None  # the rows are kept for the next attempt
    train_in_process(monkeypatch)
    assert main([*SAMPLE, "--out", str(out)]) == 0
    assert "resuming the interrupted training" in capsys.readouterr().out


def test_training_without_surviving_process_needs_human(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JOB_ATTEMPTS", "1")
    assert main([*SAMPLE, "--out", str(tmp_path / "b"), "--fault", "exit:7@4"]) == 5
    (output,) = capsys.readouterr().err.splitlines()
    assert "No process completed the training" in output
    assert "exit status 7" in output
    assert "same command again to resume" in output


def test_training_rows_do_not_cross_gaps() -> None:
    candles = SampleSource("btcusd").fetch(1_700_000_000, 1_700_000_000 + 300 * 3600, 1.8e9)
    keep = np.ones(len(candles), dtype=bool)
    keep[100:110] = False
    feature_list = FeatureList(("ret_24h", "hour_sin"))
    data = make_training_data(candles.take(keep), feature_list)
    assert len(data) == 290
    assert np.array_equal(data.target, np.log(candles.close[keep]))
    assert np.isnan(data.past[114:124]).all()  # no candle 24 h earlier
    assert np.array_equal(data.past[124:], past_matrix(feature_list.past, candles)[134:])
    assert make_training_data(candles, feature_list).data_sha256 != data.data_sha256
