"""What the fleet forecasts against the library itself: from_dataset, predict, its own scales, on the same rows.

The engines' tests compare forwards; here everything from the rows to the numbers is the library's, used as its documentation
says, and what it gets wrong when it is used a little otherwise is shown to be seen.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.fleet.library import Library, by_server, frame
from benchmarks.fleet.request import answer
from benchmarks.fleet.scene import STEP, Servers, Size
from models.fleet.base import FleetInput
from models.fleet.bundle import FleetBundle
from models.fleet.engines import TOLERANCE, load_fleet_engine, range_difference

SIZE = Size(hidden=8, continuous=4, heads=2, layers=1, encoder=24, minimum=6, horizon=8)
COUNT = 10
SEEN = 3 * TOLERANCE  # a difference that nobody could take for rounding


@pytest.fixture(scope="module")
def servers() -> Servers:
    return Servers(COUNT, seed=5)


@pytest.fixture(scope="module")
def library(servers: Servers) -> Library:
    return Library(SIZE, servers.names)


@pytest.fixture(scope="module")
def bundle(library: Library) -> FleetBundle:
    return library.bundle()


def forecast(
    bundle: FleetBundle,
    servers: Servers,
    values: NDArray[np.float32],
    *,
    engine: str = "stream",
    tick: int | None = None,
    profiles: tuple[str, ...] | None = None,
    lengths: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Ours, of these values `[S, L, M]`."""
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


def predicted(library: Library, servers: Servers, rows: Any) -> NDArray[np.float32]:
    """The library's, in the same order."""
    return by_server(SIZE, *library.predict(rows), servers.names)


@pytest.fixture(scope="module")
def rows(servers: Servers) -> Any:
    return frame(SIZE, servers.names, servers.profiles, servers.past(SIZE.encoder), servers.tick)


@pytest.fixture(scope="module")
def wanted(library: Library, servers: Servers, rows: Any) -> NDArray[np.float32]:
    return predicted(library, servers, rows)


@pytest.mark.parametrize("engine", ["fused", "onnx", "stream", "library"])
def test_every_server_is_forecast_as_the_library_predicts_it(
    library: Library, bundle: FleetBundle, servers: Servers, wanted: NDArray[np.float32], engine: str
) -> None:
    block = servers.block(SIZE.encoder)
    assert block.servers == servers.names
    assert range_difference(forecast(bundle, servers, block.values, engine=engine), wanted) < TOLERANCE


def test_the_comparison_sees_a_tick_too_early_another_server_and_another_metric(
    bundle: FleetBundle, servers: Servers, wanted: NDArray[np.float32]
) -> None:
    block = servers.block(SIZE.encoder)
    early = forecast(
        bundle, servers, servers.window.block(servers.tick - 1, SIZE.encoder).values, tick=servers.tick - 1
    )
    other = forecast(bundle, servers, np.roll(block.values, 1, axis=0))
    right = forecast(bundle, servers, block.values)
    assert range_difference(early, wanted) > SEEN
    assert range_difference(other, wanted) > SEEN
    assert range_difference(np.roll(right, 1, axis=1), wanted) > SEEN


def test_the_first_step_is_the_tick_after_the_last_observed_one(library: Library, servers: Servers, rows: Any) -> None:
    _, index = library.predict(rows)
    assert (index["tick"] == servers.tick + 1).all()
    _, past = library.predict(rows[rows["tick"] <= servers.tick])
    assert (past["tick"] == servers.tick + 1 - SIZE.horizon).all(), "without rows of the time to come it tells the past"


def test_each_server_has_the_scale_of_its_own_profile(
    library: Library, bundle: FleetBundle, servers: Servers, rows: Any
) -> None:
    groups = bundle.manifest.groups
    table = np.stack([bundle.center, bundle.scale], axis=-1)
    found = scales(library.data_set(rows))
    assert found.keys() == set(servers.names)
    for server, profile in zip(servers.names, servers.profiles, strict=True):
        row = groups.index(f"profile:{profile}")
        assert np.allclose(found[server], table[row], rtol=1e-5), server
        assert not any(np.allclose(found[server], other, rtol=1e-3) for other in np.delete(table, row, axis=0))


def test_two_encoders_of_one_group_give_a_server_the_scale_of_another(
    library: Library, servers: Servers, rows: Any
) -> None:
    """Why the codes are told to be alike: the library's own second encoder is one off where the first has `add_nan`."""
    from pytorch_forecasting import TimeSeriesDataSet

    told = library.template.get_parameters()
    codes = {name: code for name, code in told["categorical_encoders"].items() if not name.startswith("__group_id__")}
    wrong = scales(TimeSeriesDataSet.from_parameters({**told, "categorical_encoders": codes}, rows, predict=True))
    right = scales(library.data_set(rows))
    assert not any(np.allclose(wrong[server], right[server], rtol=1e-3) for server in servers.names)


def scales(data_set: Any) -> dict[str, NDArray[np.float64]]:
    """Center and scale `[M, 2]` that the library undoes each server's outputs with."""
    batch, _ = next(iter(data_set.to_dataloader(train=False, batch_size=COUNT)))
    names = data_set.x_to_index(batch)["server"]
    found = np.stack([one.numpy() for one in batch["target_scale"]], axis=1)
    return dict(zip(names, found, strict=True))


def test_a_profile_that_was_not_there_in_training_is_scaled_alike_on_both_sides(
    library: Library, bundle: FleetBundle, servers: Servers
) -> None:
    others = servers.profiles[1:]
    # By its own name the library predicts it and then cannot tell whose row it was; "nan" is its word for what it never saw.
    rows = frame(SIZE, servers.names, ("nan", *others), servers.past(SIZE.encoder), servers.tick)
    ours = forecast(bundle, servers, servers.block(SIZE.encoder).values, profiles=("never-seen", *others))
    assert range_difference(ours, predicted(library, servers, rows)) < TOLERANCE


def test_a_server_with_a_short_past_is_forecast_as_the_library_predicts_it(
    library: Library, bundle: FleetBundle, servers: Servers, rows: Any
) -> None:
    lengths = np.full(COUNT, SIZE.encoder)
    lengths[:3] = SIZE.minimum, SIZE.minimum + 1, SIZE.encoder - 1
    first = dict(zip(servers.names, servers.tick - lengths + 1, strict=True))
    short = rows[rows["tick"] >= rows["server"].map(first)]
    values = servers.block(SIZE.encoder).values
    for row, length in enumerate(lengths.tolist()):
        values[row, : SIZE.encoder - length] = 0.0
    ours = forecast(bundle, servers, values, lengths=lengths)
    assert range_difference(ours, predicted(library, servers, short)) < TOLERANCE


def test_a_request_the_known_way_predicts_the_same_and_leaves_nothing_behind(
    library: Library, servers: Servers, wanted: NDArray[np.float32], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = answer(library, servers.records(SIZE))
    assert range_difference(by_server(SIZE, asked.outputs, asked.index, servers.names), wanted) < TOLERANCE
    assert not list(tmp_path.iterdir())


def test_a_bundle_of_the_library_proves_itself(library: Library, tmp_path: Path) -> None:
    from models.fleet.bundle import load_fleet_bundle
    from models.fleet.engines import verify_fleet_canary

    library.write_bundle(tmp_path / "bundle")
    loaded = load_fleet_bundle(tmp_path / "bundle")
    assert verify_fleet_canary(loaded, load_fleet_engine(loaded, "library", 1)) < TOLERANCE
    assert replace(loaded.manifest, files={}, sha256="") == library.bundle().manifest
