"""The child's main: loads one bundle, proves it, and answers predictions until it is told to stop.

Started as `python -m forecastd.supervise.child FD LAUNCH PARENT MEMORY`. It has no secrets and needs none. It dies with
its parent, is bounded in memory, and speaks only over the socket it inherited; what a model prints goes to stderr.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys
from pathlib import Path

from forecastd.supervise.messages import ChannelClosed, Message, receive, send
from models.base import ModelInput
from models.bundle import load_bundle
from models.engines import Engine, load_engine, verify_canary
from models.errors import BundleError, ModelError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with(parent: int) -> None:
    """Be killed when the parent dies; leave at once when it already did."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)


def serve(channel: socket.socket, launch: str) -> None:
    """Answer messages until `stop` or the end of the channel."""
    engine: Engine | None = None
    while True:
        message = receive(channel)
        if message.kind == "stop":
            return
        try:
            if message.kind == "load":
                engine = _load(Path(str(message.fields["bundle"])))
                send(channel, Message("ready", launch, {"bundle_sha256": engine.bundle_sha256}))
            elif message.kind == "predict" and engine is not None:
                send(channel, _predict(engine, message, launch))
        except MemoryError:
            send(channel, Message("error", launch, {"error": "memory", "message": "The model ran out of memory."}))
        except ModelError as error:
            check = error.check if isinstance(error, BundleError) else ""
            send(channel, Message("error", launch, {"error": "model", "check": check, "message": str(error)}))


def _load(path: Path) -> Engine:
    bundle = load_bundle(path)
    engine = load_engine(bundle)
    verify_canary(bundle, engine)
    return engine


def _predict(engine: Engine, message: Message, launch: str) -> Message:
    fields, arrays = message.fields, message.arrays
    inputs = ModelInput(fields["end"], fields["step"], arrays["target"], arrays["past"], arrays["known"])
    forecast = engine.predict(inputs)
    told = {
        "end": forecast.end,
        "step": forecast.step,
        "levels": list(forecast.levels),
        "value": forecast.value,
        "input_sha256": forecast.input_sha256,
        "bundle_sha256": forecast.bundle_sha256,
    }
    return Message("result", launch, told, {"quantiles": forecast.quantiles})


def main() -> None:
    descriptor, launch, parent, memory = sys.argv[1:]
    die_with(int(parent))
    resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    with socket.socket(fileno=int(descriptor)) as channel:
        try:
            serve(channel, launch)
        except ChannelClosed:
            return


if __name__ == "__main__":
    main()
