"""Endpoints as users write them."""

from __future__ import annotations

import pytest

from forecastd.chain.endpoint import Endpoint, parse_endpoint, read_endpoints
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
        ("https://node.example", Endpoint("node.example", 443, True, rest=True), False),
        ("rest+https://node.example/", Endpoint("node.example", 443, True, rest=True), False),
        ("http://[::1]:1317", Endpoint("::1", 1317, False, rest=True), True),
        ("rest+http://node.example:1317/allora/", Endpoint("node.example", 1317, False, True, "/allora"), False),
    ],
)
def test_an_endpoint_is_read(text: str, endpoint: Endpoint, loopback: bool) -> None:
    assert parse_endpoint(text) == endpoint
    assert endpoint.loopback is loopback
    assert parse_endpoint(str(endpoint)).host == endpoint.host


@pytest.mark.parametrize(
    "text",
    ["", "node.example", "ftp://node.example:9090", "https://", "rest+http://node.example:0",
     "grpc+http://", "grpc+http://a b:1", "node.example:x",
     "node.example:99999", "grpc+https://node.example:443/token-hunter2", "grpc+https://me:hunter2@node.example:443",
     "grpc+https://node.example?key=hunter2"],
)  # fmt: skip
def test_rubbish_is_refused_and_never_repeated(text: str) -> None:
    with pytest.raises(NeedsHuman) as caught:
        parse_endpoint(text)
    assert "hunter2" not in str(caught.value)
    assert "HOST:PORT" in str(caught.value)


def test_the_path_of_a_rest_endpoint_is_used_and_not_shown() -> None:
    endpoint = parse_endpoint("https://node.example/key-hunter2")
    assert endpoint.url == "https://node.example:443/key-hunter2"
    assert "hunter2" not in str(endpoint) + repr(endpoint)


def test_an_item_of_a_list_is_named_by_its_position_and_not_repeated() -> None:
    with pytest.raises(NeedsHuman) as caught:
        read_endpoints(["grpc+https://node.example:443", "https://me:hunter2@node.example"])
    assert "Item 2 of RPC_ENDPOINTS" in str(caught.value)
    assert "HOST:PORT" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(NeedsHuman, match="RPC_ENDPOINTS is empty"):
        read_endpoints([])


def test_an_endpoint_given_twice_is_told_and_kept_once() -> None:
    found, told = read_endpoints(["node.example:443", "https://node.example", "grpc+https://NODE.example"])
    assert found == (Endpoint("node.example", 443, True), Endpoint("node.example", 443, True, rest=True))
    assert told == ("Item 3 of RPC_ENDPOINTS is the same endpoint as item 1: node.example:443.",)


def test_the_default_endpoints_are_readable() -> None:
    for network in NETWORKS.values():
        for text in network.endpoints:
            assert parse_endpoint(text).secure is (network.name != "local")


@pytest.mark.parametrize(
    ("chain_id", "local"),
    [("localnet", True), ("localnet-20191017T090000Z", True), ("allora-testnet-1", False), ("allora-mainnet-1", False),
     ("localnetwork", False), ("", False), ("my-localnet", False)],
)  # fmt: skip
def test_only_local_chain_ids_are_local(chain_id: str, local: bool) -> None:
    assert is_local(chain_id) is local
