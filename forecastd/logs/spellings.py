"""The spellings of a secret: as it is, and as URLs, JSON, Python, HTML, base64 and hexadecimal digits have it.

An address with a secret in it is taken apart, for libraries tell host, path and query separately. Its host is no secret.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

_MIN_RUN = 16  # the shortest part of a secret that is one too
_MIN_PART = 8  # shorter parts of an address, and shorter codes, would be found by chance


class Spelling(NamedTuple):
    """A text to look for, and the shortest part of it that counts; None: only the whole."""

    text: str
    min_length: int | None


def spellings(secret: str) -> Iterator[Spelling]:
    """Every spelling of the secret, and of the parts of it that are secret by themselves."""
    if not secret:
        return
    parts = [part for part in _secret_parts(secret) if len(part) >= _MIN_PART]
    for text in _encodings(secret):
        yield Spelling(text, None if parts else _MIN_RUN)
    for part in parts:
        for text in _encodings(part):
            yield Spelling(text, _MIN_RUN)


def _secret_parts(secret: str) -> Iterator[str]:
    """What is secret in an address; nothing where the secret is none."""
    from urllib.parse import parse_qsl, urlsplit

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
    import base64
    import html
    import json
    from urllib.parse import quote, quote_plus

    data = secret.encode("utf-8", "replace")
    yield secret
    yield from (quote(data), quote(data, safe=""), quote_plus(data))
    yield from (json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1])
    yield from (repr(secret)[1:-1], repr(data)[2:-1], html.escape(secret))
    if len(data) * 2 >= _MIN_PART:
        yield data.hex()
    for shift in range(3):
        # The characters at either end depend on what stands beside the secret.
        encoded = base64.b64encode(b"\0" * shift + data)[(0, 2, 3)[shift] : (shift + len(data)) * 8 // 6].decode()
        if len(encoded) >= _MIN_PART:
            yield from (encoded, encoded.replace("+", "-").replace("/", "_"))
