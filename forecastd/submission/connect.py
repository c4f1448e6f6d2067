"""The way to the chain that the settings name, for a worker and for whoever only asks.

On the local network without endpoints of the user's, a node that runs in the foreground is found by itself, else one is
embedded in this process for as long as it is needed.
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
    """The id of the chain that is signed for, but in a replay, which is a chain of its own."""
    return NETWORKS[settings.allora_network].chain_id


@dataclass(frozen=True)
class ChainConnection:
    """The endpoints to talk to, and the websockets that tell of new blocks; of these there may be none."""

    endpoints: EndpointPool
    websockets: tuple[str, ...]


@contextmanager
def open_endpoints(settings: Settings, clock: Clock, chain_id: str, *, replay: bool = False) -> Iterator[EndpointPool]:
    """The endpoints to talk to: the user's, the network's own, a running local node, or one embedded in this process.

    Raises:
        NeedsHuman: an endpoint is not one, or the local node's state cannot be used.
        RetryLater: another process holds the local node's state.
    """
    with open_connection(settings, clock, chain_id, replay=replay, with_websockets=False) as connection:
        yield connection.endpoints


@contextmanager
def open_connection(
    settings: Settings, clock: Clock, chain_id: str, *, replay: bool = False, with_websockets: bool = True
) -> Iterator[ChainConnection]:
    """As `open_chain`, with the websockets: the user's, or those that belong to endpoints that are not the user's."""
    with ExitStack() as stack:
        network = NETWORKS[settings.allora_network]
        websockets: tuple[str, ...] = ()
        if settings.rpc_endpoints:
            endpoints = settings.rpc_endpoints
        elif settings.allora_network != "local":
            endpoints, websockets = network.endpoints, network.websockets
        else:
            node = (None if replay else find_running_node(settings.state_path)) or stack.enter_context(
                open_embedded(settings.state_path, clock, chain_id=chain_id, events=with_websockets)
            )
            endpoints = (node.endpoint,)
            websockets = () if node.websocket is None else (node.websocket,)
        numbered_urls = enumerate(settings.event_endpoints, start=1)
        websocket_urls = tuple(check_websocket(url, position) for position, url in numbered_urls) or websockets
        yield ChainConnection(
            stack.enter_context(EndpointPool(endpoints, chain_id=chain_id, clock=clock)), websocket_urls
        )
