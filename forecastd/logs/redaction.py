"""Removes secrets from text, as they are and in the spellings that they get on their way into an error message: as part
of a URL, JSON, Python, HTML, base64 and hexadecimal.

Text is compared without spaces, line breaks and invisible characters, so a wrapped or indented secret is found too.
Every run of 16 characters of a longer secret is removed, because messages are shortened; of a mnemonic, every two
consecutive words. A single word of the mnemonic is kept: removing it from ordinary sentences would reveal it.
"""

from __future__ import annotations

import base64
import html
import itertools
import json
import re
import threading
from collections.abc import Iterable, Iterator
from urllib.parse import parse_qsl, quote, quote_plus, urlsplit

HIDDEN = "*****"
_RUN_SIZE = 16  # the shortest part of a longer secret that is removed
_BLOCK_SIZE = _RUN_SIZE // 2  # every run of a line contains a block that starts at a multiple of this size
_MIN_PART_SIZE = 8  # shorter parts of a URL, and shorter encodings, would match by chance
_MIN_EMBEDDED_SIZE = 4  # shorter secrets are removed only as whole words
_PHRASE_WORDS = 12

_INVISIBLE = r"[\s\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]"
_BACKSLASHES = r"\\+[nrt]?"
_INVISIBLE_PATTERN = re.compile(_INVISIBLE)
_BACKSLASH_PATTERN = re.compile(_BACKSLASHES)
_GAP_PATTERN = re.compile(f"{_INVISIBLE}+")
_GAP_AND_ESCAPE_PATTERN = re.compile(f"(?:{_INVISIBLE}|{_BACKSLASHES})+")
_LETTER_PATTERN = re.compile(r"[^\W\d_]")
_ESCAPE_PATTERN = re.compile(
    r"\\+[nrtbfv]|\\+x[0-9a-f]{2}|\\+u[0-9a-f]{4}|%(?:25)?[0-9a-f]{2}|&#?\w{2,6};", re.IGNORECASE
)

Span = tuple[int, int]


class Redactor:
    """Holds the secrets and removes them from text. Thread-safe: what a reader uses is replaced, never changed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: frozenset[str] = frozenset()  # the parts of normalized secrets that are removed
        self._blocks: frozenset[str] = frozenset()  # smaller parts: a line without any of them contains no run
        self._whole_texts: frozenset[str] = frozenset()  # normalized secrets whose parts are not removed
        self._phrases: dict[tuple[str, ...], re.Pattern[str]] = {}

    def hide(self, secrets: Iterable[str]) -> None:
        """Remove these secrets too, from now on. A secret is never forgotten, because it may appear late."""
        with self._lock:
            for secret in secrets:
                for spelling, is_divisible in _spellings(secret.strip()):
                    for escapes in (False, True):
                        text = _normalize(spelling, escapes=escapes)
                        if is_divisible and len(text) >= _RUN_SIZE:
                            self._runs |= set(_parts(text, _RUN_SIZE))
                            self._blocks |= set(_parts(text, _BLOCK_SIZE))
                        elif text:
                            self._whole_texts |= {text}
                self._add_phrase(tuple(secret.lower().split()))

    def redact(self, text: str) -> str:
        """`text` with asterisks in place of every secret."""
        spans = sorted(itertools.chain(self._matching_spans(text), self._phrase_spans(text)))
        pieces: list[str] = []
        end = 0
        for start, stop in spans:
            if start > end or not pieces:
                pieces += [text[end:start], HIDDEN]
            end = max(end, stop)
        return "".join([*pieces, text[end:]]) if pieces else text

    def _add_phrase(self, words: tuple[str, ...]) -> None:
        if len(words) >= _PHRASE_WORDS and all(word.isalpha() for word in words):
            any_word = re.compile("|".join(sorted(set(words), key=len, reverse=True)))
            self._phrases = {**self._phrases, words: any_word}

    def _matching_spans(self, text: str) -> Iterator[Span]:
        for escapes in (False, True) if "\\" in text else (False,):
            normalized = _normalize(text, escapes=escapes)
            matches = []
            if not self._blocks.isdisjoint(_parts(normalized, _BLOCK_SIZE, step=_BLOCK_SIZE)):
                runs = _parts(normalized, _RUN_SIZE)
                matches = [(start, start + _RUN_SIZE) for start, run in enumerate(runs) if run in self._runs]
            for secret in [secret for secret in self._whole_texts if secret in normalized]:
                matches += [(start, start + len(secret)) for start in _find_all(secret, normalized)]
            positions = _source_positions(text, escapes=escapes) if matches else []
            for start, end in matches:
                span = positions[start], positions[end - 1] + 1
                if end - start >= _MIN_EMBEDDED_SIZE or _stands_alone(text, span):
                    yield span

    def _phrase_spans(self, text: str) -> Iterator[Span]:
        lowered = _lower(text) if self._phrases else ""
        for words, any_word in self._phrases.items():
            if sum(word in lowered for word in set(words)) < min(2, len(set(words))):
                continue
            pairs = set(itertools.pairwise(words))
            for variant in {lowered, _ESCAPE_PATTERN.sub(lambda escape: " " * len(escape[0]), lowered)}:
                matches = [word for word in any_word.finditer(variant) if _is_whole_word(variant, word)]
                for first, second in itertools.pairwise(matches):
                    if (first[0], second[0]) in pairs and not _LETTER_PATTERN.search(
                        variant, first.end(), second.start()
                    ):
                        yield first.start(), second.end()


def _spellings(secret: str) -> Iterator[tuple[str, bool]]:
    """Every spelling of the secret, and of its parts that are secret by themselves; and whether its runs are secret.

    A URL that contains a secret is split, because libraries report host, path and query separately. The host is not
    secret.
    """
    parts = [part for part in _secret_parts(secret) if len(part) >= _MIN_PART_SIZE]
    for part in (secret, *parts):
        for text in _encodings(part):
            yield text, part is not secret or not parts


def _secret_parts(secret: str) -> Iterator[str]:
    """The secret parts of a URL; none when `secret` is not a URL."""
    try:
        url = urlsplit(secret)
    except ValueError:
        return
    if not (url.scheme and url.netloc):
        return
    yield url.path + (f"?{url.query}" if url.query else "")
    yield from (part or "" for part in (url.path, url.query, url.fragment, url.username, url.password))
    yield from url.path.split("/")
    yield from (value for _, value in parse_qsl(url.query))


def _encodings(secret: str) -> Iterator[str]:
    data = secret.encode("utf-8", "replace")
    yield secret
    yield from (quote(data), quote(data, safe=""), quote_plus(data))
    yield from (json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1])
    yield from (repr(secret)[1:-1], repr(data)[2:-1], html.escape(secret))
    if len(data) * 2 >= _MIN_PART_SIZE:
        yield data.hex()
    for shift in range(3):
        # The characters at either end depend on the bytes next to the secret.
        encoded = base64.b64encode(b"\0" * shift + data)[(0, 2, 3)[shift] : (shift + len(data)) * 8 // 6].decode()
        if len(encoded) >= _MIN_PART_SIZE:
            yield from (encoded, encoded.replace("+", "-").replace("/", "_"))


def _parts(text: str, size: int, step: int = 1) -> list[str]:
    """The parts of `size` characters that start at every `step`-th character."""
    return [text[start : start + size] for start in range(0, len(text) - size + 1, step)]


def _find_all(part: str, text: str) -> Iterator[int]:
    """Where `part` occurs in `text`, also where two occurrences overlap."""
    start = text.find(part)
    while start != -1:
        yield start
        start = text.find(part, start + 1)


def _normalize(text: str, *, escapes: bool) -> str:
    """Lower case, without invisible characters; `escapes`: also without escapes of line breaks and tabs."""
    normalized = "".join((_BACKSLASH_PATTERN.sub("", text) if escapes else text).split())
    return _lower(normalized if normalized.isprintable() else _INVISIBLE_PATTERN.sub("", normalized))


def _source_positions(text: str, *, escapes: bool) -> list[int]:
    """The position in `text` of each character of its normalized form."""
    positions: list[int] = []
    start = 0
    for gap in (_GAP_AND_ESCAPE_PATTERN if escapes else _GAP_PATTERN).finditer(text):
        positions += range(start, gap.start())
        start = gap.end()
    positions += range(start, len(text))
    return positions


def _stands_alone(text: str, span: Span) -> bool:
    before, after = text[span[0] - 1 : span[0]], text[span[1] : span[1] + 1]
    return not (before.isalnum() or after.isalnum())


def _is_whole_word(text: str, match: re.Match[str]) -> bool:
    return not (text[match.start() - 1 : match.start()].isalpha() or text[match.end() : match.end() + 1].isalpha())


def _lower(text: str) -> str:
    """Lower case, with the length unchanged."""
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(lower if len(lower := character.lower()) == 1 else character for character in text)
