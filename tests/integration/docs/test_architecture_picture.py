"""The picture in docs/architecture.md shows the imports of the code as it is now."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path


def test_architecture_picture_equals_drawing_of_the_imports(root: Path) -> None:
    script = root / "docs" / "draw_architecture.py"
    spec = importlib.util.spec_from_file_location("draw_architecture", script)
    assert spec is not None
    assert spec.loader is not None
    drawing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawing)
    picture = (root / "docs" / "architecture.svg").read_text(encoding="utf-8")
    # The difference of two SVG files is long and explains nothing.
    assert (picture == drawing.render()) is True, "Run `python docs/draw_architecture.py`."


def test_architecture_page_has_a_row_for_every_folder(root: Path) -> None:
    text = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    names = {cell for row in re.findall(r"^\| (`[^|]+`) \|", text, flags=re.MULTILINE) for cell in row.split(", ")}
    folders = {
        f"`{package}/{path.name}{'/' if path.is_dir() else ''}`"
        for package in ("forecastd", "models")
        for path in (root / package).iterdir()
        if (path.is_dir() and (path / "__init__.py").exists()) or (path.suffix == ".py" and path.name != "__init__.py")
    }
    assert folders - names == set()
    inside_fleet = {
        f"`{path.name}{'/' if path.is_dir() else ''}`"
        for path in (root / "forecastd" / "fleet").iterdir()
        if (path.is_dir() and (path / "__init__.py").exists())
    }
    assert inside_fleet - names == set()
