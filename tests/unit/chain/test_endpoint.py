"""Parsing endpoints as users write them."""

from __future__ import annotations

import pytest

from forecastd.chain.endpoint import Endpoint, parse_endpoint, parse_endpoints
from forecastd.chain.networks import NETWORKS, is_local
from forecastd.errors import NeedsHuman


@pytest.mark.parametrize(
    ("text", "endpoint", "loopback"),
    [
        ("grpc+https://node.example:443", Endpoint("node.example", 443, True), False),
        ("grpc+https://node.example", Endpoint("node.example", 443, True), False),
        ("grpc+http://localhost:9090", Endpoint("localhost", 9090, False), True),
        ("grpc+http://localhost:9090/", Endpoint("localhost", 9090, False), True),
        (" 127.0.0.1:9090 ", Endpoint("127.0.0.1", 9090, False), True),
        ("node.example:443", Endpoint("node.example", 443, True), False),
        ("[::1]:9090", Endpoint("::1", 9090, False), True),
        ("GRPC+HTTPS://Node.Example:443", Endpoint("node.example", 443, True), False),
        ("https://node.example", Endpoint("node.example", 443, True, is_rest=True), False),
        ("rest+https://node.example/", Endpoint("node.example", 443, True, is_rest=True), False),
        ("http://[::1]:1317", Endpoint("::1", 1317, False, is_rest=True), True),
        ("rest+http://node.example:1317/allora/", Endpoint("node.example", 1317, False, True, "/allora"), False),
    ],
)
def test_parse_endpoint_accepts_known_forms(text: str, endpoint: Endpoint, loopback: bool) -> None:
    assert parse_endpoint(text) == endpoint
    assert endpoint.is_loopback is loopback
    assert parse_endpoint(str(endpoint)).host == endpoint.host


@pytest.mark.parametrize(
    "text",
    ["", "node.example", "ftp://node.example:9090", "https://", "rest+http://node.example:0",
     "grpc+http://", "grpc+http://a b:1", "node.example:x",
     "node.example:99999", "grpc+https://node.example:443/token-hunter2", "grpc+https://me:hunter2@node.example:443",
     "grpc+https://node.example?key=hunter2"],
)  # fmt: skip
def test_parse_endpoint_invalid_text_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(NeedsHuman) as caught:
        parse_endpoint(text)
    assert "hunter2" not in str(caught.value)
    assert "HOST:PORT" in str(caught.value)


def test_endpoint_rest_path_is_used_and_not_shown() -> None:
    endpoint = parse_endpoint("https://node.example/key-hunter2")
    assert endpoint.url == "https://node.example:443/key-hunter2"
    assert "hunter2" not in str(endpoint) + repr(endpoint)


def test_parse_endpoints_invalid_item_is_named_by_position() -> None:
    with pytest.raises(NeedsHuman) as caught:
        parse_endpoints(["grpc+https://node.example:443", "https://me:hunter2@node.example"])
    assert "Item 2 of RPC_ENDPOINTS" in str(caught.value)
    assert "HOST:PORT" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_parse_endpoints_empty_list_is_refused() -> None:
    with pytest.raises(NeedsHuman, match="RPC_ENDPOINTS is empty"):
        parse_endpoints([])


def test_parse_endpoints_duplicate_is_reported_and_merged() -> None:
    endpoints, warnings = parse_endpoints(["node.example:443", "https://node.example", "grpc+https://NODE.example"])
    assert endpoints == (Endpoint("node.example", 443, True), Endpoint("node.example", 443, True, is_rest=True))
    assert warnings == ("Item 3 of RPC_ENDPOINTS is the same endpoint as item 1: node.example:443.",)


def test_default_endpoints_parse() -> None:
    for network in NETWORKS.values():
        for text in network.endpoints:
            assert parse_endpoint(text).tls is (network.name != "local")


@pytest.mark.parametrize(
    ("chain_id", "local"),
    [("localnet", True), ("localnet-20191017T090000Z", True), ("allora-testnet-1", False), ("allora-mainnet-1", False),
     ("localnetwork", False), ("", False), ("my-localnet", False)],
)  # fmt: skip
def test_is_local_only_for_local_chain_ids(chain_id: str, local: bool) -> None:
    assert is_local(chain_id) is local
