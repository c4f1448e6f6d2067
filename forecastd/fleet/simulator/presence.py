"""Which servers are there: some leave, and come back, at a rate. Without state, as everything here."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from forecastd.fleet.simulator.noise import Keys, derived, mixed, uniform

_SLOT, _LATEST, _SHORTEST, _LONGEST = 1_200, 600, 60, 580  # seconds: one absence within each, begun in its first half


class Presence:
    """About `rate` servers a minute leave, each for one to ten minutes. `key`: the servers' own keys."""

    def __init__(self, key: Keys, rate: float, step: int) -> None:
        self._key, self._step = derived(key, 6_000), step
        self._chance = min(0.9, rate * _SLOT / 60 / len(key))

    def there(self, tick: int) -> NDArray[np.bool_]:
        """[S] which servers report at this tick."""
        seconds = tick * self._step
        slot = mixed(self._key + np.uint64(seconds // _SLOT))
        leaves = uniform(mixed(slot ^ np.uint64(1))) * _LATEST
        away = _SHORTEST + (_LONGEST - _SHORTEST) * uniform(mixed(slot ^ np.uint64(2)))
        into = seconds % _SLOT
        return np.asarray(~((uniform(slot) < self._chance) & (into >= leaves) & (into < leaves + away)))
