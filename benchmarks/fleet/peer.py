"""Child process that predicts with another library: run as a file, by an interpreter that has the library but not
this product.

Arguments: the library, and a directory with `values.npy` float32 `[S, L, M]` and `spec.json`. It prints for each way
to predict its label and the seconds of its best run, from arrays to quantile arrays. The networks train for one step
on a few servers, because their forecasts are not evaluated.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

TRAINING_SERVERS = 4
TRAINER_OPTIONS = {
    "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
    "enable_checkpointing": False,
}  # fmt: skip


def neuralforecast(values: Any, spec: dict[str, Any]) -> dict[str, float]:
    """Its network has one target: each metric of each server is a series, or one metric is predicted from all."""
    from neuralforecast import NeuralForecast
    from neuralforecast.losses.pytorch import MQLoss
    from neuralforecast.models import TFT

    def fitted(rows: Any, exogenous_names: list[str]) -> Any:
        model = TFT(
            h=spec["horizon"], input_size=spec["encoder"], hidden_size=spec["hidden"], n_head=spec["heads"],
            n_rnn_layers=spec["layers"], hist_exog_list=exogenous_names or None,
            loss=MQLoss(quantiles=spec["levels"]), max_steps=1, start_padding_enabled=True, batch_size=128,
            inference_windows_batch_size=128, **TRAINER_OPTIONS,
        )  # fmt: skip
        forecast = NeuralForecast(models=[model], freq=spec["step"])
        forecast.fit(df=rows)
        return forecast

    def series(count: int) -> Any:
        """Every metric as a series."""
        selected = values[:count].swapaxes(1, 2)
        names = [f"{name}/{metric}" for name in spec["names"][:count] for metric in spec["metrics"]]
        return pd.DataFrame({
            "unique_id": np.repeat(names, selected.shape[2]), "ds": np.tile(times(spec), len(names)),
            "y": selected.reshape(-1),
        })  # fmt: skip

    def exogenous(count: int) -> Any:
        """The first metric of each server, with the others as history."""
        flat = values[:count].reshape(-1, values.shape[2])
        columns = {"unique_id": np.repeat(spec["names"][:count], values.shape[1]), "ds": np.tile(times(spec), count)}
        columns["y"] = flat[:, 0]
        columns |= {name: flat[:, 1 + index] for index, name in enumerate(spec["metrics"][1:])}
        return pd.DataFrame(columns)

    def predict(fitted_model: Any, rows: Callable[[int], Any]) -> Any:
        return fitted_model.predict(df=rows(len(values))).to_numpy()

    seconds = {}
    for label, rows, exogenous_names in (
        ("each metric as its own series", series, []),
        ("one metric, the others as history", exogenous, spec["metrics"][1:]),
    ):
        fitted_model = fitted(rows(TRAINING_SERVERS), exogenous_names)
        seconds[label] = best_seconds(spec, partial(predict, fitted_model, rows))
    return seconds


def darts(values: Any, spec: dict[str, Any]) -> dict[str, float]:
    """All metrics are components of one series."""
    from darts import TimeSeries
    from darts.models import TFTModel
    from darts.utils.likelihood_models.torch import QuantileRegression

    model = TFTModel(
        input_chunk_length=spec["encoder"], output_chunk_length=spec["horizon"], hidden_size=spec["hidden"],
        hidden_continuous_size=spec["continuous"], lstm_layers=spec["layers"], num_attention_heads=spec["heads"],
        likelihood=QuantileRegression(spec["levels"]), add_relative_index=True, batch_size=128, n_epochs=1,
        pl_trainer_kwargs={**TRAINER_OPTIONS, "max_steps": 1},
    )  # fmt: skip

    def series(block: Any) -> list[Any]:
        index = pd.RangeIndex(block.shape[1])
        return [
            TimeSeries.from_times_and_values(index, server_values, columns=spec["metrics"]) for server_values in block
        ]

    model.fit(series(np.concatenate([values[:TRAINING_SERVERS], values[:TRAINING_SERVERS]], axis=1)))

    def predict() -> Any:
        predictions = model.predict(
            spec["horizon"],
            series=series(values),
            predict_likelihood_parameters=True,
            verbose=False,
            show_warnings=False,
        )
        return [prediction.values() for prediction in predictions]

    return {"all metrics at once": best_seconds(spec, predict)}


def times(spec: dict[str, Any]) -> Any:
    """The ticks of a window, in seconds."""
    return np.arange(spec["tick"] - spec["encoder"] + 1, spec["tick"] + 1) * spec["step"]


def best_seconds(spec: dict[str, Any], predict: Callable[[], Any]) -> float:
    """The seconds of the best run, after one warm-up."""
    predict()
    seconds = []
    for _ in range(spec["turns"]):
        started = time.perf_counter()
        predict()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    directory = Path(sys.argv[2])
    plan = json.loads((directory / "spec.json").read_text())
    import torch

    torch.set_num_threads(plan["threads"])
    libraries = {"neuralforecast": neuralforecast, "darts": darts}
    print(json.dumps(libraries[sys.argv[1]](np.load(directory / "values.npy"), plan)))
