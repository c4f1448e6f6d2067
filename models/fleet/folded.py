"""The folded network as an engine: in numpy, and in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from models.fleet.base import FleetInput, Floats, Indices
from models.fleet.batched import Batched, Ready, pieces
from models.fleet.bundle import FleetBundle
from models.tft import Tft


class Fused(Batched):
    """The folded network in numpy."""

    name = "fused"

    def __init__(self, bundle: FleetBundle) -> None:
        super().__init__(bundle)
        self.tft = Tft(bundle.manifest.network, bundle.weights, bundle.manifest.horizon)
        self._ahead: tuple[int, Floats] | None = None

    def run(
        self, inputs: FleetInput, groups: Indices, outputs: Floats, advance: Callable[[], None], done: Ready
    ) -> None:
        which, chosen = self.scaling.profiles(inputs), self.chosen_future(inputs.tick)
        for part in pieces(len(which)):
            past = self.past(inputs.values[part], inputs.tick, groups[part])
            past = self.tft.choose(self.tft.select_past, past, which[part])
            found = self.tft.carry_on(past, chosen[which[part]], which=which[part])
            self.restored(np.ascontiguousarray(found.swapaxes(1, 2)), inputs.values[part], groups[part], outputs[part])
            done(part)
            advance()

    def look_ahead(self, tick: int) -> None:
        """The steps to come are known from the calendar alone."""
        self._ahead = tick, self.chosen_future(tick)

    def chosen_future(self, tick: int) -> Floats:
        """What is chosen of the steps to come, for each profile: `[P, H, hidden]`."""
        if self._ahead is not None and self._ahead[0] == tick:
            return self._ahead[1]
        profiles = np.arange(len(self.manifest.profiles))
        future = np.broadcast_to(self.future(tick), (len(profiles), *self.future(tick).shape))
        return self.tft.choose(self.tft.select_future, future, profiles)


class Onnx(Fused):
    """The folded network in ONNX Runtime."""

    name = "onnx"

    def __init__(self, bundle: FleetBundle, threads: int) -> None:
        from models.fleet.sessions import Sessions

        super().__init__(bundle)
        self.sessions = Sessions(self.tft, bundle.manifest.horizon, threads)

    def run(
        self, inputs: FleetInput, groups: Indices, outputs: Floats, advance: Callable[[], None], done: Ready
    ) -> None:
        which, future = self.scaling.profiles(inputs), self.chosen_future(inputs.tick)
        past = self.chosen_past(inputs, groups, which, advance)

        def run(part: slice) -> None:
            found = self.rest(past[part], future, which[part], part)
            self.restored(found, inputs.values[part], groups[part], outputs[part])
            done(part)

        for _ in self.sessions.each(run, pieces(len(which))):
            advance()

    def rest(self, past: Floats, future: Floats, which: Indices, part: slice) -> Floats:
        """The network's outputs `[B, M * Q, H]` for these servers."""
        return self.sessions.rest(past, future, which)

    def chosen_past(self, inputs: FleetInput, groups: Indices, which: Indices, advance: Callable[[], None]) -> Floats:
        """What is chosen of the past steps: `[S, L, hidden]`."""
        servers, length = inputs.values.shape[:2]
        chosen = np.empty((servers, length, self.manifest.network.hidden_size), dtype=np.float32)

        def run(part: slice) -> None:
            past = self.past(inputs.values[part], inputs.tick, groups[part])
            rows = past.reshape(-1, past.shape[-1])
            chosen[part] = self.sessions.select(rows, np.repeat(which[part], length)).reshape(chosen[part].shape)

        for _ in self.sessions.each(run, pieces(servers)):
            advance()
        return chosen
