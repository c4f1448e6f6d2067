"""The forecast benchmark's process for the usual way.

`prepare` saves what a training run leaves: a Lightning checkpoint with the parameters of the data set, and the rows to
predict from. `predict` is measured: it imports the libraries, loads the network, builds the data set of the new rows,
and predicts.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path


def prepare(bundle_path: str, directory: str) -> None:
    """Save checkpoint and rows below `directory`."""
    from lightning.pytorch import Trainer

    from models.market.bundle import load_market_bundle, market_canary_input
    from tests.support import library_reference

    bundle = load_market_bundle(Path(bundle_path))
    manifest = bundle.manifest
    data = library_reference.rows(market_canary_input(bundle), manifest)
    data.target[manifest.encoder_length :] += 1e-3  # rows of a real training run would vary
    dataset = library_reference.dataset(data, manifest.scalers, manifest.encoder_length, manifest.horizon)
    model = library_reference.network(manifest, bundle.weights)
    model.dataset_parameters = dataset.get_parameters()
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(f"{directory}/model.ckpt")
    library_reference.frame(library_reference.rows(market_canary_input(bundle), manifest)).to_parquet(
        f"{directory}/rows.parquet"
    )


def predict(directory: str) -> None:
    """The usual forecast: quantiles of the log-return from the last close, printed as JSON."""
    import pandas as pd
    from pytorch_forecasting import TemporalFusionTransformer, TimeSeriesDataSet

    logging.disable(logging.WARNING)
    model = TemporalFusionTransformer.load_from_checkpoint(f"{directory}/model.ckpt", weights_only=False)
    rows = pd.read_parquet(f"{directory}/rows.parquet")
    dataset = TimeSeriesDataSet.from_parameters(model.dataset_parameters, rows, predict=True)
    trainer = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    quantiles = model.predict(dataset, mode="quantiles", batch_size=1, trainer_kwargs=trainer)[0].double().numpy()
    origin = rows["log_close"].iloc[-1]  # the future rows repeat the last close
    quantiles.sort(axis=1)
    print(json.dumps({"quantiles": (quantiles - origin).tolist()}))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if sys.argv[1] == "prepare":
        prepare(sys.argv[2], sys.argv[3])
    else:
        predict(sys.argv[2])
