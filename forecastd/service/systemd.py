"""A launch as a systemd unit, and what a unit names.

The one thing to know before changing it: systemd reads command lines and path lists as words with quotes and backslashes, but
a working directory and a credential's path as the line stands. `%` begins a specifier in all of them. Sources:
systemd.service(5), systemd.exec(5), systemd.syntax(7); a test asks systemd what it has read.
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
_SHELL_WRAPPER = [
    "/bin/sh",
    "-c",
    'exec "$0" "$@"',
]  # systemd refuses a program that has a quote or a backslash in its name


def render(template: str, launch: LaunchSpec) -> str:
    """The unit for this launch: the shipped one with its paths, user and directories exchanged.

    A unit of a user's own manager is confined as any other, in a user namespace; it knows no network-online.target.

    Raises:
        NeedsHuman: the credential's path cannot be expressed.
    """
    lines: list[str] = []
    for line in template.partition("\n\n")[2].splitlines():
        replacement = [] if line.startswith("#") else _replacement_lines(line.partition("=")[0], launch)
        lines += [line] if replacement is None else replacement
    return "\n".join(lines) + "\n"


def _replacement_lines(key: str, launch: LaunchSpec) -> list[str] | None:  # a table, a line each  # noqa: PLR0911  # a table, a line each
    """The lines in the place of the template's line with this key; None: it stays."""
    match key:
        case "ExecStart":
            return [f"ExecStart={command_line(launch.command)}"]
        case "WorkingDirectory":
            return [f"WorkingDirectory={raw_path(launch.directory)}"]
        case "User":  # a manager without privileges may not even change to its own user
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
    """The directories that have to be there before the unit starts: systemd makes its own, not these."""
    candidates = ((launch.state, SYSTEM_STATE_DIR), (launch.logs, SYSTEM_LOG_DIR))
    return [path for path, default in candidates if path is not None and not _is_managed(launch, path, default)]


def _is_managed(launch: LaunchSpec, path: Path | None, default: Path) -> bool:
    """Whether systemd makes this directory. In a user's own manager it would be another one with each of its versions."""
    return not launch.per_user and path in {None, default}


def command_line(words: list[str]) -> str:
    """The words of a command as ExecStart= takes them. A `:` in front keeps `$` what it is."""
    if _QUOTES & set(words[0]):
        words = [*_SHELL_WRAPPER, *words]
    prefix = ":" if any("$" in word for word in words) else ""
    return prefix + " ".join(map(quote_word, words))


def quote_word(word: str) -> str:
    """A word of a command line or of a list of paths."""
    if _PLAIN.fullmatch(word):
        return word
    text = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text}"'


def raw_path(path: Path, *, is_file: bool = False) -> str:
    """A path where the line is taken as it stands, but for blanks at its end and a backslash that would join the next line.

    Raises:
        NeedsHuman: a file's path ends like that. A directory's is given a slash.
    """
    text = str(path).replace("%", "%%")
    if not text.endswith(("\\", *_WHITESPACE)):
        return text
    if is_file:
        raise NeedsHuman(f"No unit can express {str(path)!a}: it ends with a blank or a backslash. Rename it.")
    return f"{text}/"


def parse_references(text: str) -> FileReferences:
    """What a unit names.

    Raises:
        ValueError: it is no unit.
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
    """Key and value of every line that has them, in order; comments left out, continued lines joined.

    Raises:
        ValueError: a line is neither a section, a comment nor an assignment, or stands before any section.
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
            raise ValueError(f"{statement!r} is not expected here")
        yield key.rstrip(_WHITESPACE), value.strip(_WHITESPACE)


def split_words(value: str) -> list[str]:
    """The words of a value, without quotes and with C escapes resolved.

    Raises:
        ValueError: a quote is not closed, an escape is none, or there is no word.
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
    """The character that the escape at `at` (behind its backslash) stands for, and where it ends."""
    kind = value[position : position + 1]
    digits = {"x": 2, "u": 4, "U": 8}.get(kind)
    if digits is not None:
        return chr(int(value[position + 1 : position + 1 + digits], 16)), position + 1 + digits
    if kind.isdigit():
        return chr(int(value[position : position + 3], 8)), position + 3
    if kind not in _ESCAPES:
        raise ValueError(f"\\{kind} is no escape")
    return _ESCAPES[kind], position + 1
