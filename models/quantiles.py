"""Interpolate quantiles to other levels than those of a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def interpolate_quantiles(
    quantiles: NDArray[np.float32], levels: Sequence[float], target_levels: Sequence[float]
) -> NDArray[np.float32]:
    """Quantiles `[..., Q, H]` at `levels`, interpolated linearly to `target_levels`: `[..., len(target_levels), H]`.

    Beyond the outermost levels the result is the outermost quantile: a model says nothing about the tails.
    """
    positions = np.interp(target_levels, levels, np.arange(len(levels)))
    lower = np.minimum(positions.astype(np.int64), len(levels) - 1)
    share = (positions - lower).astype(np.float32)[:, None]
    values = quantiles[..., lower, :]
    if share.any():
        upper = np.minimum(lower + 1, len(levels) - 1)
        values = values + share * (quantiles[..., upper, :] - values)
    return np.asarray(values, dtype=np.float32)
