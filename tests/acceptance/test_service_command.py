"""`forecastd service`: systemd accepts its units, and foreign or changed files are left alone."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from forecastd.service.installed import missing_paths
from forecastd.service.launch import FLEET_SERVICE, SERVICES, LaunchSpec, ServiceKind
from forecastd.service.template import parse_references, render_template

AS_ROOT = os.getuid() == 0
WHO = ("--run-as", "nobody") if AS_ROOT else ()
UNIT, PROGRAM = "allora-submission.service", "allora-submission.conf"
MAX_EXPOSURE = 1.5  # the highest exposure that `systemd-analyze security` may report, of 10


class SystemdAnalyze:
    """`systemd-analyze` on a unit file."""

    def __init__(self, program: str, home: Path) -> None:
        self._program = program
        self._environment = {"PATH": os.defpath, "HOME": str(home), "XDG_RUNTIME_DIR": str(home), "LC_ALL": "C.UTF-8"}

    def __call__(self, *arguments: str) -> tuple[int, str]:
        result = subprocess.run(
            [self._program, "--no-pager", *arguments],
            env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        return result.returncode, result.stdout

    def approves(self, unit: Path, *scope: str) -> None:
        assert self(*scope, "verify", str(unit)) == (0, "")
        code, output = self(*scope, "security", "--offline=true", str(unit))
        (exposure,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", output)
        assert code == 0
        assert float(exposure) <= MAX_EXPOSURE, output


@pytest.fixture
def analyze(tmp_path: Path) -> SystemdAnalyze:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    return SystemdAnalyze(program, tmp_path)


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.name)
def test_service_shipped_unit_passes_analyze(analyze: SystemdAnalyze, tmp_path: Path, service: ServiceKind) -> None:
    text = service.template_path("systemd").read_text(encoding="utf-8")
    words = " ".join(service.arguments)
    assert f"ExecStart=/opt/forecastd/.venv/bin/python /opt/forecastd/submit_prediction.py {words}\n" in text
    here = tmp_path / service.template_path("systemd").name
    here.write_text(text.replace("/opt/forecastd/.venv/bin/python", sys.executable))
    analyze.approves(here)


def test_service_analyze_detects_exposed_or_broken_unit(analyze: SystemdAnalyze, root: Path, tmp_path: Path) -> None:
    text = (root / UNIT).read_text(encoding="utf-8").replace("/opt/forecastd/.venv/bin/python", sys.executable)
    for changed in (
        text.replace("ProtectSystem=strict", "").replace("User=forecastd", ""),
        text.replace("LimitCORE", "LimitCOREE"),
    ):
        (tmp_path / UNIT).write_text(changed)
        with pytest.raises(AssertionError):
            analyze.approves(tmp_path / UNIT)


HOMES = Path("/home/someone")
LAUNCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "at_home": {"directory": HOMES, "state": HOMES / "state", "logs": HOMES / "logs"},
    "per_user": {"per_user": True, "directory": HOMES, "state": HOMES / "state", "logs": HOMES / "logs"},
    "credential": {"credential": Path("/etc/a-phrase:50")},
    "fleet": {
        "service": FLEET_SERVICE,
        "per_user": True,
        "state": HOMES / "state",
        "logs": HOMES / "logs",
        "credential": Path("/etc/keys"),
    },
    "options": {"options": ("--state-dir", "/var/a,b", "--log-dir", "/home=x/~y")},
}


@pytest.mark.parametrize("scope", [(), ("--user",)], ids=["system", "user"])
@pytest.mark.parametrize("name", [*LAUNCHES, "letters"])
def test_service_rendered_units_pass_analyze(
    analyze: SystemdAnalyze, tmp_path: Path, name: str, scope: tuple[str, ...]
) -> None:
    parts: dict[str, Any] = {
        "python": Path(sys.executable), "program": Path("/opt/p"), "directory": Path("/opt"), "options": (), "user": "worker",
        "per_user": False, "state": None, "logs": None, "credential": None,
    }  # fmt: skip
    if name == "letters":  # systemd reports a path that it reads differently, because it then does not exist
        directory = tmp_path / "a=b,c:d@e~é+中文"
        directory.mkdir()
        (directory / "python").symlink_to(sys.executable)
        parts |= {"python": directory / "python", "directory": directory, "state": directory, "logs": directory}
    unit = tmp_path / UNIT
    launch = LaunchSpec(**(parts | LAUNCHES.get(name, {})))
    unit.write_text(render_template("systemd", launch))
    analyze.approves(unit, *scope)


@pytest.mark.parametrize("manager", ["systemd", "supervisord"])
def test_service_install_and_uninstall_respect_manual_changes(command: Any, tmp_path: Path, manager: str) -> None:
    directory = tmp_path / "units"
    directory.mkdir()
    file = directory / (UNIT if manager == "systemd" else PROGRAM)
    arguments = ("--manager", manager, "--to", str(directory))

    result = command("service", "install", *arguments, *WHO)
    assert result.code == 0, result.err
    assert f"Written: {file}\n" in result.out
    assert (
        "systemctl enable --now allora-submission" if manager == "systemd" else "supervisorctl update"
    ) in result.out
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert command("service", "show", "--manager", manager, *WHO).out == file.read_text(encoding="utf-8")
    assert missing_paths(file) == []
    assert f"--state-dir {tmp_path}/state --log-dir {tmp_path}/logs" in file.read_text(encoding="utf-8")

    assert command("service", "install", *arguments, *WHO).code == 0
    changed = file.read_text(encoding="utf-8") + "# mine\n"
    file.write_text(changed)
    for action in (("install", *arguments, *WHO), ("uninstall", *arguments)):
        refusal = command("service", *action)
        assert (refusal.code, refusal.out) == (5, "")
        assert "was changed by hand" in refusal.err
    assert file.read_text(encoding="utf-8") == changed
    assert command("service", "install", *arguments, *WHO, "--force").code == 0

    result = command("service", "uninstall", *arguments)
    assert result.code == 0
    assert f"Removed: {file}\nKept: {tmp_path}/state, {tmp_path}/logs\n" in result.out
    assert list(directory.iterdir()) == []
    removed = command("service", "uninstall", *arguments)
    assert removed.code == 5
    assert "does not exist" in removed.err


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_service_foreign_file_is_left_alone(command: Any, root: Path, tmp_path: Path, kind: str) -> None:
    file = tmp_path / UNIT
    if kind == "file":
        file.write_bytes((root / UNIT).read_bytes())
    elif kind == "link":  # as made by `systemctl mask`
        file.symlink_to("/dev/null")
    else:
        file.mkdir()
    before = identity(file)
    for action in (("install", *WHO), ("uninstall",)):
        result = command("service", *action, "--manager", "systemd", "--to", str(tmp_path))
        assert result.code == 5
        assert str(file) in result.err
        assert "Traceback" not in result.err
    assert identity(file) == before


def identity(file: Path) -> tuple[int, ...]:
    info = file.lstat()
    return info.st_ino, info.st_mode, info.st_size, info.st_mtime_ns


@pytest.mark.parametrize("manager", ["systemd", "supervisord"])
def test_service_fleet_is_installed_beside_daemon(command: Any, tmp_path: Path, manager: str) -> None:
    arguments = ("--manager", manager, "--to", str(tmp_path))
    for more in ((), ("--fleet",)):
        assert command("service", "install", *more, *arguments, *WHO).code == 0
    suffix = ".service" if manager == "systemd" else ".conf"
    fleet, daemon = tmp_path / f"forecastd-fleet{suffix}", tmp_path / f"allora-submission{suffix}"
    text = fleet.read_text(encoding="utf-8")
    assert f"submit_prediction.py fleet serve --state-dir {tmp_path}/state --log-dir {tmp_path}/logs\n" in text
    assert command("service", "show", "--fleet", "--manager", manager, *WHO).out == text
    assert missing_paths(fleet) == []
    result = command("service", "uninstall", "--fleet", *arguments)
    assert result.code == 0, result.err
    assert not fleet.exists()
    assert daemon.is_file()


def test_service_public_fleet_without_keys_warns(command: Any, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("FLEET_HOST=10.0.0.7\n")
    (tmp_path / ".env").chmod(0o600)
    result = command("service", "show", "--fleet", "--manager", "supervisord", *WHO)
    assert result.code == 0, result.err
    assert "the fleet does not start there without an API key: set FLEET_API_KEYS_FILE in .env" in result.err
    assert "No wallet" not in result.err
    refusal = command("service", "show", "--fleet", "--manager", "supervisord", "--credential", "/etc/keys")
    assert refusal.code == 2
    assert "FLEET_API_KEYS_FILE" in refusal.err


def test_service_enabled_unit_is_not_removed(command: Any, tmp_path: Path) -> None:
    arguments = ("--manager", "systemd", "--to", str(tmp_path))
    assert command("service", "install", *arguments, *WHO).code == 0
    (tmp_path / "multi-user.target.wants").mkdir()
    (tmp_path / "multi-user.target.wants" / UNIT).symlink_to(tmp_path / UNIT)
    result = command("service", "uninstall", *arguments)
    assert result.code == 5
    assert "First run: systemctl disable --now allora-submission" in result.err
    assert (tmp_path / UNIT).is_file()


def test_service_install_accepts_other_directory_and_env(
    command: Any, environment: dict[str, str], tmp_path: Path
) -> None:
    del environment["STATE_DIR"]
    directory = tmp_path / "my+own=Ünit"
    directory.mkdir()
    (directory / ".env").write_text("STATE_DIR=my_state\nALLORA_NETWORK=testnet\n")
    (directory / ".env").chmod(0o600)
    shared = ("--directory", str(directory), "--python", sys.executable, "--to", str(tmp_path), *WHO)
    for manager, name in (("systemd", UNIT), ("supervisord", PROGRAM)):
        result = command("service", "install", "--manager", manager, *shared, LOG_DIR="/srv/l", TIINGO_API_KEY="x")
        assert result.code == 0, result.err
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert missing_paths(tmp_path / name) == []
        assert parse_references(text).directories == [str(directory)]
        assert "--state-dir" not in text
        assert "--log-dir /srv/l" in text
        assert f"not for the service: TIINGO_API_KEY. Add to {directory}/.env." in result.err
        assert "No wallet is set" in result.err
        assert "-m 700" in result.out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("install", "--user", "--manager", "supervisord"), 2, "omit --user"),
        (("show", "--manager", "supervisord", "--credential", "/etc/phrase"), 2, "MNEMONIC_FILE"),
        (("show", "--user", "--run-as", "nobody"), 2, "runs as you"),
        (("show", "--manager", "upstart"), 2, "upstart"),
        (("show", "--directory", "/nowhere"), 2, "/nowhere"),
        (("show", "--manager", "systemd", "--run-as", "nobody-of-this-name"), 5, "useradd"),
        (("show", "--manager", "systemd", "--run-as", "root"), 5, "does not need root"),
        (("show", "--manager", "systemd", *WHO, "--python", "/a\nb"), 5, "A service file cannot express"),
        (("show", "--manager", "supervisord", *WHO, "--python", "/a b"), 5, "A service file cannot express '/a b'"),
        (("install", "--manager", "systemd", *WHO, "--to", "/proc/nowhere"), 5, "Cannot write"),
        (("uninstall", "--manager", "systemd", "--to", "/nowhere"), 5, "does not exist"),
    ],
)
def test_service_refusal_is_one_line(command: Any, arguments: tuple[str, ...], code: int, message: str) -> None:
    result = command("service", *arguments)
    assert result.code == code, result.err
    assert message in result.err
    assert "Traceback" not in result.err
    assert result.out == ""


@pytest.mark.skipif(AS_ROOT, reason="root has no service of its own")
def test_service_user_unit_goes_to_user_configuration(command: Any, environment: dict[str, str]) -> None:
    result = command("service", "install", "--user")
    assert result.code == 0, result.err
    file = Path(environment["HOME"], ".config/systemd/user", UNIT)
    assert "WantedBy=default.target" in file.read_text(encoding="utf-8")
    assert "systemctl --user enable --now" in result.out
    assert command("service", "uninstall", "--user").code == 0


def test_doctor_reads_the_installed_service(command: Any, environment: dict[str, str]) -> None:
    units = Path(environment["HOME"], ".config/systemd/user")
    assert command("service", "install", "--manager", "systemd", "--to", str(units), *WHO).code == 0
    findings = {finding["check"]: finding for finding in command("doctor", "--json").document["findings"]}
    assert findings["service"]["level"] == "ok"
    assert str(units / UNIT) in findings["service"]["message"]
