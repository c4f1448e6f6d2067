"""How a cycle finds a local node that runs in another process: a small file with its endpoints, believed after a probe."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from forecastd.chain.networks import LOCAL_CHAIN_ID
from forecastd.chain.node import Node
from forecastd.errors import ForecastdError

PROBE_SECONDS = 10.0  # a node that has gone refuses at once; one on a busy machine takes seconds to its first answer


@dataclass(frozen=True)
class Running:
    """A local node that runs: its endpoint, and its websocket where it has one."""

    endpoint: str
    websocket: str | None


def endpoint_file(state_dir: Path) -> Path:
    return state_dir / "localnet" / "endpoint.json"


@contextmanager
def announced(state_dir: Path, endpoint: str, chain_id: str, websocket: str | None = None) -> Iterator[None]:
    """Keep the endpoint file in place while the block runs. The file appears whole or not at all."""
    path = endpoint_file(state_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"endpoint": endpoint, "websocket": websocket, "chain_id": chain_id, "pid": os.getpid()})
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text + "\n", encoding="utf-8")
    draft.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def find_running(state_dir: Path, *, chain_id: str = LOCAL_CHAIN_ID) -> str | None:
    """The endpoint of a local node on this state that runs and answers; a stale or strange file is ignored."""
    found = find_node(state_dir, chain_id=chain_id)
    return None if found is None else found.endpoint


def find_node(state_dir: Path, *, chain_id: str = LOCAL_CHAIN_ID) -> Running | None:
    """As `find_running`, with the node's websocket."""
    try:
        told = json.loads(endpoint_file(state_dir).read_text(encoding="utf-8"))
        endpoint, websocket = str(told["endpoint"]), told.get("websocket")
        if told["chain_id"] != chain_id:
            return None
        with Node(endpoint, chain_id=chain_id, deadline=PROBE_SECONDS) as node:
            node.chain_id()
    except (OSError, ValueError, LookupError, TypeError, ForecastdError):
        return None
    return Running(endpoint, websocket if isinstance(websocket, str) else None)
