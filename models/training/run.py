"""One training run from its rows to a written bundle: fit, export, check the engine, score, write. The same for every kind.

What a step does is the kind's (`models.training.task.TrainingTask`). Torch and Lightning are imported here, when a
training runs, and nowhere before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from models.bundle.bundle import write_bundle
from models.bundle.canary import require_equal_engine
from models.bundle.manifest import Manifest
from models.errors import TrainingDiverged
from models.training.progress import ProgressMeter, TrainingProgress
from models.training.state import TrainingState
from models.training.task import TrainingTask

TrainingCallback = Callable[[TrainingProgress], None]


def run_task(
    task: TrainingTask[Any, Any],
    state: TrainingState,
    out: Path,
    progress: TrainingCallback,
    *,
    created: int,
    force: bool,
    finish: bool,
) -> Manifest:
    """Continue the unfinished training `state` from its last checkpoint and write its bundle at `out`.

    `created`: unix time for the manifest. `force`: replace a bundle at `out`. `finish`: fit no further, use the best
    checkpoint.

    Raises:
        DataError: a checkpoint is damaged, or the accelerator is missing.
        TrainingDiverged: the weights are not finite; the unfinished training is removed.
        BundleError: (check "canary") the engine differs from the network; (check "exists") `out` exists.
        KeyboardInterrupt: Ctrl-C; the checkpoints remain.
        OSError: the disk is full, or `out` may not be written.
    """
    config, scored_parts = task.config, (task.parts.validation, task.parts.test)
    scored_batches = [-(-task.count_scored(part) // config.batch_size) for part in scored_parts]
    meter = ProgressMeter(
        progress,
        epochs=config.epochs,
        batches=min(config.batches_per_epoch, -(-len(task.parts.train.windows) // config.batch_size)),
        validation_batches=scored_batches[0],
        scoring_batches=sum(scored_batches),
    )
    # One after the other, with progress between them: each may take a minute on a busy disk.
    for step, libraries in enumerate((("torch",), ("lightning.pytorch",), task.LIBRARIES), 1):
        for name in libraries:
            import_module(name)
        meter.report_stage("start", step)
    try:
        network = _fit_network(task, state, meter, fit=not (state.finished or finish))
        meter.report_stage("score", 0)
        bundle = task.export(network, out, created)
    except TrainingDiverged:
        state.remove()  # its checkpoints would only diverge again
        raise
    meter.report_stage("score", 1)
    engine, difference = task.load_engine(bundle)
    require_equal_engine(difference, task.TOLERANCE)
    meter.report_stage("score", 2)
    scores, before = dict[str, object](), 0
    for part, batches in zip(scored_parts, scored_batches, strict=True):

        def report(share: float, before: int = before, batches: int = batches) -> None:
            meter.report_scoring(before + share * batches)

        report(0)
        scores[part.name] = task.score(part, engine, report)
        before += batches
    meter.report_stage("write", 0)
    manifest: Manifest = write_bundle(
        out, replace(bundle, manifest=replace(bundle.manifest, scores=scores)), replace_old=force
    )
    meter.report_stage("write", 1)
    return manifest


def _fit_network(task: TrainingTask[Any, Any], state: TrainingState, meter: ProgressMeter, *, fit: bool) -> Any:
    """The library's network with the best weights, in eval mode on the CPU; fitted first, where `fit` says so."""
    from lightning.pytorch import seed_everything

    from models.training.lightning import fit_network, load_best_weights

    seed_everything(task.config.seed, workers=False, verbose=False)
    network = task.build_network()
    meter.report_stage("start", 4)
    if fit:
        fit_input = task.prepare_fit(network)
        meter.report_stage("start", 5)
        if not fit_network(fit_input, task.config, state.path, meter.report_fit):
            raise KeyboardInterrupt
        state.mark_finished()
    load_best_weights(network, state.path)
    return network.eval()
