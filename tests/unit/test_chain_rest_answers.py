"""What comes back over REST, before it is anything: read, refused, or no answer at all."""

from __future__ import annotations

import importlib.util
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.chain.endpoint import parse_endpoint
from forecastd.chain.paths import ROUTES, kept
from forecastd.chain.rest import Unusable, read_answer
from forecastd.chain.wire import Refused


def _error(code: int, message: str = "no") -> bytes:
    return json.dumps({"code": code, "message": message, "details": []}).encode()


@pytest.mark.parametrize(
    ("status", "body", "refusal"),
    [
        (404, _error(5, "tx not found: AB"), "NOT_FOUND"),
        (501, _error(12, "Not Implemented"), "UNIMPLEMENTED"),
        (501, b"<html>", "UNIMPLEMENTED"),
        (400, _error(3), "INVALID_ARGUMENT"),
        (500, _error(2, "account not found"), "UNKNOWN"),
        (200, _error(5), "NOT_FOUND"),
        (500, _error(999), "UNKNOWN"),
        (500, _error(-3), "UNKNOWN"),
    ],
)
def test_a_node_that_says_no_is_heard(status: int, body: bytes, refusal: str) -> None:
    with pytest.raises(Refused) as caught:
        read_answer(status, body)
    assert caught.value.status == refusal


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (429, b"slow down", "429"),
        (429, _error(8), "resource exhausted"),
        (503, _error(14, "upstream is down"), "upstream is down"),
        (500, _error(13, "panic"), "internal"),
        (401, _error(16), "unauthenticated"),
        (404, b"<html>no such page</html>", "HTTP 404"),
        (502, b"<html>bad gateway</html>", "HTTP 502"),
        (200, b"<html>hello</html>", "not JSON"),
        (200, b'{"block": {"header": {"hei', "not JSON"),
        (200, b"", "not JSON"),
        (200, b"[1, 2]", "not JSON"),
        (200, b"\xff\xfe\x00", "not JSON"),
        (200, b"[" * 200_000, "not JSON"),
        (200, b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (301, b"", "HTTP 301"),
        (404, b"{}", "HTTP 404"),
        (500, b'{"code": "5", "message": "x"}', "HTTP 500"),
    ],
)
def test_what_is_no_answer_of_a_node_is_unusable(status: int, body: bytes, said: str) -> None:
    with pytest.raises(Unusable, match=re.escape(said)):
        read_answer(status, body)


@given(st.integers(100, 599), st.binary(max_size=200))
def test_any_bytes_are_an_answer_a_refusal_or_unusable(status: int, body: bytes) -> None:
    with suppress(Refused, Unusable):
        assert isinstance(read_answer(status, body), dict)


def test_only_what_is_read_of_an_answer_is_kept() -> None:
    tree: dict[str, Any] = {"tx_response": {"height": {}, "code": {}}}
    answer = {"tx_response": {"height": "7", "tx": {"@type": "/x"}}, "tx": {"@type": "/y"}}
    assert kept(answer, tree) == {"tx_response": {"height": "7"}}
    assert kept({"tx_response": None}, tree) == {"tx_response": None}
    assert kept(answer, {}) is answer


def test_the_paths_are_those_that_the_official_sdk_asks() -> None:
    spec = importlib.util.find_spec("allora_sdk")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "rpc_client" / "rest"
    theirs = {
        re.sub(r"\{message\.(\w+)\}", r"{\1}", path)
        for file in folder.glob("*_rest_client.py")
        for path in re.findall(r'base_url \+ f"([^"]+)"', file.read_text(encoding="utf-8"))
    }
    assert len(theirs) > 100
    assert {route.path.partition("?")[0] for route in ROUTES.values()} <= theirs


def test_no_two_methods_share_a_path() -> None:
    seen = [(route.verb, route.path) for route in ROUTES.values()]
    assert len(seen) == len(set(seen))
    for route in ROUTES.values():
        filled = re.sub(r"\{\w+\}", "7", route.path.partition("?")[0])
        assert [other.path for other in ROUTES.values() if other.verb == route.verb and other.pattern.fullmatch(filled)]


def test_a_rest_endpoint_with_a_path_is_asked_below_it() -> None:
    assert parse_endpoint("https://node.example/allora/lcd").url == "https://node.example:443/allora/lcd"
