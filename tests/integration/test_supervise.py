"""The child that runs a model: real processes, real sockets, and every way a child can let its parent down."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from forecastd.supervise import process as supervised
from forecastd.supervise.messages import ChannelClosed, GarbledMessage, Message, receive, send
from forecastd.supervise.process import ChildFailed, ModelFailed, ModelProcess
from models.base import ModelInput
from models.bundle import load_bundle


@pytest.fixture(scope="session")
def demo(root: Path) -> Path:
    return root / "models" / "demo"


@pytest.fixture(scope="session")
def inputs(demo: Path) -> ModelInput:
    return load_bundle(demo).canary.inputs


def test_a_child_loads_proves_and_predicts_what_the_canary_says(demo: Path, inputs: ModelInput) -> None:
    bundle = load_bundle(demo)
    with ModelProcess(demo) as child:
        assert child.ready(60) == bundle.sha256
        forecast = child.predict(inputs, 60)
    np.testing.assert_allclose(forecast.quantiles, bundle.canary.quantiles, atol=1e-4)
    assert forecast.input_sha256 == inputs.sha256()
    assert forecast.bundle_sha256 == bundle.sha256


def test_a_stopped_child_is_gone(demo: Path) -> None:
    with ModelProcess(demo) as child:
        child.ready(60)
        pid = child.pid
    assert not psutil.pid_exists(pid)


def test_a_bad_bundle_is_told_with_its_check(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with ModelProcess(tmp_path / "empty") as child, pytest.raises(ModelFailed) as caught:
        child.ready(60)
    assert caught.value.check == "missing"


def test_an_input_that_does_not_fit_is_told_and_the_child_lives_on(demo: Path, inputs: ModelInput) -> None:
    with ModelProcess(demo) as child:
        child.ready(60)
        short = ModelInput(inputs.end, inputs.step, inputs.target[1:], inputs.past[1:], inputs.known[1:])
        with pytest.raises(ModelFailed):
            child.predict(short, 60)
        assert np.isfinite(child.predict(inputs, 60).value)


def test_a_killed_child_is_named_with_its_signal(demo: Path, inputs: ModelInput) -> None:
    with ModelProcess(demo) as child:
        child.ready(60)
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(ChildFailed, match="killed by signal 9"):
            child.predict(inputs, 60)


def test_a_hung_child_costs_its_deadline_and_is_ended(demo: Path, inputs: ModelInput) -> None:
    with ModelProcess(demo) as child:
        child.ready(60)
        os.kill(child.pid, signal.SIGSTOP)
        with pytest.raises(ChildFailed, match=r"no answer within 0\.2 s"):
            child.predict(inputs, 0.2)
        pid = child.pid
    assert not psutil.pid_exists(pid)


def test_a_child_without_memory_fails_alone(demo: Path) -> None:
    with ModelProcess(demo, memory=64 << 20) as child, pytest.raises((ChildFailed, ModelFailed)):
        child.ready(60)


def test_no_secret_of_the_parents_reaches_the_child(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNEMONIC", "legal winner thank year")
    monkeypatch.setenv("TIINGO_API_KEY", "k3y")
    with ModelProcess(demo) as child:
        child.ready(60)
        environment = Path(f"/proc/{child.pid}/environ").read_bytes()
        arguments = Path(f"/proc/{child.pid}/cmdline").read_bytes()
    for secret in (b"legal", b"k3y"):
        assert secret not in environment + arguments
    names = {line.split(b"=")[0].decode() for line in environment.split(b"\0") if line}
    assert names == set(supervised.child_environment())


def test_a_child_dies_with_its_parent(demo: Path) -> None:
    code = (
        "import sys, os; from pathlib import Path; from forecastd.supervise.process import ModelProcess\n"
        "child = ModelProcess(Path(sys.argv[1])); child.ready(60); print(child.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(demo)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    if psutil.pid_exists(pid):
        psutil.Process(pid).wait(timeout=10)


ARRAYS = hnp.arrays(np.float64, hnp.array_shapes(max_dims=3, max_side=4), elements=st.floats(allow_nan=False))


@given(name=st.text(max_size=10), array=ARRAYS, number=st.integers(-(2**53), 2**53))
def test_a_message_arrives_as_it_was_sent(name: str, array: np.ndarray, number: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send(ours, Message("predict", "launch", {"number": number}, {name: array}))
        got = receive(theirs, 5)
    assert (got.kind, got.launch, got.fields) == ("predict", "launch", {"number": number})
    np.testing.assert_array_equal(got.arrays[name], array)


@given(noise=st.binary(min_size=8, max_size=200))
def test_garbage_on_the_channel_is_told_and_never_trusted(noise: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(noise)
        with pytest.raises((GarbledMessage, ChannelClosed)):
            receive(theirs, 5)


def test_a_message_that_stops_in_the_middle_is_not_waited_for_longer_than_allowed() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
        with pytest.raises(TimeoutError):
            receive(theirs, 0.05)


def test_a_message_in_many_pieces_is_put_together() -> None:
    ours, theirs = socket.socketpair()
    big = np.arange(200_000, dtype=np.float64)
    with ours, theirs:
        sender = threading.Thread(target=send, args=(ours, Message("result", "l", {}, {"a": big})))
        sender.start()
        got = receive(theirs, 30)
        sender.join()
    np.testing.assert_array_equal(got.arrays["a"], big)
