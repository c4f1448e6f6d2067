"""A bundle's proof: its canary run again gives what the trained network gave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from models.bundle.fields import RESTORE_HINT
from models.errors import BundleError, DataError


def check_canary(path: Path, measure: Callable[[], float], tolerance: float) -> float:
    """The `difference` that running the canary of the bundle at `path` comes to, of the quantile range.

    Raises:
        BundleError: (check "canary") it is above the tolerance, or the canary does not run at all.
    """
    try:
        deviation = measure()
    except DataError as error:
        raise BundleError(
            f"The canary of {path} does not fit its model ({error}). {RESTORE_HINT}", check="canary"
        ) from error
    if not deviation <= tolerance:
        raise BundleError(
            f"The model at {path} does not reproduce its canary: it is off by {deviation:.1e} of the quantile range, "
            f"{tolerance:.0e} is allowed. {RESTORE_HINT}",
            check="canary",
        )
    return deviation
