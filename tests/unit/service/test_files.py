"""Service files: plain paths reach both managers unchanged, and a path that would need quotes or escapes is refused."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from supervisor.options import ServerOptions, UnhosedConfigParser

from forecastd.errors import NeedsHuman
from forecastd.fleet.api.keys import CREDENTIAL_NAME
from forecastd.service.installed import render_file
from forecastd.service.launch import (
    DAEMON_SERVICE,
    ENTRY_POINT,
    FLEET_SERVICE,
    SERVICES,
    SYSTEM_LOG_DIR,
    SYSTEM_STATE_DIR,
    LaunchSpec,
    ServiceManager,
)
from forecastd.service.template import parse_references, render_template

MANAGERS: tuple[ServiceManager, ...] = ("systemd", "supervisord")
PLAIN_PATHS = ["/plain", "/-a", "/@a", "/a=b", "/a,b:c", "/~", "/a.b_c+d", "/\u4e2d\u6587"]
REFUSED_PATHS = [
    "/a b", "/ lead", "/trail ", "/trail\\", "/a ;b", "/a #b", "/;", "/#", "/a%b", "/%h", "/%(here)s", "/%%(x)s", "/a'b",
    '/a"b', "/$HOME", "/${HOME}", "/$$", "/a\\b", "/\u00a0", "/trail\u2028", "/`id`", "/[x]", "/a\nb", "/a\x7fb", "/a\udcffb",
]  # fmt: skip


def plain_paths() -> st.SearchStrategy[Path]:
    letters = st.characters(categories=("L", "Nd"), include_characters="._-+=@:,~")
    names = st.text(letters, min_size=1, max_size=12).filter(lambda name: name not in {".", ".."})
    return st.lists(names, min_size=1, max_size=3).map(lambda parts: Path("/", *parts))


def launches() -> st.SearchStrategy[LaunchSpec]:
    return st.builds(
        LaunchSpec,
        python=plain_paths(),
        program=plain_paths(),
        directory=plain_paths(),
        options=plain_paths().map(lambda path: ("--state-dir", str(path))),
        user=st.none() | st.just("worker"),
        per_user=st.booleans(),
        state=plain_paths(),
        logs=plain_paths(),
        credential=st.none(),
        service=st.sampled_from(SERVICES),
    )


def launch(path: str = "/opt/forecastd", **more: Any) -> LaunchSpec:
    parts: dict[str, Any] = {
        "python": Path(path), "program": ENTRY_POINT, "directory": Path(path), "options": (), "user": "worker",
        "per_user": False, "state": None, "logs": None, "credential": None,
    }  # fmt: skip
    return LaunchSpec(**(parts | more))


def render_unit(launch_spec: LaunchSpec) -> str:
    return render_template("systemd", launch_spec)


def values(unit: str, key: str) -> list[str]:
    return [line.partition("=")[2] for line in unit.splitlines() if line.startswith(f"{key}=")]


def keys(text: str) -> set[str]:
    return {line.partition("=")[0] for line in text.split("\n")}


@given(launches())
def test_unit_contains_the_launch(launch_spec: LaunchSpec) -> None:
    unit = render_unit(launch_spec)
    (line,) = values(unit, "ExecStart")
    assert line.split(" ") == launch_spec.command
    assert values(unit, "WorkingDirectory") == [str(launch_spec.directory)]
    assert values(unit, "ReadWritePaths") == [str(launch_spec.state), str(launch_spec.logs)]


@given(launches())
def test_program_is_read_by_supervisord_as_launched(launch_spec: LaunchSpec) -> None:
    program = parse_program(render_template("supervisord", launch_spec))
    assert Path(program.directory) == launch_spec.directory
    assert shlex.split(program.command) == launch_spec.command  # as supervisor.process does


def parse_program(text: str) -> Any:
    """The program as supervisord reads the file through its [include]."""
    parser = UnhosedConfigParser()
    parser.read_string(text.replace("user=worker\n", ""))  # an account that this machine does not have
    parser.expand_here("/etc/supervisor/conf.d")
    options = ServerOptions()
    (section,) = parser.sections()
    (program,) = options.processes_from_section(parser, section, section.removeprefix("program:"))
    assert not options.parse_warnings
    return program


@pytest.mark.parametrize("path", PLAIN_PATHS)
@pytest.mark.parametrize("manager", MANAGERS)
def test_service_file_references_are_parsed_back(manager: ServiceManager, path: str) -> None:
    references = parse_references(
        render_template(manager, launch(path, state=Path(path), options=("--state-dir", path)))
    )
    assert (references.programs, references.directories) == ([path], [path])
    assert references.data_directories == ([path, "/var/log/forecastd"] if manager == "systemd" else [path])


@pytest.mark.parametrize("path", REFUSED_PATHS)
@pytest.mark.parametrize("field", ["python", "directory", "options", "state", "logs", "credential"])
def test_path_that_needs_escapes_is_refused(path: str, field: str) -> None:
    parts: dict[str, Any] = {field: ("--log-dir", path) if field == "options" else Path(path)}
    with pytest.raises(NeedsHuman, match="A service file cannot express"):
        launch(**parts)


def test_unit_loads_credential_under_its_name() -> None:
    for service, name in ((DAEMON_SERVICE, "mnemonic"), (FLEET_SERVICE, "fleet-api-keys")):
        assert values(render_unit(launch(service=service)), "LoadCredential") == [f"{name}:forecastd.{name}"]
        references = render_unit(launch(service=service, credential=Path("/a-b")))
        assert values(references, "LoadCredential") == [f"{name}:/a-b"]


def test_shipped_files_have_the_expected_names() -> None:
    assert FLEET_SERVICE.credential == CREDENTIAL_NAME
    assert {service.template_path("systemd").name for service in SERVICES} == {
        "allora-submission.service",
        "forecastd-fleet.service",
    }


def test_user_unit_keeps_confinement_and_drops_unsupported_keys() -> None:
    user_unit = render_unit(launch(per_user=True, state=Path("/s"), logs=Path("/l")))
    system = render_unit(launch())
    dropped_keys = {
        "User",
        "Wants",
        "After",
        "LoadCredential",
        "StateDirectory",
        "StateDirectoryMode",
        "LogsDirectory",
        "LogsDirectoryMode",
    }
    assert keys(system) - keys(user_unit) == dropped_keys
    assert keys(user_unit) - keys(system) == {"ReadWritePaths"}
    assert values(user_unit, "WantedBy") == ["default.target"]


@pytest.mark.parametrize(
    ("state", "logs", "managed_keys", "writable"),
    [(None, None, {"StateDirectory", "LogsDirectory"}, []),
     (SYSTEM_STATE_DIR, SYSTEM_LOG_DIR, {"StateDirectory", "LogsDirectory"}, []),
     (Path("/s"), None, {"LogsDirectory"}, ["/s"]), (None, Path("/l"), {"StateDirectory"}, ["/l"])],
)  # fmt: skip
def test_unit_opens_chosen_directories_only(
    state: Path | None, logs: Path | None, managed_keys: set[str], writable: list[str]
) -> None:
    unit = render_unit(launch(state=state, logs=logs))
    assert {"StateDirectory", "LogsDirectory"} & keys(unit) == managed_keys
    assert values(unit, "ReadWritePaths") == writable


@pytest.mark.parametrize(("directory", "home"), [("/opt/f", "yes"), ("/home/a/f", "read-only")])
def test_unit_protects_home_unless_needed(directory: str, home: str) -> None:
    launch_spec = launch(directory, program=Path("/opt/p"), python=Path("/bin/sh"))
    assert values(render_unit(launch_spec), "ProtectHome") == [home]


def test_service_file_header_holds_the_hash() -> None:
    for manager in MANAGERS:
        for service in SERVICES:
            header, _, rest = render_file(manager, launch(service=service)).partition("\n")
            assert header.startswith("# ")
            assert rest.startswith("[")


def test_handwritten_file_is_read_as_far_as_it_is_plain() -> None:
    text = """# a unit
[Service]
ExecStartPre=/bin/false
 ExecStart = -/bin/sh \\
  -c x
WorkingDirectory="/a b"
ReadWritePaths=
StateDirectory=mine
"""
    references = parse_references(text)
    assert references.programs == ["/bin/sh"]
    assert references.directories == []
    assert references.data_directories == ["/var/lib/mine"]


@pytest.mark.parametrize("text", ["", "hello", "[Unit]\nDescription=x\n"])
def test_file_without_program_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="starts no program"):
        parse_references(text)
