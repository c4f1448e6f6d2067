"""The baseline: the same network with the same weights and rows, used as pytorch_forecasting documents it.

Comments explain what is needed to get real forecasts with each server's own scales from the library; without it the
numbers differ from the product's, and a test shows that.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.fleet.scene import FIRST_FORECAST_TIME, STEP, THREADS, ModelSize
from forecastd.fleet.simulator import Simulator
from models.bundle.bundle import write_bundle
from models.bundle.records import Interval, TrainingRecord
from models.fleet.bundle import CANARY_SERVERS, CENTER_KEY, SCALE_KEY, FleetBundle, fleet_canary_input
from models.fleet.folded_engines import FusedEngine
from models.fleet.manifest import DEFAULT_GROUP, OTHER_PROFILE, FleetManifest, ModelMetric, fleet_reals, known_reals
from models.fleet.scaling import calendar
from models.tft.config import TftConfig
from models.tft.parameters import parameter_shapes
from models.tft.torch_model import quiet_library

EMBEDDING = 3  # size of the profile embedding
BATCH_SIZE = 128  # servers per batch of the library's loader
GROUP_IDS = ["profile", "server"]
TRAINING_SERVERS = 20  # servers that the scales are computed from
TRAINER_OPTIONS = {
    "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
    "enable_checkpointing": False,
}  # fmt: skip


class BaselineLibrary:
    """A template data set and a network of the library with random weights."""

    def __init__(self, size: ModelSize, names: Iterable[str] = (), seed: int = 1) -> None:
        """`names`: the servers to forecast. The scales come from other servers, hours earlier."""
        import torch

        torch.set_num_threads(THREADS)
        torch.manual_seed(seed)
        self.size = size
        ticks = 3 * (size.encoder + size.horizon)
        simulator = Simulator(seed, TRAINING_SERVERS, "varied", STEP, start=FIRST_FORECAST_TIME // STEP)
        values = simulator.block(FIRST_FORECAST_TIME // STEP - 2 * ticks, ticks)
        rows = frame(size, simulator.names, simulator.profiles, values, FIRST_FORECAST_TIME // STEP - ticks - 1)
        with quiet_lightning():
            self.template = self._data_set(rows, {*names, *simulator.names})
            self.model = self._network()

    def _data_set(self, rows: pd.DataFrame, names: set[str]) -> Any:
        from pytorch_forecasting import TimeSeriesDataSet
        from pytorch_forecasting.data.encoders import GroupNormalizer, MultiNormalizer, NaNLabelEncoder

        size = self.size
        # The library looks up the scales twice, for input and output, by codes of two encoders. Both must be the same
        # encoder, or with `add_nan` the second is off by one. It uses the first entry of `group_ids`, whatever the
        # normalizer's groups are, so the profile must be first.
        encoders = {column: NaNLabelEncoder(add_nan=True, warn=False) for column in GROUP_IDS}
        # The library cannot map the code of a server that is unknown here back to its name.
        encoders["server"].fit(np.array(sorted(names), dtype=object))
        encoders |= {f"__group_id__{column}": deepcopy(encoder) for column, encoder in encoders.items()}
        return TimeSeriesDataSet(
            rows,
            time_idx="tick",
            target=list(size.names) if len(size.names) > 1 else size.names[0],
            group_ids=GROUP_IDS,
            min_encoder_length=size.minimum,
            max_encoder_length=size.encoder,
            min_prediction_length=size.horizon,
            max_prediction_length=size.horizon,
            static_categoricals=["profile"],
            time_varying_known_reals=list(known_reals(size.cycles)),
            time_varying_unknown_reals=list(size.names),
            target_normalizer=MultiNormalizer([
                # `scale_by_group` is needed: otherwise the library finds no group if there are two `group_ids`.
                GroupNormalizer(groups=["profile"], scale_by_group=True, transformation=_transformation(metric.transform))
                for metric in size.metrics
            ]),
            categorical_encoders=encoders,
            scalers=dict.fromkeys(known_reals(size.cycles)),  # they are between -1 and 1 already
            add_relative_time_idx=True,
            add_encoder_length=False,
        )  # fmt: skip

    def _network(self) -> Any:
        import torch
        from pytorch_forecasting import TemporalFusionTransformer
        from pytorch_forecasting.metrics import QuantileLoss
        from scipy.stats import norm  # type: ignore[import-untyped]  # no stubs, one use

        size, profiles = self.size, self.template._categorical_encoders["profile"].classes_
        model = TemporalFusionTransformer.from_dataset(
            self.template,
            allowed_encoder_known_variable_names=list(known_reals(size.cycles)),
            hidden_size=size.hidden,
            hidden_continuous_size=size.continuous,
            attention_head_size=size.heads,
            lstm_layers=size.layers,
            dropout=0.1,
            loss=QuantileLoss(list(size.levels)),
            embedding_sizes={"profile": (len(profiles), EMBEDDING)},
            log_interval=-1,
            logging_metrics=torch.nn.ModuleList(),
        ).eval()
        with torch.no_grad():  # spreads the quantiles about as far as those of a trained network
            for layer in model.output_layer:
                layer.bias.copy_(torch.as_tensor(norm.ppf(size.levels)))
        return model

    def data_set(self, rows: pd.DataFrame) -> Any:
        """A data set of new rows that predicts the last steps of each server."""
        from pytorch_forecasting import TimeSeriesDataSet

        return TimeSeriesDataSet.from_dataset(self.template, rows, predict=True, stop_randomization=True)

    def predict(
        self, rows: pd.DataFrame, batch_size: int = BATCH_SIZE
    ) -> tuple[list[NDArray[np.float32]], pd.DataFrame]:
        """Quantiles `[S, H, Q]` of each metric, and the index with server and tick of each row."""
        with quiet_lightning():
            prediction = self.model.predict(
                self.data_set(rows),
                mode="quantiles",
                return_index=True,
                batch_size=batch_size,
                trainer_kwargs=dict(TRAINER_OPTIONS),
            )
        return [output.numpy() for output in prediction.output], prediction.index

    def write_bundle(self, path: Path, name: str = "M") -> None:
        """Write the network and its scales as a bundle."""
        write_bundle(path, self.bundle(path, name))

    def bundle(self, path: Path = Path(), name: str = "M") -> FleetBundle:
        """The network and its scales as a bundle in memory."""
        manifest = self._manifest(name)
        state = {key: value.numpy() for key, value in self.model.state_dict().items()}
        weights = {key: state[key].astype(np.float32) for key in parameter_shapes(manifest.network)}
        weights |= {
            CENTER_KEY: self._scales("center", manifest.groups),
            SCALE_KEY: self._scales("scale", manifest.groups),
        }
        canary = {
            "tick": np.array([FIRST_FORECAST_TIME // STEP]),
            "values": np.full((CANARY_SERVERS, self.size.encoder, len(self.size.names)), 30.0, np.float32),
            "profiles": np.arange(CANARY_SERVERS),
            "groups": np.arange(CANARY_SERVERS),
        }
        bundle = FleetBundle(path, manifest, weights, canary)
        quantiles = FusedEngine(bundle).forecast(fleet_canary_input(bundle))
        return replace(bundle, canary={**canary, "quantiles": quantiles})

    def _manifest(self, name: str) -> FleetManifest:
        size = self.size
        classes = self.template._categorical_encoders["profile"].classes_
        profiles = (OTHER_PROFILE, *(item for item, code in classes.items() if code))
        encoder, decoder = fleet_reals(size.names, size.cycles)
        return FleetManifest(
            name=name,
            metrics=tuple(ModelMetric(item.name, item.unit, item.low, item.high, item.transform) for item in size.metrics),
            cycles=size.cycles,
            profiles=profiles,
            groups=(DEFAULT_GROUP, *(f"profile:{profile}" for profile in profiles[1:])),
            step=STEP,
            encoder_length=size.encoder,
            encoder_minimum=size.minimum,
            horizon=size.horizon,
            levels=size.levels,
            network=TftConfig(
                size.hidden, size.continuous, size.heads, size.layers, encoder, decoder, len(size.levels),
                len(size.names), len(profiles), EMBEDDING,
            ),
            training=TrainingRecord(
                FIRST_FORECAST_TIME, FIRST_FORECAST_TIME + 300, 60, "0" * 64, "none: random weights", True,
                FIRST_FORECAST_TIME + 300,
                {part: Interval(FIRST_FORECAST_TIME + 100 * i, FIRST_FORECAST_TIME + 100 * i + 100, 1)
                 for i, part in enumerate(("train", "validation", "test"))}, {},
            ),
            versions={},
            scores={},
            files={},
        )  # fmt: skip

    def _scales(self, kind: str, groups: tuple[str, ...]) -> NDArray[np.float32]:
        """The tables of the normalizers `[G, M]`: first the values for an unknown profile, then by profile."""
        table = []
        for normalizer in self.template.target_normalizer.normalizers:
            by_profile, default = normalizer.norm_["profile"][kind], normalizer.missing_["profile"][kind]
            table.append([default, *(by_profile.loc[code] for code in range(1, len(groups)))])
        return np.array(table, dtype=np.float32).T


def frame(
    size: ModelSize, names: tuple[str, ...], profiles: tuple[str, ...], values: NDArray[np.float32], tick: int
) -> pd.DataFrame:
    """The rows of servers whose `values` `[S, T, M]` end with `tick`, and rows for the horizon after it.

    The library predicts the last rows of its input, so without rows for the horizon it would predict the past. It
    does not read their metrics; the last values are repeated.
    """
    servers, history_length = values.shape[:2]
    ticks = np.arange(tick - history_length + 1, tick + size.horizon + 1)
    calendar_values = calendar(size.cycles, STEP, ticks)
    rows = np.concatenate([values, np.repeat(values[:, -1:], size.horizon, axis=1)], axis=1)[..., : len(size.names)]
    columns: dict[str, Any] = {
        "server": np.repeat(np.array(names, dtype=object), len(ticks)),
        "profile": np.repeat(np.array(profiles, dtype=object), len(ticks)),
        "tick": np.tile(ticks, servers),
    }
    flat = rows.reshape(-1, len(size.names)).astype(np.float64)
    columns |= {name: flat[:, column] for column, name in enumerate(size.names)}
    columns |= {
        name: np.tile(calendar_values[:, column], servers) for column, name in enumerate(known_reals(size.cycles))
    }
    return pd.DataFrame(columns)


def quantiles_by_server(
    size: ModelSize, outputs: list[NDArray[np.float32]], index: pd.DataFrame, names: tuple[str, ...]
) -> NDArray[np.float32]:
    """The library's prediction in the engines' shape: `[S, M, Q, H]` in the order of `names`, sorted, within bounds."""
    row_of: Mapping[str, int] = {server: row for row, server in enumerate(index["server"])}
    quantiles = np.stack(outputs, axis=1)[[row_of[name] for name in names]].swapaxes(2, 3)
    quantiles.sort(axis=2)
    low, high = (
        np.array([getattr(metric, bound) for metric in size.metrics])[:, None, None] for bound in ("low", "high")
    )
    return np.clip(quantiles, low, high)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Suppress harmless warnings and Lightning's log messages."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with quiet_library(), warnings.catch_warnings():
            warnings.simplefilter("ignore", PendingDeprecationWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _transformation(name: str) -> dict[str, Any] | None:
    """The library inverts its own "log1p" with exp, which is off by one; so both functions are given."""
    import torch

    return {"forward": torch.log1p, "reverse": torch.expm1} if name == "log1p" else None
