"""A launch as a program of supervisord's, and what such a file names.

The one thing to know before changing it: a value is read four times. The INI parser cuts it off at a blank with `;` or `#`
behind it; `%(here)s` is replaced as text; then `%` expands; and only the command is split into words, as a shell would. So a
command can express any path, the plain `directory=` cannot. Source: supervisor 4's options.py.
"""

from __future__ import annotations

import configparser
import re
import shlex
from itertools import pairwise

from forecastd.service.launch import FileReferences, LaunchSpec, unescape_percent

_SHELL_WRAPPER = ["/bin/sh", "-c", 'cd "$0" && exec "$@"']
_COMMENT_START = re.compile(r"(?<=\s)(?=[;#])")
_HERE = "%(here)s"


def render(template: str, launch: LaunchSpec) -> str:
    """The program for this launch: the shipped one with its paths and user exchanged."""
    directory = str(launch.directory)
    is_plain = not _COMMENT_START.search(directory) and _HERE not in directory
    command = launch.command if is_plain else [*_SHELL_WRAPPER, directory, *launch.command]
    replacements = {
        "command": [f"command={command_line(command)}"],
        "directory": [f"directory={_directory(directory)}"] if is_plain else [],
        "user": [] if launch.user is None else [f"user={launch.user}"],
    }
    lines: list[str] = []
    for line in template.partition("\n\n")[2].splitlines():
        if not line.startswith(";"):
            lines += replacements.get(line.partition("=")[0], [line])
    return "\n".join(lines) + "\n"


def command_line(words: list[str]) -> str:
    """The words of a command: quoted as for a shell, `%` doubled, two quotes in what an earlier reading would take."""
    text = shlex.join(words).replace("%", "%%")
    return _COMMENT_START.sub("''", text).replace(_HERE, "%(''here)s")


def _directory(path: str) -> str:
    """A blank at the end would be stripped; a slash keeps it."""
    return path.replace("%", "%%") + ("/" if path[-1:].isspace() else "")


def parse_references(text: str) -> FileReferences:
    """What a file names.

    Raises:
        ValueError: it is no such file.
    """
    parser = configparser.RawConfigParser(strict=False, inline_comment_prefixes=(";", "#"))
    try:
        parser.read_string(text)
    except configparser.Error as error:
        raise ValueError(str(error)) from error
    references = FileReferences([], [], [])
    for section in parser.sections():
        words = shlex.split(unescape_percent(parser.get(section, "command", fallback="")))
        references.programs.extend(words[:1])
        references.directories.append(unescape_percent(parser.get(section, "directory", fallback="")))
        references.data_directories.extend(
            value for word, value in pairwise(words) if word in {"--state-dir", "--log-dir"}
        )
        if words[:3] == _SHELL_WRAPPER:
            references.directories.extend(words[3:4])
            references.programs.extend(words[4:5])
    return FileReferences(
        *(
            [path for path in paths if path.startswith("/")]
            for paths in (references.programs, references.directories, references.data_directories)
        )
    )
