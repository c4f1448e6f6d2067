"""Parsing REST responses: answers, refusals, and responses that no node sends."""

from __future__ import annotations

import importlib.util
import json
import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.chain.endpoint import parse_endpoint
from forecastd.chain.grpc_transport import RpcError, UnusableReply
from forecastd.chain.methods import METHODS
from forecastd.chain.proto.cosmos_pb2 import GetTxResponse
from forecastd.chain.rest_transport import read_response, without_any


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
def test_read_response_error_raises_rpc_error(status: int, body: bytes, refusal: str) -> None:
    with pytest.raises(RpcError) as caught:
        read_response(status, body)
    assert caught.value.status == refusal


@pytest.mark.parametrize(
    ("status", "body", "message"),
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
def test_read_response_other_body_is_unusable(status: int, body: bytes, message: str) -> None:
    with pytest.raises(UnusableReply, match=re.escape(message)):
        read_response(status, body)


@given(st.integers(100, 599), st.binary(max_size=200))
def test_read_response_any_bytes_never_crash(status: int, body: bytes) -> None:
    with suppress(RpcError, UnusableReply):
        assert isinstance(read_response(status, body), dict)


def test_without_any_drops_content_of_unknown_types() -> None:
    key = {"@type": "/ethermint.crypto.v1.PubKey", "key": "AAAA"}
    answer = {
        "tx": {
            "body": {"messages": [{"@type": "/cosmos.bank.v1beta1.MsgSend"}], "memo": "hello"},
            "auth_info": {"signer_infos": [{"public_key": key, "sequence": "7"}]},
        },
        "tx_response": {"height": "7", "tx": {"@type": "/x"}},
    }
    assert without_any(answer, GetTxResponse.DESCRIPTOR) == {
        "tx": {"body": {"memo": "hello"}, "auth_info": {"signer_infos": [{"sequence": "7"}]}},
        "tx_response": {"height": "7", "tx": {"@type": "/x"}},
    }
    assert without_any({"tx_response": None, "tx": [7]}, GetTxResponse.DESCRIPTOR) == {"tx_response": None, "tx": [7]}


def test_routes_equal_the_official_sdks() -> None:
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
    assert {method.path.partition("?")[0] for method in METHODS.values()} <= theirs


def test_routes_are_unique() -> None:
    paths = [(method.verb, method.path) for method in METHODS.values()]
    assert len(paths) == len(set(paths))
    for method in METHODS.values():
        filled = re.sub(r"\{\w+\}", "7", method.path.partition("?")[0])
        assert [
            candidate.path
            for candidate in METHODS.values()
            if candidate.verb == method.verb and candidate.pattern.fullmatch(filled)
        ]


def test_rest_endpoint_path_prefixes_requests() -> None:
    assert parse_endpoint("https://node.example/allora/lcd").url == "https://node.example:443/allora/lcd"
