"""The way to the chain that the settings name, for a worker and for whoever only asks.

On the local network without endpoints of the user's, a node that runs in the foreground is found by itself, else one is
embedded in this process for as long as it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from forecastd.chain.endpoints import Endpoints
from forecastd.chain.events import check_websocket
from forecastd.chain.networks import NETWORKS
from forecastd.clock import Clock
from forecastd.localnet.embedded import find_node, open_embedded
from forecastd.settings import Settings


def chain_of(settings: Settings) -> str:
    """The id of the chain that is signed for, but in a replay, which is a chain of its own."""
    return NETWORKS[settings.allora_network].chain_id


@dataclass(frozen=True)
class Way:
    """The endpoints to talk to, and the websockets that tell of new blocks; of these there may be none."""

    chain: Endpoints
    events: tuple[str, ...]


@contextmanager
def open_chain(settings: Settings, clock: Clock, chain_id: str, *, replay: bool = False) -> Iterator[Endpoints]:
    """The endpoints to talk to: the user's, the network's own, a running local node, or one embedded in this process.

    Raises:
        NeedsHuman: an endpoint is not one, or the local node's state cannot be used.
        RetryLater: another process holds the local node's state.
    """
    with open_way(settings, clock, chain_id, replay=replay, events=False) as way:
        yield way.chain


@contextmanager
def open_way(
    settings: Settings, clock: Clock, chain_id: str, *, replay: bool = False, events: bool = True
) -> Iterator[Way]:
    """As `open_chain`, with the websockets: the user's, or those that belong to endpoints that are not the user's."""
    with ExitStack() as stack:
        network = NETWORKS[settings.allora_network]
        websockets: tuple[str, ...] = ()
        if settings.rpc_endpoints:
            endpoints = settings.rpc_endpoints
        elif settings.allora_network != "local":
            endpoints, websockets = network.endpoints, network.websockets
        else:
            node = (None if replay else find_node(settings.state)) or stack.enter_context(
                open_embedded(settings.state, clock, chain_id=chain_id, events=events)
            )
            endpoints = (node.endpoint,)
            websockets = () if node.websocket is None else (node.websocket,)
        own = enumerate(settings.event_endpoints, start=1)
        told = tuple(check_websocket(url, position) for position, url in own) or websockets
        yield Way(stack.enter_context(Endpoints(endpoints, chain_id=chain_id, clock=clock)), told)
