"""One training run from its rows to a written bundle: fit, export, check the engine, score, write. The same for every kind.

What a step does is the kind's (`models.training.task.TrainingTask`). Torch and Lightning are imported here, when a
training runs, and nowhere before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.errors import TrainingDiverged
from models.training.config import TrainingConfig
from models.training.progress import ProgressMeter
from models.training.state import TrainingState
from models.training.task import ManifestT, RowsT, TrainingCallback, TrainingTask


def run_task(
    task: TrainingTask[RowsT, Any, Any, Any, Any, Any, ManifestT],
    state: TrainingState,
    rows: RowsT,
    config: TrainingConfig,
    out: Path,
    *,
    progress: TrainingCallback,
    created: int,
    force: bool,
    finish: bool,
) -> ManifestT:
    """Continue the unfinished training `state` from its last checkpoint and write its bundle at `out`.

    `created`: unix time for the manifest. `force`: replace a bundle at `out`. `finish`: fit no further, use the best
    checkpoint.

    Raises:
        DataError: the rows do not suffice, a checkpoint is damaged, or the accelerator is missing.
        TrainingDiverged: the weights are not finite; the unfinished training is removed.
        BundleError: (check "canary") the engine differs from the network; (check "exists") `out` exists.
        KeyboardInterrupt: Ctrl-C; the checkpoints remain.
        OSError: the disk is full, or `out` may not be written.
    """
    parts = task.split(rows, config)
    counts = task.count_batches(rows, config, parts)
    meter = ProgressMeter(
        progress,
        epochs=config.epochs,
        batches=counts.train,
        validation_batches=counts.validation,
        scoring_batches=counts.scoring,
    )
    _load_libraries(task, meter)
    run = task.make_run(rows, config, parts)
    try:
        network = _fit_network(task, state, config, run, meter, fit=not (state.finished or finish))
        meter.report_stage("score", 0)
        bundle = task.export(run, network, out, created)
    except TrainingDiverged:
        state.remove()  # its checkpoints would only diverge again
        raise
    meter.report_stage("score", 1)
    bundle, engine = task.check_engine(bundle, network)
    meter.report_stage("score", 2)
    scores = task.score(run, engine, meter.report_scoring)
    meter.report_stage("write", 0)
    manifest = task.write(out, bundle, scores, replace_old=force)
    meter.report_stage("write", 1)
    return manifest


def _load_libraries(task: TrainingTask[Any, Any, Any, Any, Any, Any, Any], meter: ProgressMeter) -> None:
    """Import the libraries one after the other, with progress between them: each may take a minute on a busy disk."""
    import torch  # noqa: F401

    meter.report_stage("start", 1)
    import lightning.pytorch  # noqa: F401

    meter.report_stage("start", 2)
    task.load_libraries()
    meter.report_stage("start", 3)


def _fit_network(
    task: TrainingTask[Any, Any, Any, Any, Any, Any, Any],
    state: TrainingState,
    config: TrainingConfig,
    run: Any,
    meter: ProgressMeter,
    *,
    fit: bool,
) -> Any:
    """The library's network with the best weights, in eval mode on the CPU; fitted first, where `fit` says so."""
    from models.tft.torch_model import seed_all
    from models.training.lightning import fit_module, load_best_weights

    seed_all(config.seed)
    network = task.build_network(run)
    meter.report_stage("start", 4)
    if fit:
        module, loaders = task.make_module(run, network)
        meter.report_stage("start", 5)
        if not fit_module(module, loaders, config, state.path, meter.report_fit):
            raise KeyboardInterrupt
        state.mark_finished()
    load_best_weights(network, state.path)
    return network.eval()
