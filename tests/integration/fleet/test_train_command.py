"""`fleet train` from a history, a simulation or a table to a bundle, and the commands that describe the bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cli.main import main
from forecastd.fleet.contract import METRIC_INDEX, METRIC_NAMES
from forecastd.fleet.ingest.feed import FleetRows
from forecastd.fleet.simulator import Simulator
from forecastd.fleet.window.store import TickStore
from models.fleet.bundle import load_fleet_bundle
from models.fleet.engines import load_fleet_engine, verify_fleet_canary
from models.training import state
from tests.support.training import train_in_process

TINY_OPTIONS = (
    "--encoder-length", "16", "--encoder-minimum", "8", "--horizon", "8", "--hidden-size", "4", "--hidden-continuous-size",
    "2", "--epochs", "1", "--batches-per-epoch", "2", "--batch-size", "4", "--scored-windows", "8", "--compared-windows", "2",
    "--accelerator", "cpu",
)  # fmt: skip
UNTIL = "2026-01-01T00:00:00Z"
END = 1_767_225_600
SIMULATED = ("fleet", "train", "--simulate", "5x1:varied", "--until", UNTIL, *TINY_OPTIONS)


def store_history(state: Path, *, without: tuple[str, ...] = ()) -> None:
    """The history of four servers over 40 minutes, as the service stores it."""
    fleet = Simulator(4, 4, "varied", 5)
    first = END // 5 - 480
    (state / "fleet").mkdir(parents=True)
    with TickStore(state / "fleet" / "window.sqlite") as store:
        for tick in range(first, first + 480):
            rows = fleet.rows(tick)
            values = rows.values.copy()
            values[:, [METRIC_INDEX[name] for name in without]] = np.nan
            rows = FleetRows.from_values(rows.servers, rows.times, values, step=5, profiles=rows.profiles)
            store.append(rows, END)


def test_train_on_simulation_writes_checked_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train_in_process(monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")
    state, out = ("--state-dir", str(tmp_path / "state")), tmp_path / "state" / "fleet" / "models" / "mine"
    assert main([*SIMULATED, *state, "--out", str(out)]) == 0
    output = capsys.readouterr().out
    for words in ("5 servers, seed 0, synthetic", "last value", "seasonal naive", "AutoETS", "cpu_percent", "80%"):
        assert words in output
    assert 'POST /admin/reload-model {"name": "mine"}' in " ".join(output.split())
    assert max(len(line) for line in output.splitlines()) <= 80
    bundle = load_fleet_bundle(out)
    assert (bundle.manifest.name, bundle.manifest.names) == ("mine", METRIC_NAMES)
    assert bundle.manifest.training.end == END
    assert not any(group.startswith("server:") for group in bundle.manifest.groups)  # simulated names get no scales
    assert main([*state, "model", "show", str(out)]) == 0
    description = capsys.readouterr().out
    assert max(len(line) for line in description.splitlines()) <= 80
    assert "8 steps of 5 s" in description
    assert "last value" in description
    assert main([*state, "model", "show", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "temporal-fusion-transformer-fleet"
    assert main([*state, "model", "check", str(out)]) == 0
    checked = " ".join(capsys.readouterr().out.split())
    assert "hashes, weights and canary are correct" in checked
    assert f"forecastd fleet serve --model {out}".replace(" ", "") in checked.replace(" ", "")
    (out / "weights.safetensors").write_bytes((out / "weights.safetensors").read_bytes()[:-1])
    assert main([*state, "model", "check", str(out)]) == 5
    assert "(check: hash)" in " ".join(capsys.readouterr().err.split())


def test_market_command_describes_fleet_bundle(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = root / "models" / "fleet-demo"
    assert main(["--state-dir", str(tmp_path), "--once", "--model", str(bundle)]) == 5
    output = " ".join(capsys.readouterr().out.split())
    assert "is of a fleet model" in output
    assert "forecastd fleet serve" in output


def test_train_on_history_drops_unreported_metrics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train_in_process(monkeypatch)
    store_history(tmp_path, without=("swap_percent", "error_percent"))
    assert (
        main(
            [
                "fleet",
                "train",
                "--state-dir",
                str(tmp_path),
                "--until",
                UNTIL,
                "--history",
                "1",
                *TINY_OPTIONS,
                "--json",
            ]
        )
        == 0
    )
    output = json.loads(capsys.readouterr().out)
    out = tmp_path / "fleet" / "models" / "trained"
    bundle = load_fleet_bundle(out)
    assert bundle.manifest.names == tuple(
        name for name in METRIC_NAMES if name not in {"swap_percent", "error_percent"}
    )
    assert (output["name"], output["training"]["synthetic"]) == ("trained", False)
    assert output["training"]["rows"] == 4 * 480
    assert set(bundle.manifest.groups) >= {"server:web-01", "profile:web", "default"}
    assert verify_fleet_canary(bundle, load_fleet_engine(bundle)) < 1e-3


def test_train_on_table_writes_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train_in_process(monkeypatch)
    rng = np.random.default_rng(0)
    rows = [f"{name},{END - 300 * k},{50 + rng.normal():.3f}" for name in ("a", "b") for k in range(400)]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["series,timestamp,value", *rows]))
    assert main(["fleet", "train", "--data", str(table), "--out", str(tmp_path / "b"), *TINY_OPTIONS]) == 0
    manifest = load_fleet_bundle(tmp_path / "b").manifest
    assert (manifest.step, manifest.names, manifest.training.rows) == (300, ("value",), 800)
    assert "table.csv, 2 of 2 series" in capsys.readouterr().out
    assert manifest.scores["test"]["season_seconds"] > 0  # type: ignore[index]


@pytest.mark.parametrize(
    ("arguments", "code", "output"),
    [
        (["--simulate", "20"], 5, "SERVERSxHOURS"),
        (["--simulate", "5x1:storm"], 5, "the scenarios are healthy"),
        (["--simulate", "99999x99999"], 5, "Use fewer servers"),
        (["--simulate", "5x0.1"], 5, "spans 6.0 min, but the training needs at least"),
        (["--data", "/does/not/exist.csv"], 5, "No such file"),
        (["--data", "x.csv", "--history", "2"], 5, "Give only one of them"),
        (["--history", "0"], 2, "--history"),
        (["--history", "2"], 5, "There is no fleet history"),
        (["--simulate", "5x1", "--encoder-minimum", "17"], 5, "--encoder-minimum"),
        (["--simulate", "5x1", "--levels", "0.1"], 5, "0.5"),
        (["--simulate", "5x1", "--levels", "a"], 2, "--levels"),
        (["--simulate", "5x1", "--until", "soon"], 2, "--until"),
        (["--simulate", "5x1", "--learning-rate", "nan"], 5, "--learning-rate"),
        (["--simulate", "5x1", "--finish"], 5, "without --finish"),
    ],
)
def test_train_refusal_has_exit_code_and_reason(
    arguments: list[str], code: int, output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    options = ["fleet", "train", *TINY_OPTIONS, "--state-dir", str(state), *arguments, "--out", str(tmp_path / "b")]
    assert main(options) == code
    assert output in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == [state]
    assert list(state.iterdir()) == []


def test_train_resume_uses_saved_history(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store_history(tmp_path)
    command = [
        "fleet",
        "train",
        "--state-dir",
        str(tmp_path),
        "--until",
        UNTIL,
        "--history",
        "1",
        *TINY_OPTIONS,
        "--out",
    ]
    out = tmp_path / "b"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JOB_ATTEMPTS", "1")
        assert main([*command, str(out), "--fault", "exit:7@4"]) == 5
    assert "run the same command again to resume" in " ".join(capsys.readouterr().err.split())
    assert state.load(out) is not None
    shutil.rmtree(tmp_path / "fleet")
    train_in_process(monkeypatch)
    assert main([*command, str(out)]) == 0
    assert "resuming the interrupted training" in " ".join(capsys.readouterr().out.split())
