"""Render a launch as a systemd unit or a supervisord program, and find the paths in such a file.

Each file is a template that ships with the project, and works for an install in /opt/forecastd. Rendering replaces the
lines of its paths, its account and its directories, and drops the comments.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from forecastd.runtime.files import read_text_file
from forecastd.service.launch import LaunchSpec, ServiceManager, is_plain

_EXEC_PREFIXES = "-@:+!|"  # of a program in ExecStart=: systemd.service(5)


@dataclass(frozen=True)
class FileReferences:
    """The absolute paths in a service file: programs, directories that must exist, state and log directories."""

    programs: list[str]
    directories: list[str]
    data_directories: list[str]


def render_template(manager: ServiceManager, launch: LaunchSpec) -> str:
    """The service file for a launch.

    Raises:
        NeedsHuman: the template is missing.
    """
    template = read_text_file(
        launch.service.template_path(manager), "The file", "It is part of forecastd: reinstall forecastd."
    )
    replacements = _unit_lines(launch) if manager == "systemd" else _program_lines(launch)
    lines: list[str] = []
    for line in template.partition("\n\n")[2].splitlines():
        if not line.startswith(("#", ";")):
            lines += replacements.get(line.partition("=")[0], [line])
    return "\n".join(lines) + "\n"


def _program_lines(launch: LaunchSpec) -> dict[str, list[str]]:
    """The lines of a supervisord program that replace those of the template, by their key."""
    return {
        "command": [f"command={' '.join(launch.command)}"],
        "directory": [f"directory={launch.directory}"],
        "user": [] if launch.user is None else [f"user={launch.user}"],
    }


def _unit_lines(launch: LaunchSpec) -> dict[str, list[str]]:
    """The lines of a unit that replace those of the template, by their key.

    A unit of a user's own manager has the same confinement, in a user namespace, but no network-online.target. An
    unprivileged manager cannot even switch to its own user.
    """
    lines = {
        "ExecStart": [f"ExecStart={' '.join(launch.command)}"],
        "WorkingDirectory": [f"WorkingDirectory={launch.directory}"],
        "User": [] if launch.per_user or launch.user is None else [f"User={launch.user}"],
        "ProtectSystem": [
            "ProtectSystem=strict",
            *(f"ReadWritePaths={path}" for path in launch.unmanaged_directories.values()),
        ],
    }
    for key in launch.unmanaged_directories:
        lines[key] = lines[f"{key}Mode"] = []
    if launch.uses_home:
        lines["ProtectHome"] = ["ProtectHome=read-only"]
    if launch.per_user:
        lines |= {"Wants": [], "After": [], "LoadCredential": [], "WantedBy": ["WantedBy=default.target"]}
    if launch.credential is not None:
        lines["LoadCredential"] = [f"LoadCredential={launch.service.credential}:{launch.credential}"]
    return lines


def parse_references(text: str) -> FileReferences:
    """The paths in a unit or a program file. A value that has quotes or variables, written by hand, is ignored.

    Raises:
        ValueError: the file starts no program.
    """
    programs: list[str] = []
    directories: list[str] = []
    data_directories: list[str] = []
    is_service_file = False
    for line in text.splitlines():
        key, _, value = line.partition("=")
        words = value.split()
        match key.strip():
            case "ExecStart" | "command":
                is_service_file = True
                programs += [word.lstrip(_EXEC_PREFIXES) for word in words[:1]]
                data_directories += [path for option, path in pairwise(words) if option in {"--state-dir", "--log-dir"}]
            case "WorkingDirectory" | "directory":
                directories.append(value.strip().lstrip("-"))
            case "ReadWritePaths":
                data_directories += words
            case "StateDirectory":
                data_directories.append(f"/var/lib/{value}")
            case "LogsDirectory":
                data_directories.append(f"/var/log/{value}")
    if not is_service_file:
        raise ValueError("it starts no program")
    return FileReferences(*(_absolute_paths(paths) for paths in (programs, directories, data_directories)))


def _absolute_paths(texts: list[str]) -> list[str]:
    return [text for text in dict.fromkeys(texts) if text.startswith("/") and is_plain(text)]
