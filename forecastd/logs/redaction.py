"""Takes secrets out of text: as they are, and in the spellings that they take on their way into an error message.

Text is compared with its blanks, line breaks and invisible characters left out, so that a secret which was wrapped or
indented is found too. Of a longer secret every run of 16 characters is taken out, since messages are cut; of a mnemonic every
two words that follow each other. A single word of it is left: to take it out of ordinary sentences would tell which it is.

To look at a line costs next to nothing, however many secrets there are: a run of 16 characters holds one whole of the blocks
of 8 into which the line falls, so only these are looked up.
"""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from forecastd.logs.spellings import Spelling, spellings

HIDDEN = "*****"
_BLOCK = 8
_SHORT = 4  # shorter secrets are taken out only where they stand alone
_PHRASE_WORDS = 12

_INVISIBLE = r"[\s\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]"
_BACKSLASHES = r"\\+[nrt]?"
_UNSEEN = re.compile(_INVISIBLE)
_ESCAPES = re.compile(_BACKSLASHES)
_GAPS = re.compile(f"{_INVISIBLE}+")
_GAPS_AND_ESCAPES = re.compile(f"(?:{_INVISIBLE}|{_BACKSLASHES})+")
_LETTER = re.compile(r"[^\W\d_]")
_ESCAPED = re.compile(r"\\+[nrtbfv]|\\+x[0-9a-f]{2}|\\+u[0-9a-f]{4}|%(?:25)?[0-9a-f]{2}|&#?\w{2,6};", re.IGNORECASE)

Span = tuple[int, int]


@dataclass(frozen=True)
class _Form:
    """One spelling of a secret as `_flat` makes it, and the shortest run of it that counts."""

    flat: str
    shortest: int


class Redactor:
    """Knows the secrets and takes them out of text. May be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forms: set[_Form] = set()
        self._blocks: dict[str, tuple[tuple[_Form, int], ...]] = {}
        self._small: tuple[_Form, ...] = ()
        self._phrases: dict[tuple[str, ...], re.Pattern[str]] = {}

    def hide(self, secrets: Iterable[str]) -> None:
        """Take these out too, from now on. What was hidden once stays hidden: it may appear late."""
        with self._lock:
            for secret in secrets:
                for spelling in spellings(secret.strip()):
                    for form in _forms(spelling):
                        self._add(form)
                self._add_phrase(tuple(secret.lower().split()))

    def redact(self, text: str) -> str:
        """`text` with asterisks in the place of every secret."""
        spans = sorted(itertools.chain(self._runs(text), self._word_pairs(text)))
        pieces: list[str] = []
        end = 0
        for start, stop in spans:
            if start > end or not pieces:
                pieces += [text[end:start], HIDDEN]
            end = max(end, stop)
        return "".join([*pieces, text[end:]]) if pieces else text

    def _add(self, form: _Form) -> None:
        if form in self._forms or not form.flat:
            return
        self._forms.add(form)
        if form.shortest < 2 * _BLOCK:
            self._small += (form,)
            return
        blocks = dict(self._blocks)
        for at in range(len(form.flat) - _BLOCK + 1):
            block = form.flat[at : at + _BLOCK]
            blocks[block] = (*blocks.get(block, ()), (form, at))
        self._blocks = blocks  # in one piece: another thread may be looking

    def _add_phrase(self, words: tuple[str, ...]) -> None:
        if len(words) >= _PHRASE_WORDS and all(word.isalpha() for word in words):
            any_word = re.compile("|".join(sorted(set(words), key=len, reverse=True)))
            self._phrases = {**self._phrases, words: any_word}

    def _runs(self, text: str) -> Iterator[Span]:
        for escapes in (False, True) if "\\" in text else (False,):
            flat = _flat(text, escapes=escapes)
            found = {*self._long_runs(flat), *self._small_ones(flat)}
            where = _places(text, escapes=escapes) if found else []
            for first, last, form in found:
                span = where[first], where[last] + 1
                if len(form.flat) >= _SHORT or _stands_alone(text, span):
                    yield span

    def _long_runs(self, flat: str) -> Iterator[tuple[int, int, _Form]]:
        blocks, starts = self._blocks, range(0, len(flat) - _BLOCK + 1, _BLOCK)
        if blocks.keys().isdisjoint([flat[start : start + _BLOCK] for start in starts]):
            return
        known: dict[tuple[_Form, int], int] = {}
        for start in starts:
            for form, at in blocks.get(flat[start : start + _BLOCK], ()):
                if start < known.get((form, at - start), 0):
                    continue
                run = _extended(flat, start, form, at)
                known[form, at - start] = run[1]
                if run[1] - run[0] + 1 >= form.shortest:
                    yield *run, form

    def _small_ones(self, flat: str) -> Iterator[tuple[int, int, _Form]]:
        for form in self._small:
            start = flat.find(form.flat)
            while start != -1:
                yield start, start + len(form.flat) - 1, form
                start = flat.find(form.flat, start + 1)

    def _word_pairs(self, text: str) -> Iterator[Span]:
        low = _lower(text) if self._phrases else ""
        for words, any_word in self._phrases.items():
            if sum(word in low for word in set(words)) < min(2, len(set(words))):
                continue
            pairs = set(itertools.pairwise(words))
            for view in {low, _ESCAPED.sub(lambda escape: " " * len(escape[0]), low)}:
                found = [word for word in any_word.finditer(view) if _is_whole(view, word)]
                for one, other in itertools.pairwise(found):
                    if (one[0], other[0]) in pairs and not _LETTER.search(view, one.end(), other.start()):
                        yield one.start(), other.end()


def _forms(spelling: Spelling) -> Iterator[_Form]:
    for escapes in (False, True):
        flat = _flat(spelling.text, escapes=escapes)
        yield _Form(flat, min(len(flat), spelling.shortest or len(flat)))


def _flat(text: str, *, escapes: bool) -> str:
    """Lower case and nothing invisible; with `escapes` no backslashes either, nor the line breaks and tabs they stand for."""
    flat = "".join((_ESCAPES.sub("", text) if escapes else text).split())
    return _lower(flat if flat.isprintable() else _UNSEEN.sub("", flat))


def _places(text: str, *, escapes: bool) -> list[int]:
    """Where each character of `_flat` stands in `text`."""
    where: list[int] = []
    last = 0
    for gap in (_GAPS_AND_ESCAPES if escapes else _GAPS).finditer(text):
        where += range(last, gap.start())
        last = gap.end()
    where += range(last, len(text))
    return where


def _extended(flat: str, start: int, form: _Form, at: int) -> Span:
    """The first and the last character of the run around the block at `start`, which is the form's block at `at`."""
    first, last = start, start + _BLOCK - 1
    while first > 0 and at - (start - first) > 0 and flat[first - 1] == form.flat[at - (start - first) - 1]:
        first -= 1
    while (
        last + 1 < len(flat)
        and at + last + 1 - start < len(form.flat)
        and flat[last + 1] == form.flat[at + last + 1 - start]
    ):
        last += 1
    return first, last


def _stands_alone(text: str, span: Span) -> bool:
    before, after = text[span[0] - 1 : span[0]], text[span[1] : span[1] + 1]
    return not (before.isalnum() or after.isalnum())


def _is_whole(text: str, word: re.Match[str]) -> bool:
    return not (text[word.start() - 1 : word.start()].isalpha() or text[word.end() : word.end() + 1].isalpha())


def _lower(text: str) -> str:
    """Lower case, of the same length."""
    low = text.lower()
    if len(low) == len(text):
        return low
    return "".join(lower if len(lower := one.lower()) == 1 else one for one in text)
