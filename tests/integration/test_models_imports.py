"""Prediction stays small: what runs a bundle imports none of the libraries that made it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "lightning", "pytorch_forecasting", "pandas", "sklearn", "scipy", "onnxruntime")


@pytest.mark.parametrize(
    "modules",
    [
        "models.base, models.bundle, models.engines, models.tft",
        "models.fleet.engines, models.fleet.folded",
        "models.training, models.workdir, cli.train",
    ],
)
def test_nothing_heavy_is_imported(modules: str) -> None:
    script = f"import {modules}, sys; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_manifest_is_read_without_safetensors() -> None:
    script = "import models.manifest, sys; print('numpy' in sys.modules, 'safetensors' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"
