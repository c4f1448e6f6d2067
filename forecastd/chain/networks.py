"""The known networks: chain ids, default endpoints and minimum gas prices.

Endpoints and minimum prices are those of allora_sdk's `AlloraNetworkConfig`. A signature is bound to a chain id, so the
chain id decides what may be signed: synthetic data only for `localnet` and `localnet-...`.
"""

from __future__ import annotations

from dataclasses import dataclass

from forecastd.settings import NetworkName

ADDRESS_PREFIX = "allo"
DENOM = "uallo"
LOCAL_CHAIN_ID = "localnet"


@dataclass(frozen=True)
class NetworkInfo:
    """The fixed values of a network.

    `gas_price_floor` in uallo per gas; endpoints and websockets as the SDK writes them.
    """

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
    """Whether this chain id belongs to a local node. Only a local node may receive synthetic data."""
    return chain_id == LOCAL_CHAIN_ID or chain_id.startswith(LOCAL_CHAIN_ID + "-")
