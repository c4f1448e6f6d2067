"""Any path survives: into a unit by systemd's rules, into a program by supervisor's own parser, and back."""

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
from forecastd.fleet.api.keys import CREDENTIAL
from forecastd.service import supervisord, systemd
from forecastd.service.installed import rendered
from forecastd.service.launch import DAEMON, FLEET, LOGS, PROGRAM, SERVICES, STATE, Launch, Manager

UNITS = {service: service.template("systemd").read_text(encoding="utf-8") for service in SERVICES}
PROGRAM_FILES = {service: service.template("supervisord").read_text(encoding="utf-8") for service in SERVICES}
NASTY = [
    "/plain", "/a b", "/ lead", "/trail ", "/trail\\", "/a ;b", "/a #b", "/a ; ; b", "/;", "/#", "/a%b", "/%h", "/%(here)s",
    "/%%(x)s", "/%(ENV_HOME)s", "/a'b", '/a"b', "/'\"'\"", "/$HOME", "/${HOME}", "/$$", "/a\\b", "/a\\x41", "/\u00a0",
    "/trail\u2028", "/中文", "/~", "/-a", "/@a", "/a=b", "/a,b:c", "/`id`", "/[x]",
]  # fmt: skip


unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def paths() -> st.SearchStrategy[Path]:
    """Whatever a file system can hold and a terminal can show: no control characters, no half characters."""
    anything = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=40)
    awkward = st.text(st.sampled_from(" ;#%$\\'\"(){}hes=:/\u00a0\u2028"), min_size=1, max_size=12)
    chosen = st.one_of(anything, awkward, st.sampled_from(NASTY))
    return chosen.map(
        lambda text: Path("/" + os.path.abspath(f"/{text}").lstrip("/"))  # noqa: PTH100  # keeps what a link is called
    )


def launches(**more: Any) -> st.SearchStrategy[Launch]:
    parts: dict[str, Any] = {
        "python": paths(),
        "program": paths(),
        "directory": paths(),
        "options": paths().map(lambda path: ("--state-dir", str(path))),
        "user": st.none(),
        "own": st.booleans(),
        "state": st.one_of(st.none(), paths()),
        "logs": st.one_of(st.none(), paths()),
        "credential": st.none(),
        "service": st.sampled_from(SERVICES),
    }
    return st.builds(Launch, **(parts | more))


def launch(path: str = "/opt/forecastd", **more: Any) -> Launch:
    parts: dict[str, Any] = {
        "python": Path(path), "program": PROGRAM, "directory": Path(path), "options": (), "user": "worker", "own": False,
        "state": None, "logs": None, "credential": None,
    }  # fmt: skip
    return Launch(**(parts | more))


def unit_of(wanted: Launch) -> str:
    return systemd.render(UNITS[wanted.service], wanted)


def program_of(wanted: Launch) -> str:
    return supervisord.render(PROGRAM_FILES[wanted.service], wanted)


def values(unit: str, key: str) -> list[str]:
    return [value for name, value in systemd.assignments(unit) if name == key]


def as_systemd_reads_it(path: str) -> Path:
    """A value that is taken as it stands: specifiers expanded, slashes at the end dropped."""
    assert not re.search(r"%(?!%)", path.replace("%%", ""))
    return Path(path.replace("%%", "%"))


@unhurried
@given(launches())
def test_any_path_survives_a_unit(wanted: Launch) -> None:
    unit = unit_of(wanted)
    (line,) = values(unit, "ExecStart")
    words = [word.replace("%%", "%") for word in systemd.split_words(line.removeprefix(":"))]
    if re.search(r"[\\'\"]", str(wanted.python)):  # systemd takes no program with such a name
        assert words[:3] == ["/bin/sh", "-c", 'exec "$0" "$@"']
        words = words[3:]
    assert words == wanted.command
    assert line.startswith(":") or "$" not in line
    assert as_systemd_reads_it(values(unit, "WorkingDirectory")[0]) == wanted.directory
    lists = [systemd.split_words(value) for value in values(unit, "ReadWritePaths")]
    assert [as_systemd_reads_it(word) for (word,) in lists] == systemd.writable(wanted)
    assert set(wanted.writes) - set(systemd.writable(wanted)) <= ({STATE, LOGS} if not wanted.own else set())


@unhurried
@given(launches())
def test_no_path_adds_a_line_to_a_unit_or_a_program(wanted: Launch) -> None:
    plain = launch(
        service=wanted.service,
        own=wanted.own,
        state=wanted.state and Path("/s"),
        logs=wanted.logs and Path("/l"),
        user=None,
    )
    if STATE not in wanted.writes and LOGS not in wanted.writes:
        assert keys(unit_of(wanted)) == keys(unit_of(plain))
    extra = keys(program_of(wanted)) ^ keys(program_of(plain))
    assert extra <= {"directory"}


def keys(text: str) -> set[str]:
    return {line.partition("=")[0] for line in text.split("\n")}


@unhurried
@given(launches())
@example(launch("/%(here)s ;#", user=None))
def test_any_path_survives_supervisors_own_parser(wanted: Launch) -> None:
    program = supervised(program_of(wanted))
    words = shlex.split(program.command)  # as supervisor.process does
    if program.directory is None:
        assert words[:3] == ["/bin/sh", "-c", 'cd "$0" && exec "$@"']
        assert Path(words[3]) == wanted.directory
        words = words[4:]
    else:
        assert Path(program.directory) == wanted.directory
    assert words == wanted.command


def supervised(text: str) -> Any:
    """The program as supervisord has it after reading such a file by its [include]."""
    parser = UnhosedConfigParser()
    parser.read_string(text)
    parser.expand_here("/etc/supervisor/conf.d")
    options = ServerOptions()
    (section,) = parser.sections()
    (program,) = options.processes_from_section(parser, section, section.removeprefix("program:"))
    assert not options.parse_warnings
    return program


@pytest.mark.parametrize("path", NASTY)
def test_what_is_written_is_found_again_by_the_doctor(path: str) -> None:
    wanted = launch(path, state=Path(path), options=("--state-dir", path))
    unit = systemd.named(unit_of(wanted))
    assert path in unit.programs
    assert [Path(one) for one in unit.directories] == [Path(path)]
    assert sorted(unit.kept) == sorted(["/var/log/forecastd", path])
    program = supervisord.named(program_of(wanted))
    assert path in program.programs
    assert [Path(one) for one in program.directories] == [Path(path)]
    assert program.kept == [path]


@pytest.mark.parametrize("path", ["/phrase ", "/phrase\\"])
def test_a_credential_that_a_unit_cannot_name_is_refused(path: str) -> None:
    with pytest.raises(NeedsHuman, match="Rename it"):
        unit_of(launch(credential=Path(path)))


def test_a_credential_is_loaded_from_where_it_is_under_the_name_that_is_looked_for() -> None:
    for service, name in ((DAEMON, "mnemonic"), (FLEET, "fleet-api-keys")):
        assert values(unit_of(launch(service=service)), "LoadCredential") == [f"{name}:forecastd.{name}"]
        found = unit_of(launch(service=service, credential=Path("/a %b")))
        assert values(found, "LoadCredential") == [f"{name}:/a %%b"]


def test_the_names_that_ship_are_the_ones_that_are_looked_for() -> None:
    assert FLEET.credential == CREDENTIAL
    assert {service.template("systemd").name for service in SERVICES} == {
        "allora-submission.service",
        "forecastd-fleet.service",
    }


def test_a_unit_of_ones_own_keeps_every_confinement_and_drops_what_its_manager_lacks() -> None:
    own = unit_of(launch(own=True, state=Path("/s"), logs=Path("/l")))
    system = unit_of(launch())
    gone = {
        "User",
        "Wants",
        "After",
        "LoadCredential",
        "StateDirectory",
        "StateDirectoryMode",
        "LogsDirectory",
        "LogsDirectoryMode",
    }
    assert keys(system) - keys(own) == gone
    assert keys(own) - keys(system) == {"ReadWritePaths"}
    assert values(own, "WantedBy") == ["default.target"]


@pytest.mark.parametrize(
    ("state", "logs", "kept", "writable"),
    [(None, None, {"StateDirectory", "LogsDirectory"}, []), (STATE, LOGS, {"StateDirectory", "LogsDirectory"}, []),
     (Path("/s"), None, {"LogsDirectory"}, ["/s"]), (None, Path("/l"), {"StateDirectory"}, ["/l"])],
)  # fmt: skip
def test_systemd_makes_its_own_directories_and_opens_those_that_a_user_chose(
    state: Path | None, logs: Path | None, kept: set[str], writable: list[str]
) -> None:
    unit = unit_of(launch(state=state, logs=logs))
    assert {"StateDirectory", "LogsDirectory"} & keys(unit) == kept
    assert values(unit, "ReadWritePaths") == writable


@pytest.mark.parametrize(("directory", "home"), [("/opt/f", "yes"), ("/home/a/f", "read-only")])
def test_homes_are_closed_unless_something_needed_is_there(directory: str, home: str) -> None:
    wanted = launch(directory, program=Path("/opt/p"), python=Path("/bin/sh"))
    assert values(unit_of(wanted), "ProtectHome") == [home]


def test_a_file_begins_with_the_hash_of_the_rest() -> None:
    managers: tuple[Manager, ...] = ("systemd", "supervisord")
    for manager in managers:
        for service in SERVICES:
            first, _, rest = rendered(manager, launch(service=service)).partition("\n")
            assert first.startswith("# ")
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
def test_words_are_split_as_systemd_does(value: str, words: list[str]) -> None:
    assert systemd.split_words(value) == words


@pytest.mark.parametrize("value", ["'open", '"', "", "  ", r"\q", r"\xzz", "\\"])
def test_what_systemd_would_refuse_is_refused(value: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # some messages are the interpreter's own
        systemd.split_words(value)


def test_a_unit_is_read_with_comments_and_continued_lines() -> None:
    text = "# a\n[Service]\n ; b\nExecStart=/bin/sh \\\n# c\n  -c x\nWorkingDirectory = /srv \n\nReadWritePaths=\n"
    assert list(systemd.assignments(text)) == [
        ("ExecStart", "/bin/sh  -c x"), ("WorkingDirectory", "/srv"), ("ReadWritePaths", ""),
    ]  # fmt: skip
    assert systemd.named(text).programs == ["/bin/sh"]
