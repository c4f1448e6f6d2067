"""The engines that run a fleet's bundle, all with the same outputs: the library's own forward, and three faster ones.

- `library`: pytorch_forecasting's network itself; slow to start and to run, the measure of the others
- `fused`: the folded network in numpy (`models.tft`)
- `onnx`: the folded network in ONNX Runtime
- `stream`: as `onnx`, and what the variable selection made of past ticks is kept: of a window that moves on by one tick
  only that tick is new. That needs a full encoder; servers with a shorter one are run as by `onnx`
- `auto`: `stream`, since the scales of a bundle are always fixed

Servers whose encoders are shorter are run by their length, rounded down to one of a few, so that they share batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count, pairwise

import numpy as np

from models.errors import DataError
from models.fleet.base import FleetEngine, FleetInput, Floats, Indices, Progress
from models.fleet.bundle import FleetBundle, canary_input
from models.fleet.scaling import FleetScaling, calendar
from models.proof import prove
from models.tft import Tft

ENGINES = ("auto", "library", "fused", "stream", "onnx")
TOLERANCE = 1e-3  # of the quantile range: how far an engine may be from the network it was made of
PIECE = 10  # servers at a time; 8 to 12 are equally fast, 16 is slower by a third: its arrays leave the cache
_LENGTHS = 24  # how many different encoder lengths are run


def silent(done: int, total: int) -> None:
    """Progress that nobody listens to."""


class Batched:
    """What every engine does: check, scale, group by length, run, restore. A subclass runs what is scaled."""

    name = ""

    def __init__(self, bundle: FleetBundle) -> None:
        self.manifest = bundle.manifest
        self.scaling = FleetScaling(bundle)

    def forecast(self, inputs: FleetInput, progress: Progress = silent) -> Floats:
        """As `FleetEngine.forecast`."""
        self.scaling.check(inputs)
        manifest, total = self.manifest, len(inputs.servers)
        levels, horizon = len(manifest.levels), manifest.horizon
        outputs = np.empty((total, len(manifest.metrics), levels, horizon), dtype=np.float32)
        groups, lengths, steps = self.scaling.groups(inputs), self._rounded(inputs.lengths), count(1)
        most = 2 * sum(len(pieces(int((lengths == length).sum()))) for length in set(lengths.tolist())) + 1

        def advance() -> None:
            progress(min(next(steps), most), most)

        for length in sorted(set(lengths.tolist())):
            rows = np.flatnonzero(lengths == length)
            windows = _part(inputs, rows, length)
            if not np.isfinite(windows.values).all():
                raise DataError("A window holds a number that is not finite. Fill its gaps, or leave the server out.")
            if len(rows) == total:
                self.run(windows, groups, outputs, advance)
            else:
                part = outputs[rows]
                self.run(windows, groups[rows], part, advance)
                outputs[rows] = part
        advance()
        return outputs

    def run(self, inputs: FleetInput, groups: Indices, outputs: Floats, advance: Callable[[], None]) -> None:
        """Put the quantiles of windows that are all as long as `inputs.values` is into `outputs` `[S, M, Q, H]`."""
        raise NotImplementedError

    def restored(self, found: Floats, groups: Indices, outputs: Floats) -> None:
        """Put the network's outputs `[S, M * Q, H]` into `outputs` in the metrics' units, while they are in the cache."""
        outputs[...] = self.scaling.restore(found.reshape(outputs.shape), groups)

    def _rounded(self, lengths: Indices) -> Indices:
        """Lengths rounded down to one of a few; one that would fall below the minimum is the minimum."""
        manifest = self.manifest
        grain = max(1, (manifest.encoder_length - manifest.encoder_minimum) // _LENGTHS)
        return np.where(
            lengths >= manifest.encoder_length,
            manifest.encoder_length,
            manifest.encoder_minimum + (lengths - manifest.encoder_minimum) // grain * grain,
        )

    def past(self, values: Floats, tick: int, groups: Indices) -> Floats:
        """The encoder's variables `[S, L, V]` of metrics `[S, L, M]` up to `tick`."""
        scaled = self.scaling.scale(values, groups)
        known = self.known(np.arange(tick - scaled.shape[1] + 1, tick + 1))
        return np.concatenate([np.broadcast_to(known, (*scaled.shape[:2], known.shape[-1])), scaled], axis=-1)

    def future(self, tick: int) -> Floats:
        """The decoder's variables `[H, V]` after `tick`, the same for all servers."""
        manifest = self.manifest
        ahead = np.arange(manifest.horizon)
        relative = (ahead / manifest.encoder_length).astype(np.float32)
        return np.concatenate([self.known(tick + 1 + ahead), relative[:, None]], axis=-1)

    def known(self, ticks: Indices) -> Floats:
        """The calendar's variables `[T, K]` of these ticks."""
        return calendar(self.manifest.cycles, self.manifest.step, ticks)


class Fused(Batched):
    """The folded network in numpy."""

    name = "fused"

    def __init__(self, bundle: FleetBundle) -> None:
        super().__init__(bundle)
        self.tft = Tft(bundle.manifest.network, bundle.weights, bundle.manifest.horizon)

    def run(self, inputs: FleetInput, groups: Indices, outputs: Floats, advance: Callable[[], None]) -> None:
        which, chosen = self.scaling.profiles(inputs), self.chosen_future(inputs.tick)
        for part in pieces(len(which)):
            past = self.past(inputs.values[part], inputs.tick, groups[part])
            past = self.tft.choose(self.tft.select_past, past, which[part])
            found = self.tft.carry_on(past, chosen[which[part]], which=which[part])
            self.restored(np.ascontiguousarray(found.swapaxes(1, 2)), groups[part], outputs[part])
            advance()

    def chosen_future(self, tick: int) -> Floats:
        """What is chosen of the steps to come, for each profile: `[P, H, hidden]`."""
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

    def run(self, inputs: FleetInput, groups: Indices, outputs: Floats, advance: Callable[[], None]) -> None:
        which, future = self.scaling.profiles(inputs), self.chosen_future(inputs.tick)
        past = self.chosen_past(inputs, groups, which, advance)

        def run(part: slice) -> None:
            self.restored(self.sessions.rest(past[part], future, which[part]), groups[part], outputs[part])

        for _ in self.sessions.each(run, pieces(len(which))):
            advance()

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


def load_fleet_engine(bundle: FleetBundle, name: str = "auto", threads: int = 1) -> FleetEngine:
    """The engine `name` of `ENGINES` for a bundle, with so many threads of its own.

    Raises:
        ValueError: there is no such engine.
    """
    if name == "library":
        from models.fleet.reference import Library

        return Library(bundle, threads)
    if name == "fused":
        return Fused(bundle)
    if name == "onnx":
        return Onnx(bundle, threads)
    if name in {"stream", "auto"}:
        from models.fleet.stream import Stream

        return Stream(bundle, threads)
    raise ValueError(f"There is no engine {name!r}; there are {', '.join(ENGINES)}.")


def pieces(count: int) -> list[slice]:
    """The pieces, of nearly the same size, that `count` servers are run in."""
    bounds = np.linspace(0, count, -(-count // PIECE) + 1).round().astype(int).tolist()
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def verify_fleet_canary(bundle: FleetBundle, engine: FleetEngine, progress: Progress = silent) -> float:
    """Run the bundle's canary; gives its largest difference from what the trained network gave, of the quantile range.

    Raises:
        BundleError: (check "canary") the difference is above the tolerance, or the canary does not run at all.
    """

    def difference() -> float:
        return range_difference(engine.forecast(canary_input(bundle), progress), bundle.canary.quantiles)

    return prove(bundle.path, difference, TOLERANCE)


def range_difference(got: Floats, wanted: Floats) -> float:
    """The largest difference between quantiles `[S, M, Q, H]`, relative to their series' widest quantile range."""
    width = (wanted[:, :, -1] - wanted[:, :, 0]).max(axis=-1)
    difference = np.abs(got.astype(np.float64) - wanted).max(axis=(2, 3))
    return float((difference / np.where(width > 0, width, 1.0)).max(initial=0.0))


def _part(inputs: FleetInput, rows: Indices, length: int) -> FleetInput:
    """The servers `rows` with their last `length` steps."""
    if len(rows) == len(inputs.servers):
        return replace(inputs, values=inputs.values[:, -length:])
    return FleetInput(
        inputs.tick,
        inputs.step,
        tuple(inputs.servers[row] for row in rows),
        tuple(inputs.profiles[row] for row in rows),
        inputs.values[rows, -length:],
        inputs.lengths[rows],
    )
