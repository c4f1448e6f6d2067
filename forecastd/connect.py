"""The way to the chain that the settings name, for a worker and for whoever only asks.

On the local network without endpoints of the user's, a node that runs in the foreground is found by itself, else one is
embedded in this process for as long as it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from forecastd.chain.endpoints import Endpoints
from forecastd.chain.networks import NETWORKS
from forecastd.clock import Clock
from forecastd.localnet.embedded import find_running, open_embedded
from forecastd.settings import Settings


def chain_of(settings: Settings) -> str:
    """The id of the chain that is signed for, but in a replay, which is a chain of its own."""
    return NETWORKS[settings.allora_network].chain_id


@contextmanager
def open_chain(settings: Settings, clock: Clock, chain_id: str, *, replay: bool = False) -> Iterator[Endpoints]:
    """The endpoints to talk to: the user's, the network's own, a running local node, or one embedded in this process.

    Raises:
        NeedsHuman: an endpoint is not one, or the local node's state cannot be used.
        RetryLater: another process holds the local node's state.
    """
    with ExitStack() as stack:
        if settings.rpc_endpoints:
            endpoints = settings.rpc_endpoints
        elif settings.allora_network != "local":
            endpoints = NETWORKS[settings.allora_network].endpoints
        else:
            running = None if replay else find_running(settings.state)
            endpoints = (
                running or stack.enter_context(open_embedded(settings.state, clock, chain_id=chain_id)).endpoint,
            )
        yield stack.enter_context(Endpoints(endpoints, chain_id=chain_id, clock=clock))
