"""The command `localnet` in a process of its own."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from forecastd.chain.codec import TxParameters, build_tx, payload_message, tx_hash
from forecastd.chain.node import Node
from forecastd.chain.wallet import Wallet
from forecastd.errors import RetryLater
from forecastd.localnet.discovery import endpoint_file, find_endpoint
from forecastd.localnet.faults import FAULTS
from tests.support.localnet import register_wallet
from tests.support.waiting import wait_until

WALLET = Wallet(b"\3" * 32)


@dataclass
class NodeProcess:
    """The process of a node, and its output until it served."""

    process: subprocess.Popen[str]
    startup_text: str

    @property
    def endpoint(self) -> str:
        match = re.search(r"grpc\+http://\S+", self.startup_text)
        assert match is not None
        return match[0]

    def stop(self, number: int) -> tuple[int, str]:
        """Send a signal. Returns the exit code and the remaining output."""
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=60)
        return self.process.returncode, rest


Start = Callable[..., NodeProcess]


@pytest.fixture
def start_node(root: Path, tmp_path: Path) -> Iterator[Start]:
    processes: list[subprocess.Popen[str]] = []

    def start(*options: str) -> NodeProcess:
        line = [sys.executable, "submit_prediction.py", "localnet", "--state-dir", str(tmp_path), "--port", "0"]
        process = subprocess.Popen(
            [*line, "--ws-port", "0", *options], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        processes.append(process)
        assert process.stdout is not None
        output = ""
        for text in process.stdout:
            output += text
            if "Ctrl-C" in text:
                break
        return NodeProcess(process, output)

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_localnet_rest_port_serves_rest_beside_grpc(start_node: Start) -> None:
    running = start_node("--rest-port", "0")
    match = re.search(r"rest\+http://\S+", running.startup_text)
    assert match is not None
    with Node(match[0], chain_id="localnet") as rest, Node(running.endpoint, chain_id="localnet") as grpc:
        assert rest.topic(67) == grpc.topic(67)
    assert running.stop(signal.SIGINT)[0] == 0


def test_localnet_serves_until_ctrl_c_and_prints_each_transaction(start_node: Start, tmp_path: Path) -> None:
    running = start_node("--seal-at-once", "--topic", "67:50:40", "--topic", "3:9")
    for part in (
        "chain      localnet, height ",
        "emissions  v10",
        "topic      67: epoch 50 blocks, window 40",
        "3: epoch 9",
    ):
        assert part in running.startup_text
    assert max(map(len, running.startup_text.splitlines())) <= 80
    assert find_endpoint(tmp_path) == running.endpoint
    with Node(running.endpoint, chain_id="localnet") as node:
        register_wallet(node, WALLET)
    code, rest = running.stop(signal.SIGINT)
    assert code == 0
    assert re.search(rf"  {WALLET.address[:9]}\.\.{WALLET.address[-4:]}  register topic 67  ok\nstopped\n$", rest)
    assert not endpoint_file(tmp_path).exists()


def test_localnet_extra_endpoints_have_their_own_faults(start_node: Start) -> None:
    running = start_node(
        "--endpoint", "unavailable@first=1,slow=0.01", "--endpoint", "rest:ok", "--fault", "rate-limit@every=2"
    )
    assert "fault      rate-limit@every=2" in running.startup_text
    urls = re.findall(r"endpoint   (\S+) \((.*)\)", running.startup_text)
    assert [faults for _, faults in urls] == ["unavailable@first=1, slow=0.01", "ok"]
    with Node(urls[0][0]) as faulty, Node(urls[1][0]) as rest, Node(running.endpoint) as main:
        with pytest.raises(RetryLater, match="unavailable"):
            faulty.height()
        before, height, after = rest.height(), faulty.height(), rest.height()
        assert before <= height <= after
        main.height()
        with pytest.raises(RetryLater, match="resource exhausted"):
            main.height()


def test_localnet_restart_drops_and_restores_the_websocket(start_node: Start) -> None:
    running = start_node("--seal-at-once", "--fault", "restart=0.5@first=1")
    match = re.search(r"ws://\S+", running.startup_text)
    assert match is not None
    with Node(running.endpoint) as node:
        register_wallet(node, WALLET)
        nonce = node.open_nonces(67)[0]
        message = payload_message(WALLET, version="v10", topic_id=67, nonce=nonce, value="0.5")
        raw = build_tx(WALLET, message, TxParameters(0, 1, 200_000, 10**6), chain_id="localnet")
        with connect(match[0], open_timeout=60) as listener:
            assert node.broadcast(raw).code == 0
            with pytest.raises(ConnectionClosed):
                listener.recv(timeout=60)
    wait_until(lambda: height_or_none(running.endpoint) is not None, "the node is back")
    with connect(match[0], open_timeout=60) as listener, Node(running.endpoint) as node:
        assert listener.protocol.state.name == "OPEN"
        assert node.find_tx(tx_hash(raw)) is None
        assert node.broadcast(raw).code == 0


def height_or_none(endpoint: str) -> int | None:
    try:
        with Node(endpoint) as node:
            return node.height()
    except RetryLater:
        return None


def test_localnet_fault_list_fits_80_columns(start_node: Start) -> None:
    listing = start_node("--faults")
    assert listing.process.wait(60) == 0
    assert all(name in listing.startup_text for name in FAULTS)
    assert max(map(len, listing.startup_text.splitlines())) <= 80


def test_localnet_kill_keeps_every_block(start_node: Start, tmp_path: Path) -> None:
    running = start_node("--seal-at-once", "--emissions", "v9")
    with Node(running.endpoint) as node:
        register_wallet(node, WALLET)
        assert node.version() == "v9"
        before = (node.height(), node.balance(WALLET.address), node.account(WALLET.address))
    assert running.stop(signal.SIGKILL)[0] == -signal.SIGKILL
    assert endpoint_file(tmp_path).exists()
    assert find_endpoint(tmp_path) is None
    second = start_node("--emissions", "v9")
    with Node(second.endpoint) as node:
        assert node.height() >= before[0]
        assert (node.balance(WALLET.address), node.account(WALLET.address)) == before[1:]
        assert node.is_registered(67, WALLET.address)
    assert second.stop(signal.SIGTERM)[0] == 0
    fresh = start_node("--reset")
    assert "Deleted the old chain." in fresh.startup_text
    with Node(fresh.endpoint) as node:
        assert not node.is_registered(67, WALLET.address)


def test_localnet_second_node_exits_with_code_5(start_node: Start, tmp_path: Path) -> None:
    running = start_node()
    second = start_node()
    assert (second.process.wait(60), "Another local node runs on" in second.startup_text) == (5, True)
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        port = str(occupied.getsockname()[1])
        for option in ("--port", "--ws-port"):
            third = start_node("--state-dir", str(tmp_path / "other"), option, port)
            assert third.process.wait(60) == 5
            assert f"Port {port} cannot be used" in third.startup_text
            assert option in third.startup_text
    assert running.process.poll() is None


@pytest.mark.parametrize(
    "options",
    [
        ("--topic", "x"),
        ("--topic", "67:0"),
        ("--block-time", "0"),
        ("--port", "70000"),
        ("--fault", "explode"),
        ("--endpoint", "late=2"),
    ],
)
def test_localnet_invalid_option_is_a_usage_error(start_node: Start, options: tuple[str, ...]) -> None:
    refused = start_node(*options)
    assert refused.process.wait(60) == 2
    assert options[0] in refused.startup_text
    assert "Traceback" not in refused.startup_text
