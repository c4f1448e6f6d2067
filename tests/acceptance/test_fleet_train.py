"""`fleet train` as a subprocess: Ctrl-C keeps the best checkpoint, and `--finish` writes a bundle from it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest


@pytest.fixture
def command(root: Path, tmp_path: Path) -> list[str]:
    """The command of a training run that does not end by itself."""
    return [
        sys.executable, str(root / "submit_prediction.py"), "fleet", "train", "--simulate", "4x1", "--until",
        "2026-01-01T00:00:00Z", "--encoder-length", "12", "--encoder-minimum", "6", "--horizon", "6", "--hidden-size", "4",
        "--hidden-continuous-size", "2", "--epochs", "100000", "--patience", "100000", "--batches-per-epoch", "1",
        "--batch-size", "4", "--scored-windows", "4", "--compared-windows", "0", "--accelerator", "cpu",
        "--out", str(tmp_path / "bundle"),
    ]  # fmt: skip


def test_train_interrupted_then_finish_writes_bundle(command: list[str], tmp_path: Path) -> None:
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        output = ""
        while output.count("validation loss") < 2:  # by the second one the first epoch is on disk
            line = process.stdout.readline()
            assert line, "the training ended by itself"
            output += line
        (child,) = psutil.Process(process.pid).children()
        assert not any("torch" in entry.path for entry in psutil.Process(process.pid).memory_maps())
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert errors == "Interrupted. Best checkpoint kept; run the same command again to resume.\n"
    psutil.wait_procs([child], timeout=60)
    assert not child.is_running()
    finished = subprocess.run(
        [*command, "--finish", "--json"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(finished.stdout)["kind"] == "temporal-fusion-transformer-fleet"
    assert finished.stderr == ""
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bundle"]
