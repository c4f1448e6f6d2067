"""Training in the process of a test: a child would import torch and Lightning again, which takes seconds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from forecastd.runtime.jobs import JobListener, JobRequest
from models.train import run_training


class InProcessJobRunner:
    """A `JobRunner` for training runs that starts no child."""

    def run(self, request: JobRequest, listener: JobListener) -> Any:
        """See `JobRunner`."""
        fields = dict(request.fields)
        manifest = run_training(
            Path(fields.pop("out")), lambda progress: listener.on_progress(asdict(progress)), **fields
        )
        return request.read({"bundle_sha256": manifest.sha256})


def train_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the training commands train in this process."""
    monkeypatch.setattr("cli.training_options.open_job_runner", lambda *_, **__: InProcessJobRunner())
