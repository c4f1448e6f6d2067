"""Check a bundle's canary: an input, run again, must give the quantiles that the trained network gave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from models.bundle.fields import RESTORE_HINT
from models.errors import BundleError, DataError


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
