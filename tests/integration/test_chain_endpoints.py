"""A pool of endpoints over real sockets: sound nodes, and whatever may stand in their place."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from forecastd.chain.codec import build_tx, payload_message, tx_hash
from forecastd.chain.endpoints import Endpoints
from forecastd.chain.health import FRESH, LONGEST_REST, Standing
from forecastd.chain.node import Node
from forecastd.chain.wallet import Wallet, open_wallet
from forecastd.clock import SystemClock
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.localnet.chain import LocalChain
from forecastd.localnet.embedded import Embedded, open_embedded
from forecastd.settings import Settings

CHAIN = "localnet"
SOFT = 0.3  # seconds; a hung endpoint costs this much, and the tests wait for it
PATIENT = 60.0  # where nobody hangs: a sound node on a machine that is busy is no slow one


class HandClock:
    """Time that moves when it is told to."""

    def __init__(self) -> None:
        self.time = 1_600_000_000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def step(self, seconds: float) -> None:
        self.time += seconds


class Door:
    """A port in front of a node, or of nothing. `mode`: pass, shut (refused), silent, reset, page, garbage.

    It keeps the port while it refuses, so that nobody else gets it meanwhile.
    """

    def __init__(self, target: int | None = None, mode: str = "pass") -> None:
        self.mode = mode
        self.calls = 0
        self.delay = 0.0
        self._target = target
        self._open: list[socket.socket] = []
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._server = _bound(0)
        self.port: int = self._server.getsockname()[1]
        if mode != "shut":
            self._listen()

    @property
    def endpoint(self) -> str:
        return f"grpc+http://127.0.0.1:{self.port}"

    def shut(self) -> None:
        """Refuse connections, and cut those there are."""
        self.mode = "shut"
        self._stop_listening()
        self._server = _bound(self.port)
        self.cut()

    def open(self, mode: str = "pass") -> None:
        """Listen again on the same port."""
        self.mode = mode
        self._listen()

    def cut(self) -> None:
        """End the connections there are."""
        for sock in self._open[:]:
            _hang_up(sock)
        self._open.clear()

    def close(self) -> None:
        self._end.set()
        self.mode = "shut"
        self._stop_listening()
        self.cut()

    def _listen(self) -> None:
        self._server.listen()
        self._thread = threading.Thread(target=self._accept, args=(self._server,), daemon=True)
        self._thread.start()

    def _stop_listening(self) -> None:
        _hang_up(self._server)
        if self._thread is not None:
            self._thread.join()  # now nobody else is let in

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                caller, _ = server.accept()
            except OSError:
                return
            self.calls += 1
            self._open.append(caller)
            if self.mode == "pass" and self._target is not None:
                threading.Thread(target=self._join, args=(caller, self._target), daemon=True).start()
            elif self.mode == "reset":
                _hang_up(caller)
            elif self.mode in ("page", "garbage"):
                page = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"
                with suppress(OSError):
                    caller.sendall(page if self.mode == "page" else b"\xff" * 500)

    def _join(self, caller: socket.socket, target: int) -> None:
        if self._end.wait(self.delay):
            return
        with suppress(OSError):
            node = socket.create_connection(("127.0.0.1", target))
            self._open.append(node)
            threading.Thread(target=self._copy, args=(node, caller), daemon=True).start()
            self._copy(caller, node)

    def _copy(self, giver: socket.socket, taker: socket.socket) -> None:
        with suppress(OSError):
            while data := giver.recv(65_536):
                if self.mode == "silent":  # from now on nothing goes through
                    self._end.wait()
                taker.sendall(data)
        _hang_up(giver)
        _hang_up(taker)


def _bound(port: int) -> socket.socket:
    """A socket that has the port, a free one for 0, and does not listen: who connects is refused."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    return sock


def _hang_up(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def start(stack: ExitStack, clock: HandClock, tmp_path: Path) -> Callable[..., Embedded]:
    """Starts a local node whose blocks are made by hand, `height` of them at first."""

    def begin(name: str = "a", height: int = 1, chain_id: str = CHAIN, version: str = "v10") -> Embedded:
        node = stack.enter_context(
            open_embedded(
                tmp_path / name, clock, chain_id=chain_id, version=version,  # type: ignore[arg-type]  # v9 or v10
                block_time=None, seal_at_once=False,
            )
        )  # fmt: skip
        node.call(lambda chain: chain.advance(height - chain.state.height))
        return node

    return begin


@pytest.fixture
def door(stack: ExitStack) -> Callable[..., Door]:
    """Opens a port in front of a node, or of nothing."""

    def begin(node: Embedded | None = None, mode: str = "pass") -> Door:
        made = Door(int(node.endpoint.rpartition(":")[2]) if node is not None else None, mode)
        stack.callback(made.close)
        return made

    return begin


@pytest.fixture
def pool(stack: ExitStack, clock: HandClock) -> Callable[..., Endpoints]:
    """A pool over endpoints, on the chain of the local nodes."""

    def begin(*endpoints: str, soft: float = PATIENT, total: float = 2 * PATIENT) -> Endpoints:
        return stack.enter_context(Endpoints(endpoints, chain_id=CHAIN, clock=clock, soft=soft, total=total))

    return begin


@pytest.fixture
def wallet(tmp_path: Path) -> Wallet:
    return open_wallet(Settings(state_dir=tmp_path / "wallet", _env_file=None))  # type: ignore[call-arg]


def _states(endpoints: Endpoints) -> list[Standing]:
    return [one.state for one in endpoints.report()]


def _payload(node: Embedded, wallet: Wallet, memo_gas: int = 400_000) -> bytes:
    """A signed transaction that the node takes."""
    account = node.call(lambda chain: chain.account(wallet.address))
    assert account is not None
    nonce = node.call(lambda chain: chain.state.topics[0].open_nonces(chain.state.height)[0])
    message = payload_message(wallet, version="v10", topic_id=67, nonce=nonce, value="0.01")
    return build_tx(
        wallet, message, chain_id=CHAIN, account_number=account.number, sequence=account.sequence, gas=memo_gas,
        fee_uallo=10**9, timeout_height=nonce + 719,
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["shut", "silent", "reset", "page", "garbage"])
def test_one_healthy_endpoint_among_three_is_enough(
    start: Callable[..., Embedded], door: Callable[..., Door], pool: Callable[..., Endpoints], wallet: Wallet, mode: str
) -> None:
    node = start()
    bad = [door(mode=mode).endpoint for _ in range(2)]
    endpoints = pool(*bad, node.endpoint, soft=SOFT if mode == "silent" else PATIENT)
    raw = _payload(node, wallet)
    assert endpoints.height() == 1
    assert endpoints.chain_id() == CHAIN
    assert endpoints.version() == "v10"
    assert endpoints.account(wallet.address) is not None
    assert endpoints.broadcast(raw).code == 0
    assert endpoints.find_tx(tx_hash(raw)) is None
    assert endpoints.look_up(tx_hash(raw)).absent_heights == (1,)
    node.call(LocalChain.seal)
    found = endpoints.look_up(tx_hash(raw)).found
    assert found is not None
    assert found.height == 2
    assert endpoints.find_tx(tx_hash(raw)) == found
    assert _states(endpoints)[2] is Standing.OK
    assert Standing.OK not in _states(endpoints)[:2]


def test_an_endpoint_that_hangs_costs_the_soft_deadline_and_is_not_asked_again(
    start: Callable[..., Embedded], door: Callable[..., Door], pool: Callable[..., Endpoints]
) -> None:
    hung = door(mode="silent")
    node = start()
    with Node(node.endpoint) as first:
        assert first.height() == 1  # and with it, all is loaded that the first answer takes
    # Who waited for the rest of it would wait an hour.
    endpoints = pool(hung.endpoint, node.endpoint, soft=2.0, total=3600.0)
    assert [endpoints.height() for _ in range(5)] == [1] * 5
    report = endpoints.report()[0]
    assert (report.state, report.streak) == (Standing.QUARANTINED, 1)
    assert "no answer within" in report.error
    assert hung.calls == 1


def test_an_endpoint_that_falls_silent_in_the_middle_of_a_call_is_replaced(
    start: Callable[..., Embedded], door: Callable[..., Door], pool: Callable[..., Endpoints]
) -> None:
    node = start()
    first = door(node)
    endpoints = pool(first.endpoint, node.endpoint, soft=SOFT, total=3600.0)
    assert endpoints.is_topic_active(67)
    first.mode = "silent"
    assert endpoints.is_topic_active(67)
    assert _states(endpoints) == [Standing.QUARANTINED, Standing.OK]


def test_an_endpoint_that_dies_is_replaced_and_comes_back_when_it_answers_again(
    start: Callable[..., Embedded], door: Callable[..., Door], pool: Callable[..., Endpoints], clock: HandClock
) -> None:
    node = start()
    first = door(node)
    endpoints = pool(first.endpoint, node.endpoint)
    assert endpoints.open_nonces(67) == [1]
    first.shut()
    assert endpoints.open_nonces(67) == [1]
    assert _states(endpoints) == [Standing.QUARANTINED, Standing.OK]
    first.open()
    assert endpoints.open_nonces(67) == [1]
    assert _states(endpoints)[0] is Standing.QUARANTINED  # its rest is not over
    for _ in range(100):  # grpcio needs a moment to connect again; the clock decides when it is asked
        clock.step(LONGEST_REST)
        endpoints.open_nonces(67)
        endpoints.survey()
        if _states(endpoints)[0] is Standing.OK:
            break
    assert _states(endpoints) == [Standing.OK, Standing.OK]


def test_when_all_are_down_the_error_says_why_for_each_and_recovery_is_immediate(
    start: Callable[..., Embedded], door: Callable[..., Door], pool: Callable[..., Endpoints]
) -> None:
    node = start()
    doors = [door(node) for _ in range(3)]
    endpoints = pool(*(one.endpoint for one in doors))
    assert endpoints.height() == 1
    for one in doors:
        one.shut()
    for _ in range(3):  # whatever the quarantine: somebody is always asked
        with pytest.raises(RetryLater, match="No endpoint gave a usable answer") as caught:
            endpoints.height()
        for one in doors:
            assert f"127.0.0.1:{one.port}: " in str(caught.value)
    assert len(str(caught.value)) < 1000
    lookup = endpoints.look_up("AB" * 32)
    assert (lookup.found, lookup.absent_heights) == (None, ())
    with pytest.raises(RetryLater):
        endpoints.find_tx("AB" * 32)
    with pytest.raises(RetryLater):
        endpoints.broadcast(b"bytes")
    assert [one.answer for one in endpoints.broadcast_all(b"bytes")] == [None] * 3
    doors[1].open()
    height = None
    for _ in range(600):
        with suppress(RetryLater):  # grpcio's own pause before it connects again
            height = endpoints.height()
            break
        threading.Event().wait(0.1)
    assert height == 1


def test_an_endpoint_on_another_chain_is_set_aside_and_never_sent_anything(
    start: Callable[..., Embedded], pool: Callable[..., Endpoints], wallet: Wallet
) -> None:
    other, node = start("other", chain_id="localnet-2"), start()
    endpoints = pool(other.endpoint, node.endpoint)
    raw = _payload(node, wallet)
    assert endpoints.height() == 1
    report = endpoints.report()[0]
    assert (report.state, report.chain_id) == (Standing.WRONG_CHAIN, "localnet-2")
    assert endpoints.size == 1
    assert [one.endpoint for one in endpoints.broadcast_all(raw)] == [str(Node(node.endpoint).endpoint)]
    assert endpoints.look_up(tx_hash(raw)).asked == 1
    assert other.call(lambda chain: chain.waiting) == 0


def test_when_all_are_on_another_chain_a_person_is_needed(
    start: Callable[..., Embedded], pool: Callable[..., Endpoints]
) -> None:
    endpoints = pool(start("b", chain_id="localnet-2").endpoint, start("c", chain_id="localnet-3").endpoint)
    for _ in range(2):
        with pytest.raises(NeedsHuman, match=r"is on chain localnet-\d"):
            endpoints.height()


def test_an_endpoint_that_is_far_behind_is_not_read_from(
    start: Callable[..., Embedded], pool: Callable[..., Endpoints]
) -> None:
    endpoints = pool(start("old", height=1000).endpoint, start("new", height=1500).endpoint)
    assert endpoints.height() == 1500
    assert endpoints.open_nonces(67) == [1441]
    assert _states(endpoints) == [Standing.BEHIND, Standing.OK]
    assert endpoints.report()[0].lag == 500
    # Its word counts for what it is in a look-up: absent, as of its own height.
    assert sorted(endpoints.look_up("AB" * 32).absent_heights) == [1000, 1500]
    assert sorted(endpoints.heights().values()) == [1000, 1500]


def test_a_few_blocks_of_lag_are_nothing(start: Callable[..., Embedded], pool: Callable[..., Endpoints]) -> None:
    endpoints = pool(start("old", height=995).endpoint, start("new", height=1000).endpoint)
    assert endpoints.height() == 995
    assert _states(endpoints) == [Standing.OK, Standing.OK]


def test_an_endpoint_whose_height_freezes_is_left_once_it_lags(
    start: Callable[..., Embedded], pool: Callable[..., Endpoints], clock: HandClock
) -> None:
    frozen, node = start("frozen", height=100), start("node", height=100)
    endpoints = pool(frozen.endpoint, node.endpoint)
    assert endpoints.height() == 100
    node.call(lambda chain: chain.advance(50))
    clock.step(FRESH + 1)
    assert endpoints.height() == 150
    assert _states(endpoints) == [Standing.BEHIND, Standing.OK]
    frozen.call(lambda chain: chain.advance(48))
    clock.step(FRESH + 1)
    assert endpoints.height() == 148
    assert _states(endpoints) == [Standing.OK, Standing.OK]


def test_the_only_one_left_is_read_from_in_the_end_even_if_another_was_once_far_ahead(
    start: Callable[..., Embedded], door: Callable[..., Door], pool: Callable[..., Endpoints], clock: HandClock
) -> None:
    ahead = door(start("ahead", height=5000))
    endpoints = pool(ahead.endpoint, start("left", height=1000).endpoint)
    assert endpoints.height() == 5000
    ahead.shut()
    with pytest.raises(RetryLater, match="4000 blocks behind"):
        endpoints.height()
    clock.step(700)
    assert endpoints.height() == 1000


@pytest.fixture
def all_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sends waits for the answer of everybody, however busy the machine is."""
    monkeypatch.setattr("forecastd.chain.endpoints.GRACE", PATIENT)


def test_the_same_bytes_go_to_every_endpoint_and_one_that_takes_them_is_enough(
    start: Callable[..., Embedded], pool: Callable[..., Endpoints], wallet: Wallet, all_in: None
) -> None:
    first, second = start("a"), start("b")
    endpoints = pool(first.endpoint, second.endpoint)
    raw = _payload(first, wallet)
    sent = endpoints.broadcast_all(raw)
    assert [one.taken for one in sent] == [True, True]
    assert [node.call(lambda chain: chain.waiting) for node in (first, second)] == [1, 1]
    again = endpoints.broadcast_all(raw)
    assert [(one.answer.codespace, one.answer.code) for one in again if one.answer] == [("sdk", 19)] * 2
    assert [one.taken for one in again] == [True, True]


def test_one_that_takes_the_bytes_outweighs_one_that_refuses_them(
    start: Callable[..., Embedded], pool: Callable[..., Endpoints], wallet: Wallet, all_in: None
) -> None:
    full, node = start("full"), start("node")
    full.call(lambda chain: chain.configure(replace(chain.rules, mempool=0)))
    endpoints = pool(full.endpoint, node.endpoint)
    raw = _payload(node, wallet)
    assert endpoints.broadcast(raw).code == 0
    sent = endpoints.broadcast_all(raw)
    assert [(one.answer.codespace, one.answer.code) for one in sent if one.answer] == [("sdk", 20), ("sdk", 19)]
    assert endpoints.broadcast(raw).code == 19


def test_sending_does_not_wait_for_an_endpoint_that_hangs(
    start: Callable[..., Embedded], door: Callable[..., Door], pool: Callable[..., Endpoints], wallet: Wallet
) -> None:
    node = start()
    endpoints = pool(door(mode="silent").endpoint, node.endpoint, total=3600.0)
    sent = endpoints.broadcast_all(_payload(node, wallet))
    assert [one.taken for one in sent] == [False, True]
    assert sent[0].error == "no answer yet"


def test_an_upgrade_of_the_chain_is_followed_on_every_endpoint(
    start: Callable[..., Embedded], pool: Callable[..., Endpoints], clock: HandClock
) -> None:
    nodes = [start(name, version="v9") for name in ("a", "b")]
    endpoints = pool(*(node.endpoint for node in nodes))
    assert endpoints.version() == "v9"
    assert endpoints.topic(67) is not None
    for node in nodes:
        node.call(lambda chain: chain.configure(replace(chain.rules, version="v10")))
    assert endpoints.version() == "v10"
    assert endpoints.open_nonces(67) == [1]
    assert endpoints.latest_inference(67, "allo1nobody") is None
    clock.step(FRESH + 1)
    assert endpoints.is_topic_active(67)
    assert _states(endpoints) == [Standing.OK, Standing.OK]


def test_a_refusal_of_one_query_does_not_set_an_endpoint_aside(
    start: Callable[..., Embedded], pool: Callable[..., Endpoints]
) -> None:
    endpoints = pool(start("a").endpoint, start("b").endpoint)
    with pytest.raises(RetryLater, match="topic 99 not found"):
        endpoints.is_topic_active(99)
    assert _states(endpoints) == [Standing.OK, Standing.OK]


def test_a_slow_connection_is_a_connection(
    start: Callable[..., Embedded], door: Callable[..., Door], stack: ExitStack
) -> None:
    far = door(start())
    far.delay = 0.7  # as a TLS handshake around the world takes
    node = stack.enter_context(Node(far.endpoint, chain_id=CHAIN, deadline=PATIENT))
    assert node.height() == 1


def test_many_threads_share_a_pool_and_what_they_learn(
    start: Callable[..., Embedded], door: Callable[..., Door], pool: Callable[..., Endpoints]
) -> None:
    node = start()
    endpoints = pool(door(mode="shut").endpoint, node.endpoint)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(endpoints.height())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1] * 8


def test_closing_ends_the_threads_and_every_call(
    start: Callable[..., Embedded], door: Callable[..., Door], pool: Callable[..., Endpoints]
) -> None:
    endpoints = pool(door(mode="silent").endpoint, start().endpoint, soft=0.05)
    assert endpoints.height() == 1
    endpoints.close()
    for _ in range(1200):
        left = [thread for thread in threading.enumerate() if thread.name.startswith("endpoint")]
        if not left:
            break
        threading.Event().wait(0.05)
    assert left == []
    with pytest.raises(RetryLater):
        endpoints.height()


class StoppedClock(SystemClock):
    """To which everybody answers equally fast, however busy the machine is."""

    def monotonic(self) -> float:
        return 1000.0


def test_the_order_of_the_user_decides_between_equals(
    start: Callable[..., Embedded], door: Callable[..., Door], stack: ExitStack
) -> None:
    node = start()
    first, second = door(node), door(node)
    endpoints = stack.enter_context(
        Endpoints(
            [first.endpoint, second.endpoint], chain_id=CHAIN, clock=StoppedClock(), soft=PATIENT, total=2 * PATIENT
        )
    )
    assert list(endpoints.heights().values()) == [1, 1]  # both have answered, nothing is under way
    second.shut()
    assert [endpoints.is_topic_active(67) for _ in range(5)] == [True] * 5
    assert _states(endpoints) == [Standing.OK, Standing.OK]  # nobody noticed: the second was not needed


def test_rubbish_in_the_list_is_named_by_its_position() -> None:
    with pytest.raises(NeedsHuman, match=r"Item 2 of RPC_ENDPOINTS"):
        Endpoints(["127.0.0.1:9090", "what is this"], chain_id=CHAIN, clock=SystemClock())


def test_endpoints_that_are_given_twice_are_one(start: Callable[..., Embedded], pool: Callable[..., Endpoints]) -> None:
    node = start()
    endpoints = pool(node.endpoint, node.endpoint, node.endpoint.removeprefix("grpc+http://"))
    assert len(endpoints.report()) == 1
    assert len(endpoints.told) == 2
    assert endpoints.height() == 1


def test_message_classes_can_be_asked_for_by_many_threads_at_once(root: Path) -> None:
    program = """
import sys, threading
sys.setswitchinterval(1e-6)
from forecastd.chain.sdk import emissions, messages
barrier, wrong = threading.Barrier(16), []
def use(number):
    barrier.wait()
    try:
        tx = messages("cosmos.tx.v1beta1")
        bytes(tx.GetTxRequest(hash="AB"))
        tx.GetTxResponse.parse(b"")
        em = emissions("v10" if number % 2 else "v9")
        em.GetTopicResponse.parse(bytes(em.GetTopicResponse(topic=em.Topic(id=1))))
    except BaseException as error:
        wrong.append(repr(error))
threads = [threading.Thread(target=use, args=(number,)) for number in range(16)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(wrong)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root, timeout=120
    )
    assert done.stdout.strip() == "[]"
