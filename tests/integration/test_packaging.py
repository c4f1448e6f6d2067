"""The top-level names of the wheel are unique, it contains what an installed program needs; the constraints are complete."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distributions
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SERVICES = {
    "allora-submission.service", "supervisord-allora-submission.conf",
    "forecastd-fleet.service", "supervisord-forecastd-fleet.conf",
}  # fmt: skip
PEERS = ("darts", "neuralforecast")  # of the benchmarks; not part of the development environment
PACKAGED_NAMES = {"cli", "forecastd", "models", "submit_prediction.py", "features.json"} | SERVICES


def test_installed_distributions_share_no_top_level_name() -> None:
    conflicts = {
        f"{distribution.metadata['Name']}: {file}"
        for distribution in distributions()
        if (distribution.metadata["Name"] or "").lower() != "forecastd"
        for file in distribution.files or ()
        if file.parts and file.parts[0] in PACKAGED_NAMES
    }
    assert not conflicts


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    return next(target.glob("*.whl"))


def test_wheel_contains_program_demo_bundle_and_features(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for required in (
        "submit_prediction.py", "features.json", "cli/main.py", "forecastd/submission/cycle.py", "forecastd/py.typed",
        "models/tft/forward.py", "models/demo/manifest.json", "models/demo/weights.safetensors",
        "models/demo/canary.safetensors",
    ):  # fmt: skip
        assert required in names, required


def test_wheel_contains_nothing_else(wheel: Path) -> None:
    top_level_names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in top_level_names if not top.endswith(".dist-info")} == PACKAGED_NAMES


def test_demo_bundle_is_small(root: Path) -> None:
    size = sum(path.stat().st_size for path in (root / "models" / "demo").iterdir())
    assert size < 300_000


def test_constraints_have_an_allowed_version_of_every_requirement(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    lines = (root / "constraints.txt").read_text().splitlines()
    versions = dict(line.split("==") for line in lines if not line.startswith("#"))
    dependencies = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    for requirement in map(Requirement, dependencies):
        if requirement.name not in ("forecastd", *PEERS):
            name = canonicalize_name(requirement.name)
            assert versions.get(name, "none") in requirement.specifier, requirement
