"""The engines compared with the baseline library: from_dataset, predict and the library's own scales on the same
rows.

The tests of the engines compare forward passes; here the library does everything from the rows to the numbers, as it
is documented. Further tests show that its pitfalls would be detected.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.fleet.library import BaselineLibrary, frame, quantiles_by_server
from benchmarks.fleet.request import answer_request
from benchmarks.fleet.scene import STEP, ModelSize, SimulatedServers
from models.bundle.canary import range_difference
from models.fleet.base import FleetInput
from models.fleet.bundle import CENTER_KEY, SCALE_KEY, FleetBundle, load_fleet_bundle
from models.fleet.engines import TOLERANCE, load_fleet_engine, verify_fleet_canary

SIZE = ModelSize(hidden=8, continuous=4, heads=2, layers=1, encoder=24, minimum=6, horizon=8)
COUNT = 10
SIGNIFICANT = 3 * TOLERANCE  # larger than any rounding error


@pytest.fixture(scope="module")
def servers() -> SimulatedServers:
    return SimulatedServers(COUNT, seed=5)


@pytest.fixture(scope="module")
def library(servers: SimulatedServers) -> BaselineLibrary:
    return BaselineLibrary(SIZE, servers.names)


@pytest.fixture(scope="module")
def bundle(library: BaselineLibrary) -> FleetBundle:
    return library.bundle()


def forecast(
    bundle: FleetBundle,
    servers: SimulatedServers,
    values: NDArray[np.float32],
    *,
    engine: str = "stream",
    tick: int | None = None,
    profiles: tuple[str, ...] | None = None,
    lengths: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """The engine's forecast of these values `[S, L, M]`."""
    return load_fleet_engine(bundle, engine, 1).forecast(
        FleetInput(
            servers.tick if tick is None else tick,
            STEP,
            servers.names,
            profiles or servers.profiles,
            values,
            np.full(COUNT, SIZE.encoder) if lengths is None else lengths,
        )
    )


def predict(library: BaselineLibrary, servers: SimulatedServers, rows: Any) -> NDArray[np.float32]:
    """The library's forecast in the same order."""
    return quantiles_by_server(SIZE, *library.predict(rows), servers.names)


@pytest.fixture(scope="module")
def rows(servers: SimulatedServers) -> Any:
    return frame(SIZE, servers.names, servers.profiles, servers.history(SIZE.encoder), servers.tick)


@pytest.fixture(scope="module")
def expected(library: BaselineLibrary, servers: SimulatedServers, rows: Any) -> NDArray[np.float32]:
    return predict(library, servers, rows)


@pytest.mark.parametrize("engine", ["fused", "onnx", "stream", "library"])
def test_forecast_full_window_equals_library(
    library: BaselineLibrary, bundle: FleetBundle, servers: SimulatedServers, expected: NDArray[np.float32], engine: str
) -> None:
    block = servers.block(SIZE.encoder)
    assert block.servers == servers.names
    assert range_difference(forecast(bundle, servers, block.values, engine=engine), expected) < TOLERANCE


def test_comparison_detects_wrong_tick_server_and_metric(
    bundle: FleetBundle, servers: SimulatedServers, expected: NDArray[np.float32]
) -> None:
    block = servers.block(SIZE.encoder)
    early = forecast(
        bundle, servers, servers.window.block(servers.tick - 1, SIZE.encoder).values, tick=servers.tick - 1
    )
    other = forecast(bundle, servers, np.roll(block.values, 1, axis=0))
    right = forecast(bundle, servers, block.values)
    assert range_difference(early, expected) > SIGNIFICANT
    assert range_difference(other, expected) > SIGNIFICANT
    assert range_difference(np.roll(right, 1, axis=1), expected) > SIGNIFICANT


def test_library_first_step_is_tick_after_last_observed(
    library: BaselineLibrary, servers: SimulatedServers, rows: Any
) -> None:
    _, index = library.predict(rows)
    assert (index["tick"] == servers.tick + 1).all()
    _, past = library.predict(rows[rows["tick"] <= servers.tick])
    assert (past["tick"] == servers.tick + 1 - SIZE.horizon).all(), "without rows for the horizon it predicts the past"


def test_library_scales_each_server_by_its_profile(
    library: BaselineLibrary, bundle: FleetBundle, servers: SimulatedServers, rows: Any
) -> None:
    groups = bundle.manifest.groups
    table = np.stack([bundle.weights[CENTER_KEY], bundle.weights[SCALE_KEY]], axis=-1)
    server_scales = scales(library.data_set(rows))
    assert server_scales.keys() == set(servers.names)
    for server, profile in zip(servers.names, servers.profiles, strict=True):
        row = groups.index(f"profile:{profile}")
        assert np.allclose(server_scales[server], table[row], rtol=1e-5), server
        assert not any(np.allclose(server_scales[server], other, rtol=1e-3) for other in np.delete(table, row, axis=0))


def test_library_second_encoder_mixes_up_scales(library: BaselineLibrary, servers: SimulatedServers, rows: Any) -> None:
    """Why both encoders must be the same: the library's own second encoder is off by one if the first has `add_nan`."""
    from pytorch_forecasting import TimeSeriesDataSet

    parameters = library.template.get_parameters()
    codes = {
        name: code for name, code in parameters["categorical_encoders"].items() if not name.startswith("__group_id__")
    }
    wrong = scales(TimeSeriesDataSet.from_parameters({**parameters, "categorical_encoders": codes}, rows, predict=True))
    right = scales(library.data_set(rows))
    assert not any(np.allclose(wrong[server], right[server], rtol=1e-3) for server in servers.names)


def scales(data_set: Any) -> dict[str, NDArray[np.float64]]:
    """Center and scale `[M, 2]` that the library uses to unscale the outputs of each server."""
    batch, _ = next(iter(data_set.to_dataloader(train=False, batch_size=COUNT)))
    names = data_set.x_to_index(batch)["server"]
    result = np.stack([scale.numpy() for scale in batch["target_scale"]], axis=1)
    return dict(zip(names, result, strict=True))


def test_forecast_unknown_profile_equals_library(
    library: BaselineLibrary, bundle: FleetBundle, servers: SimulatedServers
) -> None:
    others = servers.profiles[1:]
    # The library cannot map an unknown name back to its row; "nan" is its name for an unknown category.
    rows = frame(SIZE, servers.names, ("nan", *others), servers.history(SIZE.encoder), servers.tick)
    actual = forecast(bundle, servers, servers.block(SIZE.encoder).values, profiles=("never-seen", *others))
    assert range_difference(actual, predict(library, servers, rows)) < TOLERANCE


def test_forecast_short_window_equals_library(
    library: BaselineLibrary, bundle: FleetBundle, servers: SimulatedServers, rows: Any
) -> None:
    lengths = np.full(COUNT, SIZE.encoder)
    lengths[:3] = SIZE.minimum, SIZE.minimum + 1, SIZE.encoder - 1
    first = dict(zip(servers.names, servers.tick - lengths + 1, strict=True))
    short = rows[rows["tick"] >= rows["server"].map(first)]
    values = servers.block(SIZE.encoder).values
    for row, length in enumerate(lengths.tolist()):
        values[row, : SIZE.encoder - length] = 0.0
    actual = forecast(bundle, servers, values, lengths=lengths)
    assert range_difference(actual, predict(library, servers, short)) < TOLERANCE


def test_usual_request_equals_library_and_leaves_no_files(
    library: BaselineLibrary,
    servers: SimulatedServers,
    expected: NDArray[np.float32],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    response = answer_request(library, servers.records(SIZE))
    assert (
        range_difference(quantiles_by_server(SIZE, response.outputs, response.index, servers.names), expected)
        < TOLERANCE
    )
    assert not list(tmp_path.iterdir())


def test_bundle_of_library_passes_canary(library: BaselineLibrary, tmp_path: Path) -> None:
    library.write_bundle(tmp_path / "bundle")
    loaded = load_fleet_bundle(tmp_path / "bundle")
    assert verify_fleet_canary(loaded, load_fleet_engine(loaded, "library", 1)) < TOLERANCE
    assert replace(loaded.manifest, files={}, sha256="") == library.bundle().manifest
