"""Training throughput: the same network and step, fed by our batches and by the library's own loader.

Forward and backward passes dominate a step, so the loader alone is measured too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.figures import Figure
from models.market.dataset import MarketData
from models.market.manifest import Scaler
from models.training.config import TrainingConfig

ROWS = 3000


def run(*, quick: bool) -> list[Figure]:
    """Milliseconds per sample, with our loader and the library's in turns."""
    config = TrainingConfig(encoder_length=48, horizon=24) if quick else TrainingConfig()
    data = make_training_data()
    names = (*data.past_names, *data.known_names)
    ours, theirs = _loaders(data, {name: Scaler(0.0, 1.0) for name in names}, config)
    step = _step(data, config)
    figures = []
    for name, consume, count in (("training", step, 3 if quick else 12), ("loader alone", lambda _: None, 20)):
        our_ms, peer_ms = (1000 * seconds / config.batch_size for seconds in _alternate(ours, theirs, consume, count))
        title = f"{name}, {config.encoder_length} -> {config.horizon} steps, {1000 / our_ms:.0f} samples/s"
        figures.append(Figure(title, our_ms, peer_ms, "ms a sample", "the library's loader", "ratio >= 1"))
    return figures


def make_training_data() -> MarketData:
    """A random walk with nine past and four known features, as in the standard feature list."""
    rng = np.random.default_rng(0)
    return MarketData(
        time=1_600_000_000 + 3600 * np.arange(ROWS, dtype=np.int64),
        target=rng.normal(0, 0.005, ROWS).cumsum(),
        past=rng.normal(size=(ROWS, 9)),
        known=rng.normal(size=(ROWS, 4)),
        past_names=tuple(f"past{i}" for i in range(9)),
        known_names=tuple(f"known{i}" for i in range(4)),
        step=3600,
        data_sha256="",
        source="benchmark",
        synthetic=True,
    )


def _loaders(data: MarketData, scalers: dict[str, Scaler], config: TrainingConfig) -> tuple[Any, Any]:
    from torch.utils.data import DataLoader

    from models.market.batches import MarketBatchSampler, MarketWindowDataset
    from tests.support import library_reference

    length, horizon, size = config.encoder_length, config.horizon, config.batch_size
    origins = np.arange(length - 1, ROWS - horizon)
    windows = MarketWindowDataset(data, scalers, length, horizon)
    ours = DataLoader(windows, batch_size=None, sampler=MarketBatchSampler(origins, config))
    dataset = library_reference.dataset(data, scalers, length, horizon)
    return ours, dataset.to_dataloader(train=True, batch_size=size, num_workers=0, shuffle=True)


def _step(data: MarketData, config: TrainingConfig) -> Callable[[Any], None]:
    """One training step: loss, gradients, Adam."""
    import torch

    from models.market.batches import MarketQuantileModule
    from models.market.manifest import network_reals
    from models.tft.torch_model import build_network

    network = config.make_network(network_reals(data.past_names, data.known_names))
    model = build_network(network, config.levels, config.encoder_length, config.dropout)
    module = MarketQuantileModule(model, config).train()
    optimizer = torch.optim.Adam(module.parameters(), lr=config.learning_rate)

    def step(batch: Any) -> None:
        optimizer.zero_grad()
        torch.autograd.backward(module.loss(batch))
        optimizer.step()

    return step


def _alternate(ours: Any, theirs: Any, consume: Callable[[Any], None], count: int) -> list[float]:
    """Median seconds per batch of each loader, over `count` batches of each in turns, after one for warm-up."""
    sources: list[Iterator[Any]] = [iter(ours), iter(theirs)]
    times: list[list[float]] = [[], []]
    for _ in range(count + 1):
        for source, durations in zip(sources, times, strict=True):
            started = time.perf_counter()
            consume(next(source))
            durations.append(time.perf_counter() - started)
    return [statistics.median(durations[1:]) for durations in times]
