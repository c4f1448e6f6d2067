"""Engines that run the folded network: in numpy, and in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from models.fleet.base import FleetInput, Floats, Indices
from models.fleet.bundle import FleetBundle
from models.fleet.engine import ChunkCallback, FleetEngine, chunk_slices
from models.tft.forward import Tft


class FusedEngine(FleetEngine):
    """The folded network in numpy."""

    name = "fused"

    def __init__(self, bundle: FleetBundle, threads: int = 1) -> None:
        """`threads` is not used: numpy runs in the caller's thread."""
        super().__init__(bundle)
        self.tft = Tft(bundle.manifest.network, bundle.weights, bundle.manifest.horizon)
        self._next_future: tuple[int, Floats] | None = None

    def run_batch(
        self, inputs: FleetInput, groups: Indices, outputs: Floats, advance: Callable[[], None], on_chunk: ChunkCallback
    ) -> None:
        profile_index, selection = self.scaling.profiles(inputs), self.select_future(inputs.tick)
        for part in chunk_slices(len(profile_index)):
            past = self.encoder_variables(inputs.values[part], inputs.tick, groups[part])
            past = self.tft.select(self.tft.encoder_selection, past, profile_index[part])
            raw = self.tft.forward_selected(past, selection[profile_index[part]], profile_index=profile_index[part])
            self.write_outputs(
                np.ascontiguousarray(raw.swapaxes(1, 2)), inputs.values[part], groups[part], outputs[part]
            )
            on_chunk(part)
            advance()

    def look_ahead(self, tick: int) -> None:
        """Select the variables of the future steps, which depend on the calendar alone."""
        self._next_future = tick, self.select_future(tick)

    def select_future(self, tick: int) -> Floats:
        """Selected variables of the future steps, for each profile: `[P, H, hidden]`."""
        if self._next_future is not None and self._next_future[0] == tick:
            return self._next_future[1]
        profiles = np.arange(len(self.manifest.profiles))
        future = np.broadcast_to(self.decoder_variables(tick), (len(profiles), *self.decoder_variables(tick).shape))
        return self.tft.select(self.tft.decoder_selection, future, profiles)


class OnnxEngine(FusedEngine):
    """The folded network in ONNX Runtime."""

    name = "onnx"

    def __init__(self, bundle: FleetBundle, threads: int) -> None:
        from models.fleet.onnx_sessions import OnnxSessions

        super().__init__(bundle)
        self.sessions = OnnxSessions(self.tft, bundle.manifest.horizon, threads)

    def run_batch(
        self, inputs: FleetInput, groups: Indices, outputs: Floats, advance: Callable[[], None], on_chunk: ChunkCallback
    ) -> None:
        profile_index, future = self.scaling.profiles(inputs), self.select_future(inputs.tick)
        past = self.select_past(inputs, groups, profile_index, advance)

        def run(part: slice) -> None:
            raw = self.decode(past[part], future, profile_index[part], part)
            self.write_outputs(raw, inputs.values[part], groups[part], outputs[part])
            on_chunk(part)

        for _ in self.sessions.run_chunks(run, chunk_slices(len(profile_index))):
            advance()

    def decode(self, past: Floats, future: Floats, profile_index: Indices, part: slice) -> Floats:
        """The network's outputs `[B, M * Q, H]` for the servers in `part`."""
        return self.sessions.decode(past, future, profile_index)

    def select_past(
        self, inputs: FleetInput, groups: Indices, profile_index: Indices, advance: Callable[[], None]
    ) -> Floats:
        """Selected variables of the past steps: `[S, L, hidden]`."""
        servers, length = inputs.values.shape[:2]
        selection = np.empty((servers, length, self.manifest.network.hidden_size), dtype=np.float32)

        def run(part: slice) -> None:
            past = self.encoder_variables(inputs.values[part], inputs.tick, groups[part])
            rows = past.reshape(-1, past.shape[-1])
            selection[part] = self.sessions.select(rows, np.repeat(profile_index[part], length)).reshape(
                selection[part].shape
            )

        for _ in self.sessions.run_chunks(run, chunk_slices(servers)):
            advance()
        return selection
