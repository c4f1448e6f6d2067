"""Render a launch as a supervisord program, and parse the paths in such a file.

Invariant: a value must survive four readings. The INI parser truncates it at whitespace followed by `;` or `#`;
`%(here)s` is replaced as text; then `%` expands; and only the command is split into words, as in a shell. So a command
can express any path, but a plain `directory=` cannot. Source: options.py of supervisor 4.
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
    """Render the program: the template with its paths and user replaced."""
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
    """Join words into a command: quote as for a shell, double `%`, and insert two quotes before comment characters."""
    text = shlex.join(words).replace("%", "%%")
    return _COMMENT_START.sub("''", text).replace(_HERE, "%(''here)s")


def _directory(path: str) -> str:
    """Escape a directory. Trailing whitespace would be stripped; a slash after it prevents that."""
    return path.replace("%", "%%") + ("/" if path[-1:].isspace() else "")


def parse_references(text: str) -> FileReferences:
    """Parse the paths in a program file.

    Raises:
        ValueError: it is not a supervisord file.
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
