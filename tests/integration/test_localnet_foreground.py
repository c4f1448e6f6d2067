"""The command `localnet`, as a process of its own."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from forecastd.chain.codec import build_tx, payload_message, tx_hash
from forecastd.chain.node import Node
from forecastd.chain.submit import Spending, register
from forecastd.chain.wallet import Wallet
from forecastd.clock import SystemClock
from forecastd.errors import RetryLater
from forecastd.localnet.faults import FAULTS
from forecastd.localnet.running import endpoint_file, find_running

WALLET = Wallet(b"\3" * 32)


@dataclass
class Running:
    """A node's process, and what it told until it served."""

    process: subprocess.Popen[str]
    told: str

    @property
    def endpoint(self) -> str:
        found = re.search(r"grpc\+http://\S+", self.told)
        assert found is not None
        return found[0]

    def end(self, number: int) -> tuple[int, str]:
        """Signal it, and give its exit code and what else it told."""
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=60)
        return self.process.returncode, rest


Start = Callable[..., Running]


@pytest.fixture
def start(root: Path, tmp_path: Path) -> Iterator[Start]:
    processes: list[subprocess.Popen[str]] = []

    def started(*options: str) -> Running:
        line = [sys.executable, "submit_prediction.py", "localnet", "--state-dir", str(tmp_path), "--port", "0"]
        process = subprocess.Popen(
            [*line, "--ws-port", "0", *options], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        processes.append(process)
        assert process.stdout is not None
        told = ""
        for text in process.stdout:
            told += text
            if "Ctrl-C" in text:
                break
        return Running(process, told)

    yield started
    for process in processes:
        process.kill()
        process.communicate()


def test_rest_is_served_beside_grpc_when_it_is_asked_for(start: Start) -> None:
    running = start("--rest-port", "0")
    found = re.search(r"rest\+http://\S+", running.told)
    assert found is not None
    with Node(found[0], chain_id="localnet") as rest, Node(running.endpoint, chain_id="localnet") as grpc:
        assert rest.topic(67) == grpc.topic(67)
    assert running.end(signal.SIGINT)[0] == 0


def enlist(node: Node) -> None:
    register(
        node, WALLET, 67, Spending(1, "eco", None), chain_id="localnet", clock=SystemClock(), wake=threading.Event()
    )


def test_it_serves_until_ctrl_c_and_a_line_tells_each_transaction(start: Start, tmp_path: Path) -> None:
    running = start("--seal-at-once", "--topic", "67:50:40", "--topic", "3:9")
    for part in (
        "chain      localnet, height ",
        "emissions  v10",
        "topic      67: epoch 50 blocks, window 40",
        "3: epoch 9",
    ):
        assert part in running.told
    assert max(map(len, running.told.splitlines())) <= 80
    assert find_running(tmp_path) == running.endpoint
    with Node(running.endpoint, chain_id="localnet") as node:
        enlist(node)
    code, rest = running.end(signal.SIGINT)
    assert code == 0
    assert re.search(rf"  {WALLET.address[:9]}\.\.{WALLET.address[-4:]}  register topic 67  ok\nstopped\n$", rest)
    assert not endpoint_file(tmp_path).exists()


def test_endpoints_with_faults_stand_beside_one_that_is_well(start: Start) -> None:
    running = start(
        "--endpoint", "unavailable@first=1,slow=0.01", "--endpoint", "rest:ok", "--fault", "rate-limit@every=2"
    )
    assert "fault      rate-limit@every=2" in running.told
    urls = re.findall(r"endpoint   (\S+) \((.*)\)", running.told)
    assert [faults for _, faults in urls] == ["unavailable@first=1, slow=0.01", "ok"]
    with Node(urls[0][0]) as faulty, Node(urls[1][0]) as rest, Node(running.endpoint) as main:
        with pytest.raises(RetryLater, match="unavailable"):
            faulty.height()
        before, height, after = rest.height(), faulty.height(), rest.height()
        assert before <= height <= after
        main.height()
        with pytest.raises(RetryLater, match="resource exhausted"):
            main.height()


def test_a_restart_cuts_the_websocket_too_and_both_come_back(start: Start) -> None:
    running = start("--seal-at-once", "--fault", "restart=0.5@first=1")
    found = re.search(r"ws://\S+", running.told)
    assert found is not None
    with Node(running.endpoint) as node:
        enlist(node)
        nonce = node.open_nonces(67)[0]
        message = payload_message(WALLET, version="v10", topic_id=67, nonce=nonce, value="0.5")
        raw = build_tx(WALLET, message, chain_id="localnet", account_number=0, sequence=1, gas=200_000, fee_uallo=10**6)
        with connect(found[0], open_timeout=60) as listener:
            assert node.broadcast(raw).code == 0
            with pytest.raises(ConnectionClosed):
                listener.recv(timeout=60)
    waiting = threading.Event()
    while find_answer(running.endpoint) is None:
        waiting.wait(0.05)
    with connect(found[0], open_timeout=60) as listener, Node(running.endpoint) as node:
        assert listener.protocol.state.name == "OPEN"
        assert node.find_tx(tx_hash(raw)) is None
        assert node.broadcast(raw).code == 0


def find_answer(endpoint: str) -> int | None:
    try:
        with Node(endpoint) as node:
            return node.height()
    except RetryLater:
        return None


def test_the_faults_are_listed_and_fit_80_columns(start: Start) -> None:
    listing = start("--faults")
    assert listing.process.wait(60) == 0
    assert all(name in listing.told for name in FAULTS)
    assert max(map(len, listing.told.splitlines())) <= 80


def test_a_kill_loses_nothing_that_was_in_a_block(start: Start, tmp_path: Path) -> None:
    running = start("--seal-at-once", "--emissions", "v9")
    with Node(running.endpoint) as node:
        enlist(node)
        assert node.version() == "v9"
        before = (node.height(), node.balance(WALLET.address), node.account(WALLET.address))
    assert running.end(signal.SIGKILL)[0] == -signal.SIGKILL
    assert endpoint_file(tmp_path).exists()
    assert find_running(tmp_path) is None
    again = start("--emissions", "v9")
    with Node(again.endpoint) as node:
        assert node.height() >= before[0]
        assert (node.balance(WALLET.address), node.account(WALLET.address)) == before[1:]
        assert node.is_registered(67, WALLET.address)
    assert again.end(signal.SIGTERM)[0] == 0
    fresh = start("--reset")
    assert "The old chain is deleted." in fresh.told
    with Node(fresh.endpoint) as node:
        assert not node.is_registered(67, WALLET.address)


def test_a_second_node_on_the_state_or_the_port_is_refused_with_code_5(start: Start, tmp_path: Path) -> None:
    running = start()
    second = start()
    assert (second.process.wait(60), "Another local node runs on" in second.told) == (5, True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for option in ("--port", "--ws-port"):
            third = start("--state-dir", str(tmp_path / "other"), option, port)
            assert third.process.wait(60) == 5
            assert f"Port {port} cannot be used" in third.told
            assert option in third.told
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
def test_a_wrong_option_is_a_usage_error(start: Start, options: tuple[str, ...]) -> None:
    refused = start(*options)
    assert refused.process.wait(60) == 2
    assert options[0] in refused.told
    assert "Traceback" not in refused.told
