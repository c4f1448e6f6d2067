"""Service files express any path: units by systemd's rules, programs by supervisor's own parser, in both directions."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from supervisor.options import ServerOptions, UnhosedConfigParser

from forecastd.errors import NeedsHuman
from forecastd.fleet.api.keys import CREDENTIAL_NAME
from forecastd.service import supervisord, systemd
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

UNITS = {service: service.template_path("systemd").read_text(encoding="utf-8") for service in SERVICES}
PROGRAM_FILES = {service: service.template_path("supervisord").read_text(encoding="utf-8") for service in SERVICES}
AWKWARD_PATHS = [
    "/plain", "/a b", "/ lead", "/trail ", "/trail\\", "/a ;b", "/a #b", "/a ; ; b", "/;", "/#", "/a%b", "/%h", "/%(here)s",
    "/%%(x)s", "/%(ENV_HOME)s", "/a'b", '/a"b', "/'\"'\"", "/$HOME", "/${HOME}", "/$$", "/a\\b", "/a\\x41", "/\u00a0",
    "/trail\u2028", "/中文", "/~", "/-a", "/@a", "/a=b", "/a,b:c", "/`id`", "/[x]",
]  # fmt: skip


slow_settings = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def paths() -> st.SearchStrategy[Path]:
    """Absolute paths without control characters and surrogates."""
    anything = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=40)
    awkward = st.text(st.sampled_from(" ;#%$\\'\"(){}hes=:/\u00a0\u2028"), min_size=1, max_size=12)
    text = st.one_of(anything, awkward, st.sampled_from(AWKWARD_PATHS))
    return text.map(
        lambda text: Path("/" + os.path.abspath(f"/{text}").lstrip("/"))  # noqa: PTH100  # keeps symbolic links
    )


def launches(**more: Any) -> st.SearchStrategy[LaunchSpec]:
    parts: dict[str, Any] = {
        "python": paths(),
        "program": paths(),
        "directory": paths(),
        "options": paths().map(lambda path: ("--state-dir", str(path))),
        "user": st.none(),
        "per_user": st.booleans(),
        "state": st.one_of(st.none(), paths()),
        "logs": st.one_of(st.none(), paths()),
        "credential": st.none(),
        "service": st.sampled_from(SERVICES),
    }
    return st.builds(LaunchSpec, **(parts | more))


def launch(path: str = "/opt/forecastd", **more: Any) -> LaunchSpec:
    parts: dict[str, Any] = {
        "python": Path(path), "program": ENTRY_POINT, "directory": Path(path), "options": (), "user": "worker",
        "per_user": False, "state": None, "logs": None, "credential": None,
    }  # fmt: skip
    return LaunchSpec(**(parts | more))


def render_unit(launch_spec: LaunchSpec) -> str:
    return systemd.render(UNITS[launch_spec.service], launch_spec)


def render_program(launch_spec: LaunchSpec) -> str:
    return supervisord.render(PROGRAM_FILES[launch_spec.service], launch_spec)


def values(unit: str, key: str) -> list[str]:
    return [value for name, value in systemd.assignments(unit) if name == key]


def resolve_unit_path(path: str) -> Path:
    """The path of a literal value: specifiers expanded, trailing slashes removed."""
    assert not re.search(r"%(?!%)", path.replace("%%", ""))
    return Path(path.replace("%%", "%"))


@slow_settings
@given(launches())
def test_unit_round_trips_any_path(launch_spec: LaunchSpec) -> None:
    unit = render_unit(launch_spec)
    (line,) = values(unit, "ExecStart")
    words = [word.replace("%%", "%") for word in systemd.split_words(line.removeprefix(":"))]
    if re.search(r"[\\'\"]", str(launch_spec.python)):  # systemd refuses a program with such a name
        assert words[:3] == ["/bin/sh", "-c", 'exec "$0" "$@"']
        words = words[3:]
    assert words == launch_spec.command
    assert line.startswith(":") or "$" not in line
    assert resolve_unit_path(values(unit, "WorkingDirectory")[0]) == launch_spec.directory
    lists = [systemd.split_words(value) for value in values(unit, "ReadWritePaths")]
    assert [resolve_unit_path(word) for (word,) in lists] == systemd.writable_directories(launch_spec)
    assert set(launch_spec.writable_paths) - set(systemd.writable_directories(launch_spec)) <= (
        {SYSTEM_STATE_DIR, SYSTEM_LOG_DIR} if not launch_spec.per_user else set()
    )


@slow_settings
@given(launches())
def test_service_files_have_no_line_injection(launch_spec: LaunchSpec) -> None:
    plain = launch(
        service=launch_spec.service,
        per_user=launch_spec.per_user,
        state=launch_spec.state and Path("/s"),
        logs=launch_spec.logs and Path("/l"),
        user=None,
    )
    if SYSTEM_STATE_DIR not in launch_spec.writable_paths and SYSTEM_LOG_DIR not in launch_spec.writable_paths:
        assert keys(render_unit(launch_spec)) == keys(render_unit(plain))
    extra = keys(render_program(launch_spec)) ^ keys(render_program(plain))
    assert extra <= {"directory"}


def keys(text: str) -> set[str]:
    return {line.partition("=")[0] for line in text.split("\n")}


@slow_settings
@given(launches())
@example(launch("/%(here)s ;#", user=None))
def test_program_round_trips_any_path(launch_spec: LaunchSpec) -> None:
    program = parse_program(render_program(launch_spec))
    words = shlex.split(program.command)  # as supervisor.process does
    if program.directory is None:
        assert words[:3] == ["/bin/sh", "-c", 'cd "$0" && exec "$@"']
        assert Path(words[3]) == launch_spec.directory
        words = words[4:]
    else:
        assert Path(program.directory) == launch_spec.directory
    assert words == launch_spec.command


def parse_program(text: str) -> Any:
    """The program as supervisord reads the file through its [include]."""
    parser = UnhosedConfigParser()
    parser.read_string(text)
    parser.expand_here("/etc/supervisor/conf.d")
    options = ServerOptions()
    (section,) = parser.sections()
    (program,) = options.processes_from_section(parser, section, section.removeprefix("program:"))
    assert not options.parse_warnings
    return program


@pytest.mark.parametrize("path", AWKWARD_PATHS)
def test_service_file_references_are_parsed_back(path: str) -> None:
    launch_spec = launch(path, state=Path(path), options=("--state-dir", path))
    unit = systemd.parse_references(render_unit(launch_spec))
    assert path in unit.programs
    assert [Path(directory) for directory in unit.directories] == [Path(path)]
    assert sorted(unit.data_directories) == sorted(["/var/log/forecastd", path])
    program = supervisord.parse_references(render_program(launch_spec))
    assert path in program.programs
    assert [Path(directory) for directory in program.directories] == [Path(path)]
    assert program.data_directories == [path]


@pytest.mark.parametrize("path", ["/phrase ", "/phrase\\"])
def test_unit_inexpressible_credential_is_refused(path: str) -> None:
    with pytest.raises(NeedsHuman, match="Rename it"):
        render_unit(launch(credential=Path(path)))


def test_unit_loads_credential_under_its_name() -> None:
    for service, name in ((DAEMON_SERVICE, "mnemonic"), (FLEET_SERVICE, "fleet-api-keys")):
        assert values(render_unit(launch(service=service)), "LoadCredential") == [f"{name}:forecastd.{name}"]
        references = render_unit(launch(service=service, credential=Path("/a %b")))
        assert values(references, "LoadCredential") == [f"{name}:/a %%b"]


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
    managers: tuple[ServiceManager, ...] = ("systemd", "supervisord")
    for manager in managers:
        for service in SERVICES:
            header, _, rest = render_file(manager, launch(service=service)).partition("\n")
            assert header.startswith("# ")
            assert rest.startswith("[")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("a  b\tc", ["a", "b", "c"]),
        (r'"a b" c\x20d', ["a b", "c d"]),
        (r"'a\'b' \101\u00e9\U0001d11e\s", ["a'b", "Aé𝄞 "]),
        ("a'b c'\"d\"", ["ab cd"]),
        ('""', [""]),
    ],
)
def test_unit_words_are_split_like_systemd(value: str, words: list[str]) -> None:
    assert systemd.split_words(value) == words


@pytest.mark.parametrize("value", ["'open", '"', "", "  ", r"\q", r"\xzz", "\\"])
def test_unit_invalid_value_is_refused(value: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # some messages come from the interpreter
        systemd.split_words(value)


def test_unit_parser_handles_comments_and_continuations() -> None:
    text = "# a\n[Service]\n ; b\nExecStart=/bin/sh \\\n# c\n  -c x\nWorkingDirectory = /srv \n\nReadWritePaths=\n"
    assert list(systemd.assignments(text)) == [
        ("ExecStart", "/bin/sh  -c x"), ("WorkingDirectory", "/srv"), ("ReadWritePaths", ""),
    ]  # fmt: skip
    assert systemd.parse_references(text).programs == ["/bin/sh"]
