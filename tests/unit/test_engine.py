"""The engine judges what came out of the network, not the processor's flags on the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.bundle import load_bundle
from models.engines import Engine
from models.errors import BundleError


def test_numbers_that_overflow_inside_the_network_are_told_as_the_models_fault(root: Path) -> None:
    bundle = load_bundle(root / "models" / "demo")
    wild = {name: np.full_like(weight, 1e30) for name, weight in bundle.weights.items()}
    with pytest.raises(BundleError) as caught:
        Engine(replace(bundle, weights=wild)).predict(bundle.canary.inputs)
    assert caught.value.check == "finite"
