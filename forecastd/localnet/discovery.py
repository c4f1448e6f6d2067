"""Finds a local node in another process: a small file holds its endpoints, and a query checks that the node answers."""

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
from forecastd.runtime.files import STATE_DIR_FIX, write_atomic

PROBE_TIMEOUT_SECONDS = 10.0  # a stopped node refuses at once; on a busy machine the first answer takes seconds


@dataclass(frozen=True)
class RunningNode:
    """A running local node: its endpoint, and its websocket if it has one."""

    endpoint: str
    websocket: str | None


def endpoint_file(state_dir: Path) -> Path:
    return state_dir / "localnet" / "endpoint.json"


@contextmanager
def publish_endpoint(state_dir: Path, endpoint: str, chain_id: str, websocket: str | None = None) -> Iterator[None]:
    """Keep the endpoint file in place during the `with` block. The file appears complete or not at all."""
    path = endpoint_file(state_dir)
    text = json.dumps({"endpoint": endpoint, "websocket": websocket, "chain_id": chain_id, "pid": os.getpid()})
    write_atomic(path, f"{text}\n".encode(), mode=0o644, fix=STATE_DIR_FIX)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def find_endpoint(state_dir: Path, *, chain_id: str = LOCAL_CHAIN_ID) -> str | None:
    """The endpoint of a local node that runs on this state and answers, or None. A stale or invalid file is ignored."""
    node = find_running_node(state_dir, chain_id=chain_id)
    return None if node is None else node.endpoint


def find_running_node(state_dir: Path, *, chain_id: str = LOCAL_CHAIN_ID) -> RunningNode | None:
    """Like `find_endpoint`, with the node's websocket."""
    try:
        document = json.loads(endpoint_file(state_dir).read_text(encoding="utf-8"))
        endpoint, websocket = str(document["endpoint"]), document.get("websocket")
        if document["chain_id"] != chain_id:
            return None
        with Node(endpoint, chain_id=chain_id, deadline=PROBE_TIMEOUT_SECONDS) as node:
            node.chain_id()
    except (OSError, ValueError, LookupError, TypeError, ForecastdError):
        return None
    return RunningNode(endpoint, websocket if isinstance(websocket, str) else None)
