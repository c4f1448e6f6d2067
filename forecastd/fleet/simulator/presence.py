"""Which servers are there: some leave, and come back, at a rate. Without state, as everything here."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from forecastd.fleet.simulator.noise import KeyArray, derive, mix, uniform

_SLOT_SECONDS, _MAX_DELAY_SECONDS, _MIN_ABSENCE_SECONDS, _MAX_ABSENCE_SECONDS = (
    1_200,
    600,
    60,
    580,
)  # seconds: one absence within each, begun in its first half


class PresenceModel:
    """About `rate` servers a minute leave, each for one to ten minutes. `key`: the servers' own keys."""

    def __init__(self, key: KeyArray, rate: float, step: int) -> None:
        self._key, self._step = derive(key, 6_000), step
        self._absence_probability = min(0.9, rate * _SLOT_SECONDS / 60 / len(key))

    def present(self, tick: int) -> NDArray[np.bool_]:
        """[S] which servers report at this tick."""
        seconds = tick * self._step
        slot = mix(self._key + np.uint64(seconds // _SLOT_SECONDS))
        departure = uniform(mix(slot ^ np.uint64(1))) * _MAX_DELAY_SECONDS
        absence = _MIN_ABSENCE_SECONDS + (_MAX_ABSENCE_SECONDS - _MIN_ABSENCE_SECONDS) * uniform(
            mix(slot ^ np.uint64(2))
        )
        elapsed = seconds % _SLOT_SECONDS
        return np.asarray(
            ~((uniform(slot) < self._absence_probability) & (elapsed >= departure) & (elapsed < departure + absence))
        )
