"""Quantiles at other levels than a model's own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def at_levels(quantiles: NDArray[np.float32], levels: Sequence[float], wanted: Sequence[float]) -> NDArray[np.float32]:
    """Quantiles `[..., Q, H]` at `levels`, linearly between them, at the `wanted` levels: `[..., len(wanted), H]`.

    Beyond the outermost levels the outermost quantile is given: nothing is known of the tails.
    """
    places = np.interp(wanted, levels, np.arange(len(levels)))
    lower = np.minimum(places.astype(np.int64), len(levels) - 1)
    share = (places - lower).astype(np.float32)[:, None]
    found = quantiles[..., lower, :]
    if share.any():
        upper = np.minimum(lower + 1, len(levels) - 1)
        found = found + share * (quantiles[..., upper, :] - found)
    return np.asarray(found, dtype=np.float32)
