"""Prediction stays small: what runs a bundle imports none of the libraries that made it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY_LIBRARIES = ("torch", "lightning", "pytorch_forecasting", "pandas", "sklearn", "scipy", "onnxruntime")


@pytest.mark.parametrize(
    "modules",
    [
        "models.base, models.bundle, models.engines, models.tft",
        "models.fleet.engines, models.fleet.folded",
        "models.training.run, models.workdir, cli.train",
    ],
)
def test_prediction_modules_import_no_heavy_library(modules: str) -> None:
    script = f"import {modules}, sys; print(*(name for name in {HEAVY_LIBRARIES} if name in sys.modules))"
    completed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert completed.stdout.strip() == ""


def test_manifest_module_imports_no_safetensors() -> None:
    script = "import models.manifest, sys; print('numpy' in sys.modules, 'safetensors' in sys.modules)"
    completed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert completed.stdout.strip() == "False False"
