"""A bundle of model M with random weights: it costs what a trained one costs."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from benchmarks.fleet.scene import MODEL_M


@cache
def bundle_m(seed: int = 1) -> Path:
    """Where it is; written once a process and gone with it."""
    from benchmarks.fleet.library import BaselineLibrary  # of those who measure, only who makes one needs torch

    path = Path(_directory().name) / f"m-{seed}"
    BaselineLibrary(MODEL_M, seed=seed).write_bundle(path)
    return path


@cache
def _directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="forecastd-fleet-benchmark-")
