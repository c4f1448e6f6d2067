"""The one seam to `allora_sdk`: its protobuf messages, without its start-up cost.

Importing `allora_sdk` runs a package `__init__` that pulls in aiohttp, cosmpy and every client (1.2 s, 96 MB); the
messages need none of it. So the two parent packages are put into `sys.modules` as bare modules with the real search
path, and of the generated modules below them only the classes that are asked for are run (see `generated`). Whoever
asks a bare parent for anything else (`from allora_sdk import AlloraWorker`) makes it run its real `__init__` on the
spot, so the SDK itself keeps working in this process.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Literal

from forecastd.chain.lazy_protobuf import install_finder

EmissionsVersion = Literal["v9", "v10"]

_PARENT_PACKAGES = ("allora_sdk", "allora_sdk.rpc_client")
_PROTOS_PACKAGE = "allora_sdk.rpc_client.protos"
_lock = threading.RLock()


def messages(name: str) -> Any:
    """A module of generated messages by its protobuf package, for instance `cosmos.tx.v1beta1`.

    Raises:
        ImportError: allora_sdk is not installed, or has no such package.
    """
    with _lock:
        _install_bare_parents()
    return importlib.import_module(f"{_PROTOS_PACKAGE}.{name}")  # waits for another thread that is importing it


def emissions(version: EmissionsVersion) -> Any:
    """The messages of the emissions module in the version that a node speaks. v10 builds on v9, not the reverse."""
    return messages(f"emissions.{version}")


def canonical_decimal(value: float | str) -> str:
    """The decimal as the chain writes it when it verifies a signature: `1e-07` becomes `1E-7`.

    Raises:
        ValueError: `value` is not finite or not a number.
    """
    with _lock:
        _install_bare_parents()
    module = importlib.import_module("allora_sdk.rpc_client.dec_canonical")
    text: str = module.canonicalize_dec(value)
    return text


def _install_bare_parents() -> None:
    """Put the bare parents in place, unless the SDK is already there in full or bare."""
    for name in _PARENT_PACKAGES:
        if name in sys.modules:
            continue
        spec = importlib.util.find_spec(name)
        if spec is None or spec.submodule_search_locations is None:
            raise ModuleNotFoundError("allora_sdk is not installed. Install forecastd's dependencies.", name=name)
        module = _bare_package(spec)
        sys.modules[name] = module
        install_finder(_PROTOS_PACKAGE)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


def _bare_package(spec: ModuleSpec) -> ModuleType:
    """A package that has its search path but has not run, and runs itself when something is asked of it."""
    module = importlib.util.module_from_spec(spec)

    def load_attribute(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {spec.name!r} has no attribute {name!r}")
        with _lock:
            if module.__dict__.pop("__getattr__", None) is not None and spec.loader is not None:
                spec.loader.exec_module(module)
        try:
            return module.__dict__[name]
        except KeyError:
            raise AttributeError(f"module {spec.name!r} has no attribute {name!r}") from None

    module.__dict__["__getattr__"] = load_attribute
    return module
