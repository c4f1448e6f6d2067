"""Which servers are present: some leave and come back at a given rate. Without state, like the whole simulator."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from forecastd.fleet.simulator.noise import KeyArray, derive, mix, uniform

_SLOT_SECONDS, _MAX_DELAY_SECONDS = 1_200, 600  # at most one absence per slot; it begins in the first half of the slot
_MIN_ABSENCE_SECONDS, _MAX_ABSENCE_SECONDS = 60, 580


class PresenceModel:
    """About `rate` servers per minute leave, each for one to ten minutes. `key`: the keys of the servers."""

    def __init__(self, key: KeyArray, rate: float, step: int) -> None:
        self._key, self._step = derive(key, 6_000), step
        self._absence_probability = min(0.9, rate * _SLOT_SECONDS / 60 / len(key))

    def present(self, tick: int) -> NDArray[np.bool_]:
        """[S] True for the servers that report at this tick."""
        seconds = tick * self._step
        slot = mix(self._key + np.uint64(seconds // _SLOT_SECONDS))
        departure = uniform(mix(slot ^ np.uint64(1))) * _MAX_DELAY_SECONDS
        longest = _MAX_ABSENCE_SECONDS - _MIN_ABSENCE_SECONDS
        absence = _MIN_ABSENCE_SECONDS + longest * uniform(mix(slot ^ np.uint64(2)))
        elapsed = seconds % _SLOT_SECONDS
        is_absent = (elapsed >= departure) & (elapsed < departure + absence)
        return np.asarray(~((uniform(slot) < self._absence_probability) & is_absent))
