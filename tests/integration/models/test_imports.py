"""Prediction stays small: the modules that run a bundle import none of the libraries that trained it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY_LIBRARIES = ("torch", "lightning", "pytorch_forecasting", "pandas", "sklearn", "scipy", "onnxruntime")


@pytest.mark.parametrize(
    "modules",
    [
        "models.base, models.market.bundle, models.market.engine, models.tft.forward",
        "models.fleet.engines, models.fleet.folded_engines",
        "models.train, models.registry, models.training.state, cli.train",
    ],
    ids=["market", "fleet", "training"],
)
def test_modules_import_no_heavy_library(modules: str) -> None:
    script = f"import {modules}, sys; print(*(name for name in {HEAVY_LIBRARIES} if name in sys.modules))"
    completed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert completed.stdout.strip() == ""


def test_manifest_module_imports_no_numpy_and_no_safetensors() -> None:
    script = "import models.market.manifest, sys; print('numpy' in sys.modules, 'safetensors' in sys.modules)"
    completed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert completed.stdout.strip() == "False False"
