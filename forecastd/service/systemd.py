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
from forecastd.service.launch import LOGS, STATE, Launch, Named, literal

_PLAIN = re.compile(r"[\w@+=:,./-]+", re.ASCII)
_ESCAPES = {
    "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "s": " ", "\\": "\\", '"': '"', "'": "'",
}  # fmt: skip
_BLANKS = " \t"
_QUOTES = frozenset("\\\"'")
_THROUGH = ["/bin/sh", "-c", 'exec "$0" "$@"']  # systemd refuses a program that has a quote or a backslash in its name


def render(template: str, launch: Launch) -> str:
    """The unit for this launch: the shipped one with its paths, user and directories exchanged.

    A unit of a user's own manager is confined as any other, in a user namespace; it knows no network-online.target.

    Raises:
        NeedsHuman: the credential's path cannot be expressed.
    """
    lines: list[str] = []
    for line in template.partition("\n\n")[2].splitlines():
        exchanged = [] if line.startswith("#") else _exchanged(line.partition("=")[0], launch)
        lines += [line] if exchanged is None else exchanged
    return "\n".join(lines) + "\n"


def _exchanged(key: str, launch: Launch) -> list[str] | None:  # noqa: PLR0911  # a table, a line each
    """The lines in the place of the template's line with this key; None: it stays."""
    match key:
        case "ExecStart":
            return [f"ExecStart={command_line(launch.command)}"]
        case "WorkingDirectory":
            return [f"WorkingDirectory={raw_path(launch.directory)}"]
        case "User":  # a manager without privileges may not even change to its own user
            return [] if launch.own or launch.user is None else [f"User={launch.user}"]
        case "LoadCredential" if launch.credential is not None:
            return [f"LoadCredential={launch.service.credential}:{raw_path(launch.credential, is_file=True)}"]
        case "StateDirectory" | "StateDirectoryMode" if not _managed(launch, launch.state, STATE):
            return []
        case "LogsDirectory" | "LogsDirectoryMode" if not _managed(launch, launch.logs, LOGS):
            return []
        case "ProtectHome" if launch.at_home:
            return ["ProtectHome=read-only"]
        case "ProtectSystem":
            return ["ProtectSystem=strict", *(f"ReadWritePaths={quoted(str(path))}" for path in writable(launch))]
        case "Wants" | "After" | "LoadCredential" if launch.own:
            return []
        case "WantedBy" if launch.own:
            return ["WantedBy=default.target"]
        case _:
            return None


def writable(launch: Launch) -> list[Path]:
    """The directories that have to be there before the unit starts: systemd makes its own, not these."""
    chosen = ((launch.state, STATE), (launch.logs, LOGS))
    return [path for path, by_default in chosen if path is not None and not _managed(launch, path, by_default)]


def _managed(launch: Launch, chosen: Path | None, by_default: Path) -> bool:
    """Whether systemd makes this directory. In a user's own manager it would be another one with each of its versions."""
    return not launch.own and chosen in {None, by_default}


def command_line(words: list[str]) -> str:
    """The words of a command as ExecStart= takes them. A `:` in front keeps `$` what it is."""
    if _QUOTES & set(words[0]):
        words = [*_THROUGH, *words]
    prefix = ":" if any("$" in word for word in words) else ""
    return prefix + " ".join(map(quoted, words))


def quoted(word: str) -> str:
    """A word of a command line or of a list of paths."""
    if _PLAIN.fullmatch(word):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def raw_path(path: Path, *, is_file: bool = False) -> str:
    """A path where the line is taken as it stands, but for blanks at its end and a backslash that would join the next line.

    Raises:
        NeedsHuman: a file's path ends like that. A directory's is given a slash.
    """
    text = str(path).replace("%", "%%")
    if not text.endswith(("\\", *_BLANKS)):
        return text
    if is_file:
        raise NeedsHuman(f"No unit can express {str(path)!a}: it ends with a blank or a backslash. Rename it.")
    return f"{text}/"


def named(text: str) -> Named:
    """What a unit names.

    Raises:
        ValueError: it is no unit.
    """
    programs: list[str] = []
    directories: list[str] = []
    kept: list[str] = []
    for key, value in assignments(text):
        match key:
            case "ExecStart" if value:
                words = split_words(value.lstrip("-@:+!|"))
                programs += map(literal, words[:1] + (words[3:4] if words[:3] == _THROUGH else []))
            case "WorkingDirectory":
                directories.append(literal(value.lstrip("-")))
            case "ReadWritePaths" if value:
                kept += [literal(word) for word in split_words(value)]
            case "StateDirectory" | "LogsDirectory":
                kept.append(f"{'/var/lib' if key == 'StateDirectory' else '/var/log'}/{value}")
    full = [[path for path in found if path.startswith("/")] for found in (programs, directories, kept)]
    return Named(*full)


def assignments(text: str) -> Iterator[tuple[str, str]]:
    """Key and value of every line that has them, in order; comments left out, continued lines joined.

    Raises:
        ValueError: a line is neither a section, a comment nor an assignment, or stands before any section.
    """
    section, begun = False, ""
    for line in (one.lstrip(_BLANKS) for one in text.split("\n")):
        if line.startswith(("#", ";")) or not (begun or line):
            continue
        if line.endswith("\\"):
            begun += line[:-1] + " "
            continue
        whole, begun = (begun + line).rstrip(_BLANKS), ""
        if whole.startswith("[") and whole.endswith("]"):
            section = True
            continue
        key, equals, value = whole.partition("=")
        if not equals or not section:
            raise ValueError(f"{whole!r} is not expected here")
        yield key.rstrip(_BLANKS), value.strip(_BLANKS)


def split_words(value: str) -> list[str]:
    """The words of a value, without quotes and with C escapes resolved.

    Raises:
        ValueError: a quote is not closed, an escape is none, or there is no word.
    """
    words: list[str] = []
    word: str | None = None
    quote, at = "", 0
    while at < len(value):
        character = value[at]
        at += 1
        if character == "\\":
            plain, at = _escape(value, at)
            word = (word or "") + plain
        elif quote:
            quote, word = ("", word) if character == quote else (quote, (word or "") + character)
        elif character in "\"'":
            quote, word = character, word or ""
        elif character in _BLANKS:
            words += [] if word is None else [word]
            word = None
        else:
            word = (word or "") + character
    words += [] if word is None else [word]
    if quote or not words:
        raise ValueError("a quote is not closed" if quote else "there is no word")
    return words


def _escape(value: str, at: int) -> tuple[str, int]:
    """The character that the escape at `at` (behind its backslash) stands for, and where it ends."""
    kind = value[at : at + 1]
    digits = {"x": 2, "u": 4, "U": 8}.get(kind)
    if digits is not None:
        return chr(int(value[at + 1 : at + 1 + digits], 16)), at + 1 + digits
    if kind.isdigit():
        return chr(int(value[at : at + 3], 8)), at + 3
    if kind not in _ESCAPES:
        raise ValueError(f"\\{kind} is no escape")
    return _ESCAPES[kind], at + 1
