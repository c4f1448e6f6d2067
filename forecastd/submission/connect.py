"""Connects to the chain of the settings, for a worker and for commands that only query.

On the local network without RPC_ENDPOINTS, a node that runs in the foreground is discovered; without one, a node is embedded
in this process for as long as the connection is open.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from forecastd.chain.endpoint_pool import EndpointPool
from forecastd.chain.events import check_websocket
from forecastd.chain.networks import NETWORKS
from forecastd.clock import Clock
from forecastd.localnet.discovery import find_running_node
from forecastd.localnet.embedded import open_embedded
from forecastd.settings import Settings


def chain_id_for(settings: Settings) -> str:
    """The id of the chain to sign for. A replay has a separate chain instead."""
    return NETWORKS[settings.chain.network].chain_id


@dataclass(frozen=True)
class ChainConnection:
    """The endpoints to query, and the websockets that announce new blocks; these may be empty."""

    endpoints: EndpointPool
    websockets: tuple[str, ...]


@contextmanager
def open_endpoints(settings: Settings, clock: Clock, chain_id: str, *, replay: bool = False) -> Iterator[EndpointPool]:
    """The endpoints: the user's, the network's default ones, a running local node, or one embedded in this process.

    Raises:
        NeedsHuman: an endpoint is invalid, or the local node's state cannot be used.
        RetryLater: another process holds the local node's state.
    """
    with open_connection(settings, clock, chain_id, replay=replay, with_websockets=False) as connection:
        yield connection.endpoints


@contextmanager
def open_connection(
    settings: Settings, clock: Clock, chain_id: str, *, replay: bool = False, with_websockets: bool = True
) -> Iterator[ChainConnection]:
    """Like `open_endpoints`, with the websockets: the user's, or those of the default endpoints or the local node."""
    with ExitStack() as stack:
        network = NETWORKS[settings.chain.network]
        websockets: tuple[str, ...] = ()
        if settings.chain.rpc_endpoints:
            endpoints = settings.chain.rpc_endpoints
        elif settings.chain.network != "local":
            endpoints, websockets = network.endpoints, network.websockets
        else:
            node = (None if replay else find_running_node(settings.state_path)) or stack.enter_context(
                open_embedded(settings.state_path, clock, chain_id=chain_id, events=with_websockets)
            )
            endpoints = (node.endpoint,)
            websockets = () if node.websocket is None else (node.websocket,)
        numbered_urls = enumerate(settings.chain.event_endpoints, start=1)
        websocket_urls = tuple(check_websocket(url, position) for position, url in numbered_urls) or websockets
        yield ChainConnection(
            stack.enter_context(EndpointPool(endpoints, chain_id=chain_id, clock=clock)), websocket_urls
        )
