"""Compare an engine with its network: by the canary of a bundle, an input and the quantiles that the network gave for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle.fields import RESTORE_HINT
from models.errors import BundleError, DataError


def range_difference(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest difference between quantiles `[..., Q, H]`, relative to the widest quantile range of their series."""
    width = (expected[..., -1, :] - expected[..., 0, :]).max(axis=-1)
    difference = np.abs(actual.astype(np.float64) - expected).max(axis=(-2, -1))
    return float((difference / np.where(width > 0, width, 1.0)).max(initial=0.0))


def check_canary(path: Path, measure: Callable[[], float], tolerance: float) -> float:
    """Run the canary of the bundle at `path`; returns what `measure` gives, a difference as a share of the quantile range.

    Raises:
        BundleError: (check "canary") the difference is above the tolerance, or the canary does not run at all.
    """
    try:
        deviation = measure()
    except DataError as error:
        raise BundleError(
            f"The canary of {path} does not fit its model ({error}). {RESTORE_HINT}", check="canary"
        ) from error
    if not deviation <= tolerance:
        raise BundleError(
            f"The model at {path} does not reproduce its canary: it differs by {deviation:.1e} of the quantile range, "
            f"{tolerance:.0e} is allowed. {RESTORE_HINT}",
            check="canary",
        )
    return deviation


def require_equal_engine(difference: float, tolerance: float) -> None:
    """Refuse to write a bundle whose engine differs from the trained network. Raises BundleError (check "canary")."""
    if not difference <= tolerance:
        raise BundleError(
            f"The engine differs from the trained network by {difference:.1e} of the quantile range; {tolerance:.0e} is "
            "allowed, so no bundle was written. The installed pytorch-forecasting may have changed.",
            check="canary",
        )
