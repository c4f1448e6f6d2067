"""Our forward pass, batches and target normalizer equal those of pytorch_forecasting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.market.dataset import MarketData
from models.market.engine import target_scale
from models.market.manifest import Scaler, network_reals
from models.tft.config import TftConfig
from models.tft.forward import Tft
from models.tft.parameters import parameter_shapes
from models.training.config import TrainingConfig

LEVELS = (0.1, 0.5, 0.9)


def max_difference(network: TftConfig, length: int, horizon: int, seed: int, spread: float = 1.0) -> float:
    """The largest difference between our forward pass and the library's, relative to the width of the quantiles."""
    import torch

    from models.tft.torch_model import build_network, forward

    torch.manual_seed(seed)
    model = build_network(network, LEVELS, length, dropout=0.3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    rng = np.random.default_rng(seed)
    past = (spread * rng.normal(size=(3, length, len(network.encoder_reals)))).astype(np.float32)
    future = (spread * rng.normal(size=(3, horizon, len(network.decoder_reals)))).astype(np.float32)
    state = model.state_dict()
    weights = {name: state[name].numpy() for name in parameter_shapes(network)}
    assert {name: value.shape for name, value in weights.items()} == parameter_shapes(network)
    expected = forward(model, network, past, future)[:, :, 0]
    actual = Tft(network, weights, horizon)(past, future)
    return float(np.abs(actual - expected).max() / np.ptp(expected, axis=-1).max())


def make_network(past: int, known: int, *, hidden: int, small: int, heads: int, layers: int) -> TftConfig:
    encoder, decoder = network_reals(tuple(f"p{i}" for i in range(past)), tuple(f"k{i}" for i in range(known)))
    return TftConfig(hidden, small, heads, layers, encoder, decoder, len(LEVELS))


@pytest.mark.parametrize(
    ("network", "length", "horizon"),
    [
        (make_network(9, 4, hidden=16, small=8, heads=4, layers=1), 336, 168),
        (make_network(9, 4, hidden=16, small=8, heads=4, layers=2), 48, 24),
        (make_network(0, 0, hidden=8, small=8, heads=1, layers=1), 12, 6),
        (make_network(2, 1, hidden=7, small=1, heads=3, layers=3), 5, 9),
        (make_network(3, 2, hidden=4, small=9, heads=2, layers=1), 20, 20),
        (make_network(14, 4, hidden=32, small=16, heads=4, layers=2), 24, 1),
        (make_network(20, 0, hidden=3, small=2, heads=3, layers=1), 2, 2),
    ],
)
def test_engine_equals_library(network: TftConfig, length: int, horizon: int) -> None:
    assert max_difference(network, length, horizon, seed=1) < 2e-5


@settings(max_examples=15, deadline=None)
@given(
    past=st.integers(0, 6),
    known=st.integers(0, 4),
    sizes=st.fixed_dictionaries(
        {
            "hidden": st.integers(2, 12),
            "small": st.integers(1, 12),
            "heads": st.integers(1, 2),
            "layers": st.integers(1, 2),
        }
    ),
    window=st.tuples(st.integers(2, 12), st.integers(1, 8)),
    spread=st.sampled_from([0.01, 1.0, 30.0]),
)
def test_engine_equals_library_for_random_sizes(
    past: int, known: int, sizes: dict[str, int], window: tuple[int, int], spread: float
) -> None:
    assert max_difference(make_network(past, known, **sizes), *window, seed=sum(window), spread=spread) < 1e-4


@pytest.fixture(scope="module")
def data() -> MarketData:
    rng = np.random.default_rng(3)
    count = 60
    return MarketData(
        time=1_600_000_000 + 3600 * np.arange(count, dtype=np.int64),
        target=10 + rng.normal(0, 0.01, count).cumsum(),
        past=rng.normal(2, 3, size=(count, 2)),
        known=rng.normal(size=(count, 1)),
        past_names=("p0", "p1"),
        known_names=("k0",),
        step=3600,
        data_sha256="a" * 64,
        source="test",
        synthetic=True,
    )


SCALERS = {"p0": Scaler(2.0, 3.0), "p1": Scaler(1.0, 2.0), "k0": Scaler(-0.5, 0.25)}


@pytest.fixture(scope="module")
def batches(data: MarketData) -> tuple[Any, Any]:
    """The same windows from our loader and from the library's."""
    from models.market.batches import MarketWindowDataset
    from tests.support import library_reference

    origins = list(range(11, 55))
    theirs = library_reference.dataset(data, SCALERS, 12, 5).to_dataloader(
        train=False, batch_size=len(origins), num_workers=0
    )
    return MarketWindowDataset(data, SCALERS, 12, 5)[origins], next(iter(theirs))


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_batches_equal_library_batches(batches: tuple[Any, Any]) -> None:
    import torch

    (x, (y, weight)), (theirs, (their_y, their_weight)) = batches
    assert x.keys() == theirs.keys()
    center = theirs["target_scale"][:, :1]
    for name in ("encoder_target", "decoder_target"):  # ours are seen from the origin; float32 logarithms are coarse
        torch.testing.assert_close(x[name], theirs[name] - center, atol=2e-6, rtol=0)
    torch.testing.assert_close(y, their_y - center, atol=2e-6, rtol=0)
    torch.testing.assert_close(x["target_scale"][:, 1], theirs["target_scale"][:, 1], atol=1e-6, rtol=1e-4)
    assert not x["target_scale"][:, 0].any()
    for name in ("encoder_cont", "decoder_cont"):
        torch.testing.assert_close(x[name], theirs[name], atol=2e-4, rtol=1e-5)
    for name in ("encoder_lengths", "decoder_lengths", "encoder_cat", "decoder_cat", "groups"):
        assert x[name].shape == theirs[name].shape
        assert x[name].dtype == theirs[name].dtype
        assert torch.equal(x[name], theirs[name])
    assert torch.equal(x["decoder_time_idx"], theirs["decoder_time_idx"])
    assert weight is None
    assert their_weight is None


def test_normalizer_equals_engine_target_scale(data: MarketData) -> None:
    import torch

    from tests.support.library_reference import LastValueNormalizer

    normalizer = LastValueNormalizer(7).fit(torch.as_tensor(data.target))
    center, scale = normalizer.get_parameters().tolist()
    assert center == data.target[-1]
    assert scale == pytest.approx(float(target_scale(data.target, 7)))


def test_epoch_sampler_is_reproducible_per_seed_and_epoch() -> None:
    from models.market.batches import MarketBatchSampler

    origins = np.arange(100, dtype=np.int64)

    def drawn(seed: int, epoch: int) -> list[list[int]]:
        sampler = MarketBatchSampler(origins, TrainingConfig(batch_size=8, batches_per_epoch=5, seed=seed))
        sampler.set_epoch(epoch)
        return list(sampler)

    assert drawn(1, 2) == drawn(1, 2)
    assert drawn(1, 2) != drawn(1, 3)
    assert drawn(1, 2) != drawn(2, 2)
    flat = [origin for batch in drawn(1, 2) for origin in batch]
    assert (len(flat), len(set(flat))) == (40, 40)
    whole = MarketBatchSampler(origins, TrainingConfig(batch_size=8, batches_per_epoch=1000))
    assert sorted(origin for batch in whole for origin in batch) == origins.tolist()
    assert len(whole) == 13
