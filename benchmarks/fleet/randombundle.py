"""A bundle of model M with random weights: its cost is that of a trained one."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from benchmarks.fleet.scene import MODEL_M


@cache
def bundle_m(seed: int = 1) -> Path:
    """Its path; written once per process and deleted at exit."""
    from benchmarks.fleet.library import BaselineLibrary  # imports torch, which the measuring processes must not

    path = Path(_directory().name) / f"m-{seed}"
    BaselineLibrary(MODEL_M, seed=seed).write_bundle(path)
    return path


@cache
def _directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="forecastd-fleet-benchmark-")
