"""The library's own network as an engine: the reference for the other engines.

It imports torch and pytorch_forecasting, which takes seconds and hundreds of megabytes. It is for comparison, and for
users who want the trained network itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from models.fleet.base import FleetInput, Floats, Indices
from models.fleet.bundle import FleetBundle
from models.fleet.engine import ChunkCallback, FleetEngine, chunk_slices
from models.tft.torch_model import build_with_weights, forward


class LibraryEngine(FleetEngine):
    """Runs pytorch_forecasting's own forward pass."""

    name = "library"

    def __init__(self, bundle: FleetBundle, threads: int) -> None:
        super().__init__(bundle)
        manifest = self.manifest
        self._threads = threads
        self._network = build_with_weights(manifest.network, manifest.levels, manifest.encoder_length, bundle.weights)

    def run_batch(
        self, inputs: FleetInput, groups: Indices, outputs: Floats, advance: Callable[[], None], on_chunk: ChunkCallback
    ) -> None:
        profile_index, future = self.scaling.profiles(inputs), self.decoder_variables(inputs.tick)
        with _torch_threads(self._threads):
            for part in chunk_slices(len(profile_index)):
                past = self.encoder_variables(inputs.values[part], inputs.tick, groups[part])
                ahead = np.broadcast_to(future, (len(past), *future.shape)).copy()
                raw = forward(self._network, self.manifest.network, past, ahead, profile_index[part])
                quantiles = np.ascontiguousarray(raw.transpose(0, 2, 3, 1))
                self.write_outputs(quantiles, inputs.values[part], groups[part], outputs[part])
                on_chunk(part)
                advance()


@contextmanager
def _torch_threads(number: int) -> Iterator[None]:
    """Set the number of torch's threads, which is global, and restore it.

    Training in the same process would otherwise give different weights.
    """
    previous = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(previous)
