"""Runs a generated protobuf module class by class, each class when it is first used.

Importing a module of the SDK's messages creates about 450 dataclasses (0.15 s each for emissions v9 and v10); a cycle
needs about 60 in total. The generator writes one top-level statement per class. The source is split there, and a class
runs together with the classes that its own text names. The code that runs is the SDK's own source, unchanged. A module
with another layout is imported whole.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import re
import sys
import threading
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

_CLASS_PATTERN = re.compile(
    r"^(?:@dataclass\(eq=False, repr=False\)\n)?class (\w+)\(betterproto2\.\w+\):\n", re.MULTILINE
)
_IMPORT_PATTERN = re.compile(r"^from \.+[\w.]* import \w+ as \w+\n", re.MULTILINE)  # the generator writes these last
_WORD_PATTERN = re.compile(r"\w+")
_lock = threading.RLock()


class LazyModuleFinder(importlib.abc.MetaPathFinder):
    """Finds the modules below one package and loads them class by class."""

    def __init__(self, package: str) -> None:
        self._prefix = package + "."

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(self._prefix):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _LazyLoader(spec.loader.name, spec.loader.path)
        return spec


def install_finder(package: str) -> None:
    """Make every module below `package` that is imported from now on load class by class."""
    if not any(isinstance(finder, LazyModuleFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, LazyModuleFinder(package))


class _LazyLoader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        source = self.get_data(self.path).decode()
        blocks = _split_classes(source)
        if blocks is None:
            super().exec_module(module)
            return
        start = _CLASS_PATTERN.search(source)
        head = source[: start.start()] if start is not None else source
        imports = "".join(_IMPORT_PATTERN.findall(source, len(head)))
        exec(_compile(head + imports, self.path), module.__dict__)  # noqa: S102  # an import runs this source too
        if not set(module.__dict__.get("__all__", ())) <= blocks.keys():
            super().exec_module(module)
            return
        _make_lazy(module, blocks, self.path)


def _split_classes(source: str) -> dict[str, str] | None:
    """The source of each class by name, or None when the source has another layout."""
    starts = list(_CLASS_PATTERN.finditer(source))
    ends = [match.start() for match in starts[1:]] + [len(source)]
    if not starts:
        return None
    return {
        match[1]: _IMPORT_PATTERN.sub("", source[match.start() : end]) for match, end in zip(starts, ends, strict=True)
    }


def _make_lazy(module: ModuleType, blocks: dict[str, str], path: str) -> None:
    namespace = module.__dict__

    def load_class(name: str) -> None:
        """Run a class and all classes that its text names, because annotations are resolved in the module's namespace
        later.

        They are added to the module together. Otherwise another thread could use a class before those it needs exist.
        """
        pending, classes = [name], dict[str, Any]()
        while pending:
            text = blocks.pop(pending.pop(), None)
            if text is None:
                continue
            exec(_compile(text, path), namespace, classes)  # noqa: S102  # an import runs this source too
            pending.extend(word for word in set(_WORD_PATTERN.findall(text)) if word in blocks)
        namespace.update(classes)

    def get_attribute(name: str) -> Any:
        with _lock:
            if name in blocks:
                load_class(name)
        try:
            return namespace[name]
        except KeyError:
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}") from None

    namespace["__getattr__"] = get_attribute
    namespace["__dir__"] = lambda: sorted({*namespace, *blocks})


def _compile(text: str, path: str) -> CodeType:
    return compile(text, path, "exec", dont_inherit=True)
