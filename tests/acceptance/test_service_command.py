"""`forecastd service`: what it writes is right for systemd itself, and what is not its own it leaves alone."""

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

from forecastd.service import supervisord, systemd
from forecastd.service.installed import missing
from forecastd.service.launch import FLEET, SERVICES, Launch, Service

AS_ROOT = os.getuid() == 0
WHO = ("--run-as", "nobody") if AS_ROOT else ()
UNIT, PROGRAM = "allora-submission.service", "allora-submission.conf"
MOST = 1.5  # of 10, the exposure that `systemd-analyze security` may find


class Analyze:
    """`systemd-analyze` on a unit file."""

    def __init__(self, program: str, home: Path) -> None:
        self._program = program
        self._environment = {"PATH": os.defpath, "HOME": str(home), "XDG_RUNTIME_DIR": str(home), "LC_ALL": "C.UTF-8"}

    def __call__(self, *arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [self._program, "--no-pager", *arguments],
            env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout

    def approves(self, unit: Path, *scope: str) -> None:
        assert self(*scope, "verify", str(unit)) == (0, "")
        code, told = self(*scope, "security", "--offline=true", str(unit))
        (exposure,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", told)
        assert code == 0
        assert float(exposure) <= MOST, told


@pytest.fixture
def analyze(tmp_path: Path) -> Analyze:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    return Analyze(program, tmp_path)


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.name)
def test_the_unit_that_ships_is_approved(analyze: Analyze, tmp_path: Path, service: Service) -> None:
    text = service.template("systemd").read_text(encoding="utf-8")
    words = " ".join(service.words)
    assert f"ExecStart=/opt/forecastd/.venv/bin/python /opt/forecastd/submit_prediction.py {words}\n" in text
    here = tmp_path / service.template("systemd").name
    here.write_text(text.replace("/opt/forecastd/.venv/bin/python", sys.executable))
    analyze.approves(here)


def test_a_unit_that_would_be_exposed_or_broken_is_noticed(analyze: Analyze, root: Path, tmp_path: Path) -> None:
    text = (root / UNIT).read_text(encoding="utf-8").replace("/opt/forecastd/.venv/bin/python", sys.executable)
    for changed in (
        text.replace("ProtectSystem=strict", "").replace("User=forecastd", ""),
        text.replace("LimitCORE", "LimitCOREE"),
    ):
        (tmp_path / UNIT).write_text(changed)
        with pytest.raises(AssertionError):
            analyze.approves(tmp_path / UNIT)


HOMES = Path("/home/somebody")
LAUNCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "at_home": {"directory": HOMES, "state": HOMES / "state", "logs": HOMES / "my logs"},
    "own": {"own": True, "directory": HOMES, "state": HOMES / "state", "logs": HOMES / "logs"},
    "credential": {"credential": Path("/etc/a phrase: 50%")},
    "fleet": {"service": FLEET, "own": True, "state": HOMES / "state", "credential": Path("/etc/keys")},
    "options": {"options": ("--state-dir", "/var/a b", "--log-dir", "/${HOME}/%h;x")},
}


@pytest.mark.parametrize("scope", [(), ("--user",)], ids=["system", "user"])
@pytest.mark.parametrize("name", [*LAUNCHES, "awkward"])
def test_every_rendered_unit_is_approved(analyze: Analyze, tmp_path: Path, name: str, scope: tuple[str, ...]) -> None:
    parts: dict[str, Any] = {
        "python": Path(sys.executable), "program": Path("/opt/p"), "directory": Path("/opt"), "options": (), "user": "worker",
        "own": False, "state": None, "logs": None, "credential": None,
    }  # fmt: skip
    if name == "awkward":  # a name that is not read back as it is would not be found, and that would be told
        place = tmp_path / " a b%h\\x41 ${HOME} 'c' \"d\" ; # é"
        place.mkdir()
        (place / "python").symlink_to(sys.executable)
        parts |= {"python": place / "python", "directory": place, "state": place, "logs": place}
    unit = tmp_path / UNIT
    launch = Launch(**(parts | LAUNCHES.get(name, {})))
    unit.write_text(systemd.render(launch.service.template("systemd").read_text(encoding="utf-8"), launch))
    analyze.approves(unit, *scope)


@pytest.mark.parametrize("manager", ["systemd", "supervisord"])
def test_it_is_installed_replaced_and_removed_unless_somebody_changed_it(
    command: Any, tmp_path: Path, manager: str
) -> None:
    place = tmp_path / "units"
    place.mkdir()
    file = place / (UNIT if manager == "systemd" else PROGRAM)
    arguments = ("--manager", manager, "--to", str(place))

    done = command("service", "install", *arguments, *WHO)
    assert done.code == 0, done.err
    assert f"Written: {file}\n" in done.out
    assert ("systemctl enable --now allora-submission" if manager == "systemd" else "supervisorctl update") in done.out
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert command("service", "show", "--manager", manager, *WHO).out == file.read_text(encoding="utf-8")
    assert missing(file) == []
    assert f"--state-dir {tmp_path}/state --log-dir {tmp_path}/logs" in file.read_text(encoding="utf-8")

    assert command("service", "install", *arguments, *WHO).code == 0
    changed = file.read_text(encoding="utf-8") + "# mine\n"
    file.write_text(changed)
    for what in (("install", *arguments, *WHO), ("uninstall", *arguments)):
        refused = command("service", *what)
        assert (refused.code, refused.out) == (5, "")
        assert "was changed by hand" in refused.err
    assert file.read_text(encoding="utf-8") == changed
    assert command("service", "install", *arguments, *WHO, "--force").code == 0

    done = command("service", "uninstall", *arguments)
    assert done.code == 0
    assert f"Removed: {file}\nLeft as they are: {tmp_path}/state, {tmp_path}/logs\n" in done.out
    assert list(place.iterdir()) == []
    gone = command("service", "uninstall", *arguments)
    assert gone.code == 5
    assert "is not there" in gone.err


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_what_somebody_else_put_there_is_left_alone(command: Any, root: Path, tmp_path: Path, kind: str) -> None:
    file = tmp_path / UNIT
    if kind == "file":
        file.write_bytes((root / UNIT).read_bytes())
    elif kind == "link":  # as `systemctl mask` makes it
        file.symlink_to("/dev/null")
    else:
        file.mkdir()
    before = identity(file)
    for what in (("install", *WHO), ("uninstall",)):
        done = command("service", *what, "--manager", "systemd", "--to", str(tmp_path))
        assert done.code == 5
        assert str(file) in done.err
        assert "Traceback" not in done.err
    assert identity(file) == before


def identity(file: Path) -> tuple[int, ...]:
    info = file.lstat()
    return info.st_ino, info.st_mode, info.st_size, info.st_mtime_ns


@pytest.mark.parametrize("manager", ["systemd", "supervisord"])
def test_the_fleets_service_stands_beside_the_daemons(command: Any, tmp_path: Path, manager: str) -> None:
    arguments = ("--manager", manager, "--to", str(tmp_path))
    for more in ((), ("--fleet",)):
        assert command("service", "install", *more, *arguments, *WHO).code == 0
    suffix = ".service" if manager == "systemd" else ".conf"
    fleet, daemon = tmp_path / f"forecastd-fleet{suffix}", tmp_path / f"allora-submission{suffix}"
    text = fleet.read_text(encoding="utf-8")
    assert f"submit_prediction.py fleet serve --state-dir {tmp_path}/state --log-dir {tmp_path}/logs\n" in text
    assert command("service", "show", "--fleet", "--manager", manager, *WHO).out == text
    assert missing(fleet) == []
    done = command("service", "uninstall", "--fleet", *arguments)
    assert done.code == 0, done.err
    assert not fleet.exists()
    assert daemon.is_file()


def test_a_fleet_that_others_can_reach_is_told_to_have_keys(command: Any, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("FLEET_HOST=10.0.0.7\n")
    (tmp_path / ".env").chmod(0o600)
    done = command("service", "show", "--fleet", "--manager", "supervisord", *WHO)
    assert done.code == 0, done.err
    assert "no API key is set, without which it does not start: set FLEET_API_KEYS_FILE in .env" in done.err
    assert "No wallet" not in done.err
    refused = command("service", "show", "--fleet", "--manager", "supervisord", "--credential", "/etc/keys")
    assert refused.code == 2
    assert "FLEET_API_KEYS_FILE" in refused.err


def test_a_unit_that_is_enabled_is_not_removed(command: Any, tmp_path: Path) -> None:
    arguments = ("--manager", "systemd", "--to", str(tmp_path))
    assert command("service", "install", *arguments, *WHO).code == 0
    (tmp_path / "multi-user.target.wants").mkdir()
    (tmp_path / "multi-user.target.wants" / UNIT).symlink_to(tmp_path / UNIT)
    done = command("service", "uninstall", *arguments)
    assert done.code == 5
    assert "First: systemctl disable --now allora-submission" in done.err
    assert (tmp_path / UNIT).is_file()


def test_it_takes_any_directory_and_what_env_says_there(
    command: Any, environment: dict[str, str], tmp_path: Path
) -> None:
    del environment["STATE_DIR"]
    place = tmp_path / "100% #1; it's $HOME"
    place.mkdir()
    (place / ".env").write_text("STATE_DIR=my state\nALLORA_NETWORK=testnet\n")
    (place / ".env").chmod(0o600)
    shared = ("--directory", str(place), "--python", sys.executable, "--to", str(tmp_path), *WHO)
    for manager, kind, name in (("systemd", systemd, UNIT), ("supervisord", supervisord, PROGRAM)):
        done = command("service", "install", "--manager", manager, *shared, LOG_DIR="/srv/l", TIINGO_API_KEY="x")
        assert done.code == 0, done.err
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert missing(tmp_path / name) == []
        assert [Path(one) for one in kind.named(text).directories] == [place]
        assert "--state-dir" not in text
        assert "--log-dir /srv/l" in text
        assert f"not for the service: TIINGO_API_KEY. Write it into {place}/.env." in done.err
        assert "No wallet is set" in done.err
        assert "-m 700" in done.out


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("install", "--user", "--manager", "supervisord"), 2, "leave --user out"),
        (("show", "--manager", "supervisord", "--credential", "/etc/phrase"), 2, "MNEMONIC_FILE"),
        (("show", "--user", "--run-as", "nobody"), 2, "a person's own service"),
        (("show", "--manager", "upstart"), 2, "upstart"),
        (("show", "--directory", "/nowhere"), 2, "/nowhere"),
        (("show", "--manager", "systemd", "--run-as", "nobody-of-this-name"), 5, "useradd"),
        (("show", "--manager", "systemd", "--run-as", "root"), 5, "only root may do"),
        (("show", "--manager", "systemd", *WHO, "--python", "/a\nb"), 5, "No service file can express"),
        (("install", "--manager", "systemd", *WHO, "--to", "/proc/nowhere"), 5, "cannot be written"),
        (("uninstall", "--manager", "systemd", "--to", "/nowhere"), 5, "is not there"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(command: Any, arguments: tuple[str, ...], code: int, told: str) -> None:
    done = command("service", *arguments)
    assert done.code == code, done.err
    assert told in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


@pytest.mark.skipif(AS_ROOT, reason="root has no service of its own")
def test_a_service_of_ones_own_goes_below_the_own_configuration(command: Any, environment: dict[str, str]) -> None:
    done = command("service", "install", "--user")
    assert done.code == 0, done.err
    file = Path(environment["HOME"], ".config/systemd/user", UNIT)
    assert "WantedBy=default.target" in file.read_text(encoding="utf-8")
    assert "systemctl --user enable --now" in done.out
    assert command("service", "uninstall", "--user").code == 0


def test_the_doctor_reads_what_was_installed(command: Any, environment: dict[str, str]) -> None:
    units = Path(environment["HOME"], ".config/systemd/user")
    assert command("service", "install", "--manager", "systemd", "--to", str(units), *WHO).code == 0
    findings = {finding["check"]: finding for finding in command("doctor", "--json").told["findings"]}
    assert findings["service"]["level"] == "ok"
    assert str(units / UNIT) in findings["service"]["found"]
