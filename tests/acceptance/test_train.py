"""`train` as a subprocess: Ctrl-C keeps the best checkpoint, the same command resumes, `--finish` writes the bundle.

The command's own process never imports torch, and its child ends with it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest


def interrupt_until_exit(process: subprocess.Popen[str]) -> str:
    """Send SIGINT repeatedly until the process has ended; gives its stderr."""
    while True:
        try:
            return process.communicate(timeout=0.005)[1]
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)


@pytest.fixture
def command(root: Path, tmp_path: Path) -> list[str]:
    """A training run that never ends by itself."""
    return [
        sys.executable, str(root / "submit_prediction.py"), "train", "--source", "sample", "--hours", "400",
        "--encoder-length", "12", "--horizon", "6", "--hidden-size", "4", "--epochs", "100000", "--patience", "100000",
        "--batches-per-epoch", "1", "--batch-size", "8", "--out", str(tmp_path / "bundle"), "--accelerator", "cpu",
    ]  # fmt: skip


@contextmanager
def start_training(command: list[str], cwd: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The running command, and its output until the first epoch is saved."""
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        output = ""
        while output.count("validation loss") < 2:  # the second one means that the first epoch is saved
            line = process.stdout.readline()
            assert line, "the training ended by itself"
            output += line
        yield process, output


def test_interrupted_training_resumes_with_same_command(command: list[str], tmp_path: Path) -> None:
    for resumes in (False, True):
        with start_training(command, tmp_path) as (process, output):
            process.send_signal(signal.SIGINT)
            errors = interrupt_until_exit(process) if resumes else process.communicate(timeout=60)[1]
        assert process.returncode == 130
        assert errors == "Interrupted. Best checkpoint kept; run the same command again to resume.\n"
        assert ("resuming the interrupted training" in output) == resumes
        assert "epoch 1:" in output or resumes
        assert not (tmp_path / "bundle").exists()
    done = subprocess.run([*command, "--finish", "--json"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["kind"] == "temporal-fusion-transformer"
    assert done.stderr == ""
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bundle"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_terminated_training_leaves_no_process_and_a_valid_checkpoint(
    number: signal.Signals, command: list[str], tmp_path: Path
) -> None:
    with start_training(command, tmp_path) as (process, _):
        (child,) = psutil.Process(process.pid).children()
        assert not any("torch" in entry.path for entry in psutil.Process(process.pid).memory_maps())
        assert any("torch" in entry.path for entry in child.memory_maps())
        refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert refused.returncode == 5
        assert "Another training run is active" in refused.stderr
        process.send_signal(number)
        errors = process.communicate(timeout=60)[1]
        psutil.wait_procs([child], timeout=60)
    assert not child.is_running()
    assert process.returncode == (130 if number == signal.SIGTERM else -number)
    assert ("Best checkpoint kept" in errors) == (number == signal.SIGTERM)
    import torch

    for name in ("best.ckpt", "last.ckpt"):
        assert torch.load(tmp_path / "bundle.training" / name, weights_only=True)["state_dict"]
