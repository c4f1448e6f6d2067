"""Every spelling of a secret, complete or truncated, is removed; other text is unchanged."""

from __future__ import annotations

import base64
import html
import json
import random
import string
from collections.abc import Callable
from urllib.parse import quote, quote_plus, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.logs.redaction import HIDDEN, Redactor

KEY = "8f3c51d0a9e24b7796c0ffee12ab34cd56ef7890"
ODD_KEY = "aZ3/+=&? \"Kq7'é\\n-0918273645~%x"
PHRASE = "legal winner thank year wave sausage worth useful legal winner thank yellow"
WEBHOOK = "https://hooks.example.com/services/T0AB12CD3/B0EF45GH6/Xy9Zw8Vu7Ts6Rq5Po4Nm3"
TOKEN = "Xy9Zw8Vu7Ts6Rq5Po4Nm3"


def redactor(*secrets: str) -> Redactor:
    new_redactor = Redactor()
    new_redactor.hide(secrets)
    return new_redactor


def utf8(text: str) -> bytes:
    return text.encode()


SPELLINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "upper case": str.upper,
    "quoted": quote,
    "quoted with slashes": lambda text: quote(text, safe=""),
    "quoted in lower case": lambda text: quote(text, safe="").lower(),
    "quoted with plus": quote_plus,
    "in a form": lambda text: urlencode({"token": text}),
    "JSON": json.dumps,
    "JSON with letters": lambda text: json.dumps(text, ensure_ascii=False),
    "JSON with escaped slashes": lambda text: json.dumps(text).replace("/", "\\/"),
    "JSON in JSON": lambda text: json.dumps(json.dumps({"key": text})),
    "repr": repr,
    "repr of bytes": lambda text: repr(utf8(text)),
    "HTML": html.escape,
    "hexadecimal": lambda text: utf8(text).hex(),
    "base64": lambda text: base64.b64encode(utf8(text)).decode(),
    "base64 for URLs": lambda text: base64.urlsafe_b64encode(utf8(text)).decode(),
    "base64 in lines": lambda text: base64.encodebytes(utf8(text * 3)).decode(),
    "basic authentication": lambda text: base64.b64encode(b"me:" + utf8(text)).decode(),
    "basic authentication, other user": lambda text: base64.b64encode(b"user:" + utf8(text) + b":x").decode(),
    "one word per line": lambda text: "\n".join(text.split()),
    "in a list": lambda text: str(text.split()),
    "wrapped": lambda text: "\n    ".join(text[position : position + 7] for position in range(0, len(text), 7)),
    "wrapped, then repr": lambda text: repr(
        "\n".join(text[position : position + 7] for position in range(0, len(text), 7))
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize("secret", [KEY, ODD_KEY, PHRASE, WEBHOOK], ids=["key", "odd key", "phrase", "webhook"])
def test_every_spelling_of_a_secret_is_redacted(secret: str, name: str) -> None:
    spelling = SPELLINGS[name](secret)
    redacted = redactor(secret).redact(f"GET failed: <{spelling}> (timed out)")
    assert HIDDEN in redacted
    assert redacted.startswith("GET failed: <")
    assert redacted.endswith("> (timed out)")
    remainder = redacted.removeprefix("GET failed: <").removesuffix("> (timed out)").replace(HIDDEN, "")
    # A parameter's name, quotes, or a user's name in base64 may remain.
    assert len(remainder) <= 20, remainder


@given(before=st.binary(max_size=20), after=st.binary(max_size=20))
def test_base64_secret_is_redacted_at_any_offset(before: bytes, after: bytes) -> None:
    encoded = base64.b64encode(before + KEY.encode() + after).decode()
    redacted = redactor(KEY).redact(encoded)
    assert HIDDEN in redacted
    assert len(redacted) - len(HIDDEN) <= (len(before) + len(after)) * 4 / 3 + 10


@given(start=st.integers(0, len(KEY) - 16), length=st.integers(16, len(KEY)))
def test_truncated_key_is_redacted(start: int, length: int) -> None:
    part = KEY[start : start + length]
    assert redactor(KEY).redact(f"token={part}...") == f"token={HIDDEN}..."


@given(
    positions=st.sets(st.integers(1, len(KEY) - 1)),
    blank=st.sampled_from([" ", "\n", "\r\n  ", "\t", "\0", "\u200b", "\x1b"]),
)
def test_wrapped_key_is_redacted(positions: set[int], blank: str) -> None:
    broken = "".join(blank + letter if position in positions else letter for position, letter in enumerate(KEY))
    assert redactor(KEY).redact(f"a {broken} b") == f"a {HIDDEN} b"


@given(
    position=st.integers(0, len(PHRASE.split()) - 2),
    count=st.integers(2, 12),
    between=st.sampled_from(
        [" ", "\n", ", ", "', '", '","', "+", "%20", "%2520", "\\n", "\\u0020", "&#32;", " 7. ", "_"]
    ),
)
def test_consecutive_mnemonic_words_are_redacted(position: int, count: int, between: str) -> None:
    words = PHRASE.split()[position : position + count]
    redacted = redactor(PHRASE).redact(f"got [{between.join(words)}] instead")
    assert redacted == f"got [{HIDDEN}] instead"


def test_single_mnemonic_word_is_kept() -> None:
    text = "Thank you, the winner of this year has no legal claim to the sausage: it is worth a wave."
    assert redactor(PHRASE).redact(text) == text


def test_secret_url_parts_are_redacted_and_the_host_is_kept() -> None:
    hidden = redactor(WEBHOOK, f"https://me:{KEY}@alerts.example.org/hook?token={ODD_KEY[:1]}{TOKEN}").redact
    path = WEBHOOK.removeprefix("https://hooks.example.com")
    refused = (
        f"HTTPSConnectionPool(host='hooks.example.com', port=443): Max retries exceeded with url: {path} (refused)"
    )
    assert hidden(refused) == refused.replace(path, HIDDEN)
    assert hidden(f'"POST {path} HTTP/1.1" 404') == f'"POST {HIDDEN} HTTP/1.1" 404'
    assert TOKEN not in hidden(f"no webhook {TOKEN}")
    assert KEY not in hidden(f"wrong password {KEY}")
    assert hidden("https://hooks.example.com cannot be reached") == "https://hooks.example.com cannot be reached"


def test_short_secret_is_redacted_as_a_whole_word() -> None:
    assert redactor("k3y").redact("Token k3y; k3yboard") == f"Token {HIDDEN}; k3yboard"


@pytest.mark.parametrize("secret", ["", "  ", "\n"])
def test_empty_secret_hides_nothing(secret: str) -> None:
    assert redactor(secret).redact("a b  c\n") == "a b  c\n"


@given(text=st.text())
def test_text_without_secrets_is_unchanged(text: str) -> None:
    assert redactor("q" * 40, "https://[half an address", "\ud800\udfffodd").redact(text) == text


@given(before=st.text(), after=st.text(), secret=st.sampled_from([KEY, ODD_KEY, PHRASE, WEBHOOK]))
def test_secret_in_any_context_is_redacted(before: str, after: str, secret: str) -> None:
    redacted = redactor(KEY, ODD_KEY, PHRASE, WEBHOOK).redact(before + secret + after)
    assert secret not in redacted
    assert HIDDEN in redacted


@given(length=st.integers(4, 80), seed=st.integers(0, 2**32))
def test_secret_of_any_length_is_redacted(length: int, seed: int) -> None:
    letters = random.Random(seed).choices(string.ascii_letters + string.digits, k=length)
    secret = "".join(letters)
    assert redactor(secret).redact(f"<{secret}>") == f"<{HIDDEN}>"


def test_secret_added_later_is_redacted() -> None:
    key_redactor = redactor(KEY)
    key_redactor.hide([PHRASE])
    assert key_redactor.redact(f"{KEY}, {PHRASE}") == f"{HIDDEN}, {HIDDEN}"
