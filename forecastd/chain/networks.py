"""The known networks: chain ids, default endpoints, floors of the gas price.

Endpoints and floors are those of allora_sdk's `AlloraNetworkConfig`. A chain id is what a signature is bound to, so it
decides what may be signed: only `localnet` and `localnet-...` may see synthetic data.
"""

from __future__ import annotations

from dataclasses import dataclass

from forecastd.settings import NetworkName

ADDRESS_PREFIX = "allo"
DENOM = "uallo"
LOCAL_CHAIN_ID = "localnet"


@dataclass(frozen=True)
class NetworkInfo:
    """What is fixed for a network. `gas_price_floor` in uallo a gas; endpoints and websockets as the SDK writes them."""

    name: NetworkName
    chain_id: str
    endpoints: tuple[str, ...]
    gas_price_floor: int
    websockets: tuple[str, ...] = ()


NETWORKS: dict[NetworkName, NetworkInfo] = {
    "local": NetworkInfo("local", LOCAL_CHAIN_ID, ("grpc+http://127.0.0.1:9090",), 1),
    "testnet": NetworkInfo(
        "testnet", "allora-testnet-1", ("grpc+https://allora-grpc.testnet.allora.network:443",), 10,
        ("wss://allora-rpc.testnet.allora.network/websocket",),
    ),
    "mainnet": NetworkInfo(
        "mainnet", "allora-mainnet-1", ("grpc+https://allora-grpc.mainnet.allora.network:443",), 250_000_000,
        ("wss://allora-rpc.mainnet.allora.network/websocket",),
    ),
}  # fmt: skip


def is_local(chain_id: str) -> bool:
    """Whether this chain id belongs to a local node, the only kind that may be sent synthetic data."""
    return chain_id == LOCAL_CHAIN_ID or chain_id.startswith(LOCAL_CHAIN_ID + "-")
