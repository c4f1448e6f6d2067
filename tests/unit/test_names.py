"""Names: one class for one name, and no name that a reader of this field would have to look up."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

# Participles and pronouns say nothing of a value; a metaphor says something else.
VARIABLES = {"asked", "found", "gone", "heard", "kept", "made", "one", "told", "wanted"}  # codespell:ignore
METAPHORS = {
    "Audience", "Board", "Body", "Book", "Crew", "Desk", "Face", "Gear", "Ground", "Keeper", "Kit", "Outfit", "Parts",
    "Rivals", "Saboteur", "Shelf", "Voice", "Workshop",
}  # fmt: skip


@pytest.fixture(scope="module")
def trees(root: Path) -> dict[str, ast.Module]:
    """The product's files, parsed."""
    files = (path for package in ("cli", "forecastd", "models") for path in sorted((root / package).rglob("*.py")))
    return {str(path.relative_to(root)): ast.parse(path.read_text(encoding="utf-8")) for path in files}


def bound_names(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every variable, parameter and function that a file defines, with its line."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()):
                yield name, node.lineno
            case ast.arg(arg=name):
                yield name, node.lineno
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name, node.lineno


def test_class_names_stand_for_one_class(trees: dict[str, ast.Module]) -> None:
    files = defaultdict(list)
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                files[node.name].append(file)
    assert len(files) > 300
    assert {name: where for name, where in files.items() if len(where) > 1} == {}


def test_class_names_are_no_metaphors(trees: dict[str, ast.Module]) -> None:
    classes = [node.name for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert METAPHORS.isdisjoint(classes)


def test_variables_are_named_after_their_values(trees: dict[str, ast.Module]) -> None:
    lines = [
        f"{file}:{line} {name}" for file, tree in trees.items() for name, line in bound_names(tree) if name in VARIABLES
    ]
    assert lines == []
