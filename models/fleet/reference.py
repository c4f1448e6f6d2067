"""The library's own network as an engine: what the other engines must equal.

It imports torch and pytorch_forecasting, which takes seconds and hundreds of megabytes: it is for comparison, and for a
user who wants nothing between the network that was trained and the forecast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from models.fleet import network
from models.fleet.base import FleetInput, Floats, Indices
from models.fleet.batched import Batched, Ready, pieces
from models.fleet.bundle import FleetBundle


class Library(Batched):
    """pytorch_forecasting's forward."""

    name = "library"

    def __init__(self, bundle: FleetBundle, threads: int) -> None:
        super().__init__(bundle)
        manifest = self.manifest
        self._threads = threads
        self._network = network.with_weights(manifest.network, manifest.levels, manifest.encoder_length, bundle.weights)

    def run(
        self, inputs: FleetInput, groups: Indices, outputs: Floats, advance: Callable[[], None], done: Ready
    ) -> None:
        which, future = self.scaling.profiles(inputs), self.future(inputs.tick)
        with _threads(self._threads), torch.inference_mode():
            for part in pieces(len(which)):
                past = self.past(inputs.values[part], inputs.tick, groups[part])
                ahead = np.broadcast_to(future, (len(past), *future.shape)).copy()
                found = network.forward(self._network, self.manifest.network, past, ahead, which[part])
                quantiles = found.permute(0, 2, 3, 1).contiguous().numpy()
                self.restored(quantiles, inputs.values[part], groups[part], outputs[part])
                done(part)
                advance()


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """torch's threads are the process's: a training beside this engine would give other weights with another number."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
