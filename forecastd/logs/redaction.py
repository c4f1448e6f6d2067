"""Removes secrets from text, as they are and in the spellings that they get on their way into an error message.

Text is compared without spaces, line breaks and invisible characters, so a wrapped or indented secret is found too.
Every run of 16 characters of a longer secret is removed, because messages are shortened; of a mnemonic, every two
consecutive words. A single word of the mnemonic is kept: removing it from ordinary sentences would reveal it.

The cost per line does not depend on the number of secrets: a run of 16 characters contains at least one complete
8-character block of the line, so only the line's blocks are looked up.
"""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from forecastd.logs.spellings import Spelling, spellings

HIDDEN = "*****"
_BLOCK_SIZE = 8
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


@dataclass(frozen=True)
class _NormalizedSecret:
    """A normalized spelling of a secret (see `_normalize`), and the length of the shortest run that is removed."""

    text: str
    min_length: int


class Redactor:
    """Holds the secrets and removes them from text. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._secrets: set[_NormalizedSecret] = set()
        self._blocks: dict[str, tuple[tuple[_NormalizedSecret, int], ...]] = {}
        self._short_secrets: tuple[_NormalizedSecret, ...] = ()
        self._phrases: dict[tuple[str, ...], re.Pattern[str]] = {}

    def hide(self, secrets: Iterable[str]) -> None:
        """Remove these secrets too, from now on. A secret is never forgotten, because it may appear late."""
        with self._lock:
            for secret in secrets:
                for spelling in spellings(secret.strip()):
                    for normalized in _normalized_spellings(spelling):
                        self._add_secret(normalized)
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

    def _add_secret(self, secret: _NormalizedSecret) -> None:
        if secret in self._secrets or not secret.text:
            return
        self._secrets.add(secret)
        if secret.min_length < 2 * _BLOCK_SIZE:
            self._short_secrets += (secret,)
            return
        blocks = dict(self._blocks)
        for offset in range(len(secret.text) - _BLOCK_SIZE + 1):
            block = secret.text[offset : offset + _BLOCK_SIZE]
            blocks[block] = (*blocks.get(block, ()), (secret, offset))
        self._blocks = blocks  # assigned at once: another thread may be reading

    def _add_phrase(self, words: tuple[str, ...]) -> None:
        if len(words) >= _PHRASE_WORDS and all(word.isalpha() for word in words):
            any_word = re.compile("|".join(sorted(set(words), key=len, reverse=True)))
            self._phrases = {**self._phrases, words: any_word}

    def _matching_spans(self, text: str) -> Iterator[Span]:
        for escapes in (False, True) if "\\" in text else (False,):
            normalized = _normalize(text, escapes=escapes)
            matches = {*self._block_matches(normalized), *self._short_matches(normalized)}
            positions = _source_positions(text, escapes=escapes) if matches else []
            for first, last, secret in matches:
                span = positions[first], positions[last] + 1
                if len(secret.text) >= _MIN_EMBEDDED_SIZE or _stands_alone(text, span):
                    yield span

    def _block_matches(self, normalized: str) -> Iterator[tuple[int, int, _NormalizedSecret]]:
        blocks, starts = self._blocks, range(0, len(normalized) - _BLOCK_SIZE + 1, _BLOCK_SIZE)
        if blocks.keys().isdisjoint([normalized[start : start + _BLOCK_SIZE] for start in starts]):
            return
        matched_until: dict[tuple[_NormalizedSecret, int], int] = {}
        for start in starts:
            for secret, offset in blocks.get(normalized[start : start + _BLOCK_SIZE], ()):
                if start < matched_until.get((secret, offset - start), 0):
                    continue
                run = _extend_match(normalized, start, secret, offset)
                matched_until[secret, offset - start] = run[1]
                if run[1] - run[0] + 1 >= secret.min_length:
                    yield *run, secret

    def _short_matches(self, normalized: str) -> Iterator[tuple[int, int, _NormalizedSecret]]:
        for secret in self._short_secrets:
            start = normalized.find(secret.text)
            while start != -1:
                yield start, start + len(secret.text) - 1, secret
                start = normalized.find(secret.text, start + 1)

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


def _normalized_spellings(spelling: Spelling) -> Iterator[_NormalizedSecret]:
    for escapes in (False, True):
        normalized = _normalize(spelling.text, escapes=escapes)
        yield _NormalizedSecret(normalized, min(len(normalized), spelling.min_length or len(normalized)))


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


def _extend_match(normalized: str, start: int, secret: _NormalizedSecret, offset: int) -> Span:
    """The first and last index of the match around the block at `start`, which is the secret's block at `offset`."""
    first, last = start, start + _BLOCK_SIZE - 1
    while (
        first > 0
        and offset - (start - first) > 0
        and normalized[first - 1] == secret.text[offset - (start - first) - 1]
    ):
        first -= 1
    while (
        last + 1 < len(normalized)
        and offset + last + 1 - start < len(secret.text)
        and normalized[last + 1] == secret.text[offset + last + 1 - start]
    ):
        last += 1
    return first, last


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
