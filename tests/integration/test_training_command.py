"""`train` as a user meets it: any source in, a bundle out, and a clear end when it cannot work."""

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
from forecastd import features
from forecastd.features import FeatureList, load_features, past_matrix
from forecastd.sources.sample import SampleSource
from forecastd.training import training_data
from models import workdir
from models.bundle import load_bundle
from models.engines import load_engine, verify_canary

TINY = (
    "--encoder-length", "12", "--horizon", "6", "--hidden-size", "4", "--epochs", "1", "--batches-per-epoch", "2",
    "--batch-size", "8", "--accelerator", "cpu",
)  # fmt: skip
SAMPLE = ("train", "--source", "sample", "--hours", "500", "--until", "2025-01-01T00:00:00Z", *TINY)


def test_a_bundle_is_trained_on_the_sample_and_described(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path("models/mine")
    assert main([*SAMPLE, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "500 rows" in told
    assert "zero return" in told
    assert "forecastd --once --model models/mine" in told
    bundle = load_bundle(out)
    assert verify_canary(bundle, load_engine(bundle)) < 1e-5
    manifest, listed = bundle.manifest, load_features(root / "features.json")
    assert (manifest.past, manifest.known) == (listed.past, listed.known)
    assert (manifest.name, manifest.step, manifest.training.rows) == ("mine", 3600, 500)
    assert (manifest.training.source, manifest.training.synthetic) == ("sample", True)
    assert manifest.training.end == 1_735_689_600
    assert max(len(line) for line in told.splitlines()) <= 80


def test_json_gives_the_manifest_and_nothing_else_and_the_bundle_goes_below_the_state_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--state-dir", str(tmp_path), *SAMPLE, "--json", "--fault", "crash@4"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == json.loads((tmp_path / "models" / "btcusd-6h" / "manifest.json").read_text())
    assert re.fullmatch(  # one line on the process that was replaced
        r"training process \d+ died in phase training, killed by SIGSEGV; process \d+ goes on from the last checkpoint",
        " ".join(told.err.split()),
    )


def test_a_file_that_ends_long_ago_is_trained_on_where_it_ends(real_candles: Path, tmp_path: Path) -> None:
    until = "2019-10-01T00:00:00Z"
    arguments = ["train", "--source", f"file:{real_candles}", "--until", until, "--hours", "600", *TINY]
    assert main([*arguments, "--out", str(tmp_path / "b"), "--json"]) == 0
    training = load_bundle(tmp_path / "b").manifest.training
    assert training.end == 1_569_888_000
    assert training.rows == 600
    assert not training.synthetic


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
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
        (["--fault", "headache"], 2, "no fault 'headache'"),
    ],
)
def test_what_cannot_be_trained_ends_with_a_code_and_a_reason(
    arguments: list[str], code: int, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SAMPLE, *arguments, "--out", str(tmp_path / "b")]) == code
    assert told in capsys.readouterr().err
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
def test_an_option_without_sense_is_told_before_anything_is_fetched(
    option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = f"file:{tmp_path / 'missing.csv'}"
    assert main([*SAMPLE, "--source", source, option, value, "--out", str(tmp_path / "b")]) == 5
    assert option in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_feature_that_looks_into_the_future_stops_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peek = features.PastFeature(lambda grid: np.append(grid.close[1:], np.nan), 1)
    monkeypatch.setitem(features.PAST, "peek", peek)
    (tmp_path / "list.json").write_text('["ret_1h", "peek", "hour_sin"]')
    out = tmp_path / "below" / "b"
    assert main([*SAMPLE, "--features", str(tmp_path / "list.json"), "--out", str(out)]) == 5
    assert "peek looks into the future" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["list.json"]


def test_a_training_beside_another_is_told_before_anything_is_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "b"
    with workdir.hold(out):
        assert main([*SAMPLE, "--source", f"file:{tmp_path / 'missing.csv'}", "--out", str(out), "--force"]) == 5
        assert "Another training is at work" in capsys.readouterr().err.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_in_the_way_is_told_before_anything_is_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "bundle").mkdir()
    for out, flags, told in (("bundle", [], "--force"), ("file", [], "--force"), ("file", ["--force"], "is a file"),
                             ("file/below", [], "cannot be written")):  # fmt: skip
        assert main([*SAMPLE, "--source", "file:/does/not/exist", "--out", str(tmp_path / out), *flags]) == 5
        assert told in capsys.readouterr().err.replace("\n", " ")
    assert (tmp_path / "file").read_text() == "mine"


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file may be longer than this, for this process and those it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "b"
    for room in (10_000, 100_000):  # too little for the rows; enough for them, and too little for a checkpoint
        with full_disk(room):
            assert main([*SAMPLE, "--out", str(out)]) == 5
        told = capsys.readouterr().err.replace("\n", " ")
        assert f"Cannot write {out}: " in told
        assert "Make room" in told
    assert workdir.find(out) is not None  # the rows are kept for the next attempt
    assert main([*SAMPLE, "--out", str(out)]) == 0
    assert "going on with the interrupted training" in capsys.readouterr().out


def test_when_no_process_can_train_a_person_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JOB_ATTEMPTS", "1")
    assert main([*SAMPLE, "--out", str(tmp_path / "b"), "--fault", "exit:7@4"]) == 5
    (told,) = capsys.readouterr().err.splitlines()
    assert "No process brought the training to its end" in told
    assert "exit status 7" in told
    assert "same command goes on" in told


def test_rows_are_made_of_candles_without_a_look_across_gaps() -> None:
    candles = SampleSource("btcusd").fetch(1_700_000_000, 1_700_000_000 + 300 * 3600, 1.8e9)
    keep = np.ones(len(candles), dtype=bool)
    keep[100:110] = False
    listed = FeatureList(("ret_24h", "hour_sin"))
    data = training_data(candles.take(keep), listed)
    assert len(data) == 290
    assert np.array_equal(data.target, np.log(candles.close[keep]))
    assert np.isnan(data.past[114:124]).all()  # 24 h before them there was no candle
    assert np.array_equal(data.past[124:], past_matrix(listed.past, candles)[134:])
    assert training_data(candles, listed).data_sha256 != data.data_sha256
