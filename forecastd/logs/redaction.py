"""Takes secrets out of text: as they are, and in the spellings that they take on their way into an error message.

Text is compared with its blanks, line breaks and invisible characters left out, so that a secret which was wrapped or
indented is found too. Of a longer secret every run of 16 characters is taken out, since messages are cut; of a mnemonic every
two words that follow each other. A single word of it is left: to take it out of ordinary sentences would tell which it is.
"""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

HIDDEN = "*****"
_RUN = 16  # the shortest part of a secret that is taken out
_BLOCK = 8  # every run of 16 contains one of the blocks of 8 that the secret is made of
_CORE = 8  # shorter spellings in base64 and the like would be found by chance
_SHORT = 4  # shorter secrets are taken out only where they stand alone
_PHRASE_WORDS = 12

_INVISIBLE = r"\s\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
_GAPS = re.compile(f"[{_INVISIBLE}]+")
_GAPS_AND_ESCAPES = re.compile(rf"(?:[{_INVISIBLE}]|\\+[nrt]?)+")
_WORD = re.compile(r"[^\W\d_]+")
_ESCAPE = re.compile(r"\\+[nrtbfv]|\\+x[0-9a-f]{2}|\\+u[0-9a-f]{4}|%(?:25)?[0-9a-f]{2}|&#?\w{2,6};", re.IGNORECASE)

Span = tuple[int, int]


@dataclass(frozen=True)
class _Form:
    """One spelling of a secret, in lower case and without blanks, and the shortest run of it that counts."""

    flat: str
    shortest: int

    @property
    def block(self) -> int:
        return _BLOCK if self.shortest < len(self.flat) or self.shortest >= 2 * _BLOCK else len(self.flat)


class Redactor:
    """Knows the secrets and takes them out of text. May be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forms: tuple[_Form, ...] = ()
        self._blocks: tuple[tuple[str, int, _Form], ...] = ()
        self._phrases: tuple[tuple[str, ...], ...] = ()

    def hide(self, secrets: Iterable[str]) -> None:
        """Take these out too, from now on. What was hidden once stays hidden: it may appear late."""
        with self._lock:
            for secret in secrets:
                self._hide(secret.strip())

    def _hide(self, secret: str) -> None:
        forms = dict.fromkeys(form for form in _forms(secret) if form.flat and form not in self._forms)
        self._forms += tuple(forms)
        self._blocks += tuple(
            (form.flat[at : at + form.block], at, form)
            for form in forms
            for at in range(0, len(form.flat) - form.block + 1, form.block)
        )
        words = tuple(word.lower() for word in secret.split())
        if len(words) >= _PHRASE_WORDS and all(word.isalpha() for word in words) and words not in self._phrases:
            self._phrases += (words,)

    def redact(self, text: str) -> str:
        """`text` with asterisks in the place of every secret."""
        spans = sorted(span for find in (self._runs, self._word_pairs) for span in find(text))
        if not spans:
            return text
        pieces, end = [], -1
        last = 0
        for start, stop in spans:
            if start > end:
                pieces += [text[last:start], HIDDEN]
            end = last = max(end, stop)
        return "".join([*pieces, text[last:]])

    def _runs(self, text: str) -> Iterator[Span]:
        for gaps in (_GAPS, _GAPS_AND_ESCAPES) if "\\" in text else (_GAPS,):
            flat = _lower(gaps.sub("", text))
            found = [part for part in self._blocks if part[0] in flat]
            if found:
                where = _places(text, gaps)
                for block, at, form in found:
                    for first, last in _extended(flat, block, at, form):
                        span = where[first], where[last] + 1
                        if len(form.flat) >= _SHORT or _stands_alone(text, span):
                            yield span

    def _word_pairs(self, text: str) -> Iterator[Span]:
        low = text.lower()
        for words in self._phrases:
            if sum(word in low for word in words) < min(2, len(set(words))):
                continue
            pairs = set(itertools.pairwise(words))
            for view in {text, _ESCAPE.sub(lambda escape: " " * len(escape[0]), text)}:
                found = list(_WORD.finditer(view))
                for one, other in itertools.pairwise(found):
                    if (one[0].lower(), other[0].lower()) in pairs:
                        yield one.start(), other.end()


def _extended(flat: str, block: str, at: int, form: _Form) -> Iterator[Span]:
    """Where `flat` holds a long enough run of the form around its block that begins `at`: first and last character."""
    start = flat.find(block)
    while start != -1:
        left, right = 0, len(block)
        while left < min(at, start) and flat[start - left - 1] == form.flat[at - left - 1]:
            left += 1
        most = min(len(form.flat) - at, len(flat) - start)
        while right < most and flat[start + right] == form.flat[at + right]:
            right += 1
        if left + right >= form.shortest:
            yield start - left, start + right - 1
        start = flat.find(block, start + 1)


def _places(text: str, gaps: re.Pattern[str]) -> list[int]:
    """Where each character that is left without the gaps stands in `text`."""
    where: list[int] = []
    last = 0
    for gap in gaps.finditer(text):
        where += range(last, gap.start())
        last = gap.end()
    where += range(last, len(text))
    return where


def _stands_alone(text: str, span: Span) -> bool:
    before, after = text[span[0] - 1 : span[0]], text[span[1] : span[1] + 1]
    return not (before.isalnum() or after.isalnum())


def _lower(text: str) -> str:
    """Lower case, of the same length."""
    low = text.lower()
    if len(low) == len(text):
        return low
    return "".join(lower if len(lower := one.lower()) == 1 else one for one in text)


def _forms(secret: str) -> Iterator[_Form]:
    """The spellings of a secret; of an address also the parts of it that are secret by themselves."""
    if not secret:
        return
    from urllib.parse import parse_qsl, urlsplit

    try:
        url = urlsplit(secret)
    except ValueError:
        url = urlsplit("")
    whole = bool(url.scheme and url.netloc)
    for spelling in _spellings(secret):
        # The first characters of an address are no secret: https://host may be told.
        yield from _flattened(spelling, None if whole else _RUN)
    if whole:
        path = url.path + (f"?{url.query}" if url.query else "")
        values = (value for _, value in parse_qsl(url.query))
        for part in (path, url.path, url.query, url.username, url.password, *url.path.split("/"), *values):
            if part and len(part) >= _CORE:
                for spelling in _spellings(part):
                    yield from _flattened(spelling, _RUN)


def _flattened(spelling: str, run: int | None) -> Iterator[_Form]:
    """As `Redactor` looks at text: without blanks, and without blanks and backslashes."""
    for gaps in (_GAPS, _GAPS_AND_ESCAPES):
        flat = _lower(gaps.sub("", spelling))
        yield _Form(flat, min(len(flat), run or len(flat)))


def _spellings(secret: str) -> Iterator[str]:
    """As it is, and as URLs, JSON (twice, too), Python, HTML, base64 and hexadecimal digits have it."""
    import base64
    import html
    import json
    from urllib.parse import quote, quote_plus

    data = secret.encode("utf-8", "replace")
    once: Callable[[str], str] = lambda text: json.dumps(text)[1:-1]  # noqa: E731 - one name for a slice
    yield secret
    yield from (quote(data), quote(data, safe=""), quote_plus(data))
    yield from (once(secret), json.dumps(secret, ensure_ascii=False)[1:-1], once(secret).replace("/", "\\/"))
    yield from (once(once(secret)), repr(secret)[1:-1], repr(data)[2:-1], html.escape(secret))
    if len(data.hex()) >= _CORE:
        yield data.hex()
    for shift in range(3):
        # The characters at either end depend on what stands beside the secret.
        coded = base64.b64encode(b"\0" * shift + data)[(0, 2, 3)[shift] : (shift + len(data)) * 8 // 6].decode()
        if len(coded) >= _CORE:
            yield from (coded, coded.replace("+", "-").replace("/", "_"))
