"""Access to the protobuf messages of `allora_sdk`, without its start-up cost.

Importing `allora_sdk` runs a package `__init__` that loads aiohttp, cosmpy and every client (1.2 s, 96 MB); the
messages need none of it. So this module puts the two parent packages into `sys.modules` as bare modules with the real
search path, and loads only those classes of the generated modules that are used (see `lazy_protobuf`). Any other
attribute of a bare parent (`from allora_sdk import AlloraWorker`) runs the real `__init__` at once, so the SDK itself
still works in this process.
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
    """A module of generated messages by its protobuf package, for example `cosmos.tx.v1beta1`.

    Raises:
        ImportError: allora_sdk is not installed, or has no such package.
    """
    with _lock:
        _install_bare_parents()
    return importlib.import_module(f"{_PROTOS_PACKAGE}.{name}")  # waits for another thread that is importing it


def emissions(version: EmissionsVersion) -> Any:
    """The messages of the emissions module in one version. v10 builds on v9, not the reverse."""
    return messages(f"emissions.{version}")


def canonical_decimal(value: float | str) -> str:
    """The decimal as the chain writes it to verify a signature: `1e-07` becomes `1E-7`.

    Raises:
        ValueError: `value` is not a finite number.
    """
    with _lock:
        _install_bare_parents()
    module = importlib.import_module("allora_sdk.rpc_client.dec_canonical")
    text: str = module.canonicalize_dec(value)
    return text


def _install_bare_parents() -> None:
    """Install the bare parent packages, unless the SDK is already imported."""
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
    """A package with its search path that has not run. It runs itself when another attribute is read."""
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
