"""The spellings of a secret: plain, and as it appears in URLs, JSON, Python, HTML, base64 and hexadecimal.

A URL that contains a secret is split, because libraries report host, path and query separately. The host is not secret.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, quote_plus, urlsplit

_MIN_RUN = 16  # the shortest part of a secret that must be hidden as well
_MIN_PART = 8  # shorter parts of a URL, and shorter encodings, would match by chance


class Spelling(NamedTuple):
    """A text to search for, and the length of its shortest part that counts; None: only the whole text."""

    text: str
    min_length: int | None


def spellings(secret: str) -> Iterator[Spelling]:
    """Every spelling of the secret, and of its parts that are secret by themselves."""
    if not secret:
        return
    parts = [part for part in _secret_parts(secret) if len(part) >= _MIN_PART]
    for text in _encodings(secret):
        yield Spelling(text, None if parts else _MIN_RUN)
    for part in parts:
        for text in _encodings(part):
            yield Spelling(text, _MIN_RUN)


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
    if len(data) * 2 >= _MIN_PART:
        yield data.hex()
    for shift in range(3):
        # The characters at either end depend on the bytes next to the secret.
        encoded = base64.b64encode(b"\0" * shift + data)[(0, 2, 3)[shift] : (shift + len(data)) * 8 // 6].decode()
        if len(encoded) >= _MIN_PART:
            yield from (encoded, encoded.replace("+", "-").replace("/", "_"))
