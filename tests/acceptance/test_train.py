"""`train` as a subprocess: Ctrl-C keeps the best checkpoint, the same command goes on, `--finish` writes the bundle."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path


def impatient(process: subprocess.Popen[str]) -> str:
    """Ctrl-C again and again until the process has ended; gives its errors."""
    while True:
        try:
            return process.communicate(timeout=0.005)[1]
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)


def test_an_interrupted_training_says_how_to_go_on_and_does(root: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, str(root / "submit_prediction.py"), "train", "--source", "sample", "--hours", "400",
        "--encoder-length", "12", "--horizon", "6", "--hidden-size", "4", "--epochs", "100000", "--patience", "100000",
        "--batches-per-epoch", "1", "--batch-size", "8", "--out", str(tmp_path / "bundle"), "--accelerator", "cpu",
    ]  # fmt: skip
    for goes_on in (False, True):
        with subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            told = ""
            while told.count("validation loss") < 2:  # at the second one the first epoch is on disk
                line = process.stdout.readline()
                assert line, "the training ended by itself"
                told += line
            process.send_signal(signal.SIGINT)
            errors = impatient(process) if goes_on else process.communicate(timeout=60)[1]
        assert process.returncode == 130
        assert errors == "Interrupted. Best checkpoint kept; run the same command again to go on.\n"
        assert ("going on with the interrupted training" in told) == goes_on
        assert "epoch 1:" in told or goes_on
        assert not (tmp_path / "bundle").exists()
    done = subprocess.run([*command, "--finish", "--json"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["kind"] == "temporal-fusion-transformer"
    assert done.stderr == ""
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bundle"]
