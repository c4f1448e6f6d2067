"""Render a launch as a systemd unit, and parse the paths in a unit.

Invariant: systemd splits command lines and path lists into words with quotes and backslashes, but takes a working
directory and a credential's path literally. `%` starts a specifier in all of them. Sources: systemd.service(5),
systemd.exec(5), systemd.syntax(7); a test compares with what systemd itself reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from forecastd.errors import NeedsHuman
from forecastd.service.launch import SYSTEM_LOG_DIR, SYSTEM_STATE_DIR, FileReferences, LaunchSpec, unescape_percent

_PLAIN = re.compile(r"[\w@+=:,./-]+", re.ASCII)
_ESCAPES = {
    "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "s": " ", "\\": "\\", '"': '"', "'": "'",
}  # fmt: skip
_WHITESPACE = " \t"
_QUOTES = frozenset("\\\"'")
# systemd refuses a program that has a quote or a backslash in its name
_SHELL_WRAPPER = ["/bin/sh", "-c", 'exec "$0" "$@"']


def render(template: str, launch: LaunchSpec) -> str:
    """Render the unit: the template with its paths, user and directories replaced.

    A unit of a user's own manager has the same confinement, in a user namespace, but no network-online.target.

    Raises:
        NeedsHuman: a unit cannot express the credential's path.
    """
    lines: list[str] = []
    for line in template.partition("\n\n")[2].splitlines():
        replacement = [] if line.startswith("#") else _replacement_lines(line.partition("=")[0], launch)
        lines += [line] if replacement is None else replacement
    return "\n".join(lines) + "\n"


def _replacement_lines(key: str, launch: LaunchSpec) -> list[str] | None:  # noqa: PLR0911  # a table
    """The lines that replace the template's line with this key; None: keep the line."""
    match key:
        case "ExecStart":
            return [f"ExecStart={command_line(launch.command)}"]
        case "WorkingDirectory":
            return [f"WorkingDirectory={raw_path(launch.directory)}"]
        case "User":  # an unprivileged manager cannot even switch to its own user
            return [] if launch.per_user or launch.user is None else [f"User={launch.user}"]
        case "LoadCredential" if launch.credential is not None:
            return [f"LoadCredential={launch.service.credential}:{raw_path(launch.credential, is_file=True)}"]
        case "StateDirectory" | "StateDirectoryMode" if not _is_managed(launch, launch.state, SYSTEM_STATE_DIR):
            return []
        case "LogsDirectory" | "LogsDirectoryMode" if not _is_managed(launch, launch.logs, SYSTEM_LOG_DIR):
            return []
        case "ProtectHome" if launch.uses_home:
            return ["ProtectHome=read-only"]
        case "ProtectSystem":
            return [
                "ProtectSystem=strict",
                *(f"ReadWritePaths={quote_word(str(path))}" for path in writable_directories(launch)),
            ]
        case "Wants" | "After" | "LoadCredential" if launch.per_user:
            return []
        case "WantedBy" if launch.per_user:
            return ["WantedBy=default.target"]
        case _:
            return None


def writable_directories(launch: LaunchSpec) -> list[Path]:
    """The directories that must exist before the unit starts; systemd creates only its own."""
    candidates = ((launch.state, SYSTEM_STATE_DIR), (launch.logs, SYSTEM_LOG_DIR))
    return [path for path, default in candidates if path is not None and not _is_managed(launch, path, default)]


def _is_managed(launch: LaunchSpec, path: Path | None, default: Path) -> bool:
    """Whether systemd creates this directory. Never for a user's own manager, whose directories vary by version."""
    return not launch.per_user and path in {None, default}


def command_line(words: list[str]) -> str:
    """Format the words of a command for ExecStart=. A leading `:` disables the expansion of `$`."""
    if _QUOTES & set(words[0]):
        words = [*_SHELL_WRAPPER, *words]
    prefix = ":" if any("$" in word for word in words) else ""
    return prefix + " ".join(map(quote_word, words))


def quote_word(word: str) -> str:
    """Quote a word of a command line or of a path list."""
    if _PLAIN.fullmatch(word):
        return word
    text = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text}"'


def raw_path(path: Path, *, is_file: bool = False) -> str:
    """Format a path where systemd takes the line literally, except for trailing whitespace and a trailing backslash.

    A directory that ends with one of these gets a slash.

    Raises:
        NeedsHuman: a file's path ends with one of these.
    """
    text = str(path).replace("%", "%%")
    if not text.endswith(("\\", *_WHITESPACE)):
        return text
    if is_file:
        raise NeedsHuman(f"A unit cannot express {str(path)!a}: it ends with whitespace or a backslash. Rename it.")
    return f"{text}/"


def parse_references(text: str) -> FileReferences:
    """Parse the paths in a unit.

    Raises:
        ValueError: it is not a unit.
    """
    programs: list[str] = []
    directories: list[str] = []
    data_directories: list[str] = []
    for key, value in assignments(text):
        match key:
            case "ExecStart" if value:
                words = split_words(value.lstrip("-@:+!|"))
                programs += map(unescape_percent, words[:1] + (words[3:4] if words[:3] == _SHELL_WRAPPER else []))
            case "WorkingDirectory":
                directories.append(unescape_percent(value.lstrip("-")))
            case "ReadWritePaths" if value:
                data_directories += [unescape_percent(word) for word in split_words(value)]
            case "StateDirectory" | "LogsDirectory":
                data_directories.append(f"{'/var/lib' if key == 'StateDirectory' else '/var/log'}/{value}")
    absolute_paths = [
        [path for path in group if path.startswith("/")] for group in (programs, directories, data_directories)
    ]
    return FileReferences(*absolute_paths)


def assignments(text: str) -> Iterator[tuple[str, str]]:
    """Yield the key and value of each assignment, in order; skip comments and join continued lines.

    Raises:
        ValueError: a line is not a section, comment or assignment, or an assignment precedes any section.
    """
    section, continuation = False, ""
    for line in (raw_line.lstrip(_WHITESPACE) for raw_line in text.split("\n")):
        if line.startswith(("#", ";")) or not (continuation or line):
            continue
        if line.endswith("\\"):
            continuation += line[:-1] + " "
            continue
        statement, continuation = (continuation + line).rstrip(_WHITESPACE), ""
        if statement.startswith("[") and statement.endswith("]"):
            section = True
            continue
        key, equals, value = statement.partition("=")
        if not equals or not section:
            raise ValueError(f"{statement!r} is not a valid line here")
        yield key.rstrip(_WHITESPACE), value.strip(_WHITESPACE)


def split_words(value: str) -> list[str]:
    """Split a value into words; remove quotes and resolve C escapes.

    Raises:
        ValueError: a quote is not closed, an escape is invalid, or there is no word.
    """
    words: list[str] = []
    word: str | None = None
    quote, position = "", 0
    while position < len(value):
        character = value[position]
        position += 1
        if character == "\\":
            text, position = _parse_escape(value, position)
            word = (word or "") + text
        elif quote:
            quote, word = ("", word) if character == quote else (quote, (word or "") + character)
        elif character in "\"'":
            quote, word = character, word or ""
        elif character in _WHITESPACE:
            words += [] if word is None else [word]
            word = None
        else:
            word = (word or "") + character
    words += [] if word is None else [word]
    if quote or not words:
        raise ValueError("a quote is not closed" if quote else "there is no word")
    return words


def _parse_escape(value: str, position: int) -> tuple[str, int]:
    """The character of the escape at `position` (after its backslash), and the position after it."""
    kind = value[position : position + 1]
    digits = {"x": 2, "u": 4, "U": 8}.get(kind)
    if digits is not None:
        return chr(int(value[position + 1 : position + 1 + digits], 16)), position + 1 + digits
    if kind.isdigit():
        return chr(int(value[position : position + 3], 8)), position + 3
    if kind not in _ESCAPES:
        raise ValueError(f"\\{kind} is not a valid escape")
    return _ESCAPES[kind], position + 1
