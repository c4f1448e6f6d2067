"""A command whose extra is not installed says which one to install; the others run without it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from forecastd.errors import EXTRAS, NeedsHuman, has_extra, require_extra
from models.fleet.bundle import load_fleet_bundle
from models.fleet.engines import load_fleet_engine
from tests.support.commands import CommandResult

# Runs a command in a process that cannot import these modules: its first argument.
BLOCKED_COMMAND = (
    "import sys; sys.modules.update(dict.fromkeys(sys.argv.pop(1).split())); from cli.main import run; run()"
)


def run_without(extra: str, directory: Path, *arguments: str, **environment: str) -> CommandResult:
    """Run `forecastd` without the modules of an extra."""
    root = Path(__file__).resolve().parents[2]
    variables = {"PYTHONPATH": str(root), "HOME": str(directory), "STATE_DIR": "state", "LOG_DIR": "logs"}
    completed = subprocess.run(
        [sys.executable, "-c", BLOCKED_COMMAND, " ".join(EXTRAS[extra]), *arguments],
        cwd=directory, env=variables | environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return CommandResult(completed.returncode, completed.stdout, completed.stderr)


@pytest.mark.parametrize(
    ("extra", "command", "purpose"),
    [
        ("exchange", "--once --source exchange:kraken", "The source exchange:kraken"),
        ("files", "--once --source file:candles.parquet", "Reading the Parquet file candles.parquet"),
        ("files", "data export copy.parquet", "Writing a Parquet file"),
        ("fleet", "fleet serve --demo", "The HTTP server of the fleet"),
        ("onnx", "model check FLEET --engine=onnx", "The engine onnx"),
        ("train", "model check FLEET --engine=library", "The engine library"),
        ("train", "train --hours 3000 --out bundle", "Training"),
        ("train", "fleet train --simulate 2x2 --out bundle", "Training"),
    ],
)
@pytest.mark.lean
def test_command_without_its_extra_names_it(tmp_path: Path, root: Path, extra: str, command: str, purpose: str) -> None:
    (tmp_path / "candles.parquet").write_bytes(b"PAR1")
    command, _, engine = command.partition(" --engine=")
    arguments = [str(root / "models" / "fleet-demo") if word == "FLEET" else word for word in command.split()]
    result = run_without(extra, tmp_path, *arguments, **({"FLEET_ENGINE": engine} if engine else {}))
    assert result.code == 5, result.err
    text = " ".join((result.out + result.err).split())
    assert f"{purpose} needs {EXTRAS[extra][0]}" in text
    assert f"pip install 'forecastd[{extra}]' (in a checkout: pip install '.[{extra}]')" in text
    assert "Traceback" not in result.err
    assert not (tmp_path / "bundle").exists()


@pytest.mark.lean
def test_fleet_model_without_onnx_runs_the_fused_engine(tmp_path: Path, root: Path) -> None:
    result = run_without("onnx", tmp_path, "model", "check", str(root / "models" / "fleet-demo"))
    assert result.code == 0, result.err
    assert "forecastd[onnx]" in result.err


def test_auto_engine_without_onnx_is_fused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = load_fleet_bundle(root / "models" / "fleet-demo")
    assert load_fleet_engine(bundle).name == "stream"
    for module in EXTRAS["onnx"]:
        monkeypatch.setitem(sys.modules, module, None)
        assert load_fleet_engine(bundle).name == "fused"


def test_installed_extra_is_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    require_extra("files", "A test")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert not has_extra("files")
    with pytest.raises(NeedsHuman, match=r"^A test needs pyarrow, which is not installed\. Run: pip install"):
        require_extra("files", "A test")


def test_extras_are_those_of_the_package_with_their_modules(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    packages = {
        extra: {re.split(r"[<>=]", requirement)[0] for requirement in requirements}
        for extra, requirements in project["optional-dependencies"].items()
    }
    distributions = packages_distributions()
    for extra, modules in EXTRAS.items():
        assert {distributions[module][0].lower().replace("_", "-") for module in modules} == packages[extra]
    assert packages["all"] == {f"forecastd[{','.join(sorted(EXTRAS))}]"}
    assert "forecastd[all]" in packages["dev"]
