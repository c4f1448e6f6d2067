"""Draws docs/architecture.svg from the imports of the code: `python docs/draw_architecture.py`.

A box is a folder, or a module at the top level. Boxes in one row do not import each
other; an arrow leads from a box to what it imports, always to a row below. An import that follows from two other arrows
is left out. The rows are those of the contracts in pyproject.toml, so picture and contracts cannot differ.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from xml.sax.saxutils import escape

import grimp

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "architecture.svg"
PACKAGES = ("cli", "forecastd", "models")
WIDTH, ROW, BOX_HEIGHT, BOX_WIDTH, MARGIN = 720, 64, 38, 136, 24
COLORS = {"cli": "#dbeafe", "forecastd": "#ecfdf5", "models": "#fef3c7"}


def read_rows() -> list[list[str]]:
    """The boxes row by row, the highest first: `cli`, the layers of `forecastd`, the layers of `models`."""
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    rows = [["cli"]]
    for package in ("forecastd", "models"):
        layers = next(contract["layers"] for contract in linter["contracts"] if contract.get("containers") == [package])
        rows += [[f"{package}.{name.strip()}" for name in layer.split("|")] for layer in layers]
    return rows


def read_arrows(boxes: set[str]) -> set[tuple[str, str]]:
    """Which box imports which: (importing, imported)."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)

    def box_of(module: str) -> str | None:
        return next((box for box in boxes if module == box or module.startswith(f"{box}.")), None)

    arrows = set()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            source, target = box_of(module), box_of(imported)
            if source is not None and target is not None and source != target:
                arrows.add((source, target))
    return arrows


def drop_implied(rows: list[list[str]], arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The arrows without those that a path of other arrows implies (the transitive reduction)."""
    height = {box: index for index, row in enumerate(rows) for box in row}
    below: dict[str, set[str]] = {}
    for source, target in arrows:
        if height[source] < height[target]:  # the contracts forbid the others, which would make this endless
            below.setdefault(source, set()).add(target)

    def reach(box: str) -> set[str]:
        return set().union(*({target} | reach(target) for target in below.get(box, set())))

    implied = {
        (source, target)
        for source, targets in below.items()
        for target in targets
        if any(target in reach(other) for other in targets - {target})
    }
    return arrows - implied


def draw(rows: list[list[str]], arrows: set[tuple[str, str]]) -> str:
    """The picture as SVG."""
    places: dict[str, tuple[float, float]] = {}
    for index, row in enumerate(rows):
        gap = (WIDTH - 2 * MARGIN) / len(row)
        shift = (index % 3 - 1) * 90 if len(row) == 1 else 0  # so that arrows between far rows do not run through boxes
        for column, box in enumerate(row):
            places[box] = MARGIN + gap * (column + 0.5) + shift, MARGIN + ROW * index
    height = 2 * MARGIN + ROW * (len(rows) - 1) + BOX_HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="9" markerHeight="9" '
        'markerUnits="userSpaceOnUse" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#94a3b8"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for source, target in sorted(arrows):
        (x1, y1), (x2, y2) = places[source], places[target]
        y1 += BOX_HEIGHT
        bend = (y2 - y1) / 2
        side = 0.0 if y2 - y1 < ROW else (220 if (x1 + x2) / 2 >= WIDTH / 2 else -220) * min(1.0, (y2 - y1) / (6 * ROW))
        parts.append(
            f'<path d="M{x1:.0f} {y1:.0f} C{x1 + side:.0f} {y1 + bend:.0f} {x2 + side:.0f} {y2 - bend:.0f} '
            f'{x2:.0f} {y2:.0f}" '
            f'fill="none" stroke="#94a3b8" stroke-opacity="0.7" '
            f'marker-end="url(#head)"><title>{source} imports {target}</title></path>'
        )
    for box, (x, y) in places.items():
        package, _, name = box.partition(".")
        parts.append(
            f'<rect x="{x - BOX_WIDTH / 2:.0f}" y="{y:.0f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" '
            f'fill="{COLORS[package]}" stroke="#475569"/>'
            f'<text x="{x:.0f}" y="{y + 17:.0f}" text-anchor="middle" font-weight="bold">{escape(name or package)}</text>'
            f'<text x="{x:.0f}" y="{y + 31:.0f}" text-anchor="middle" fill="#475569" font-size="10">'
            f"{package if name else 'command line'}</text>"
        )
    return "\n".join([*parts, "</svg>", ""])


def render() -> str:
    """The picture of the code as it is."""
    rows = read_rows()
    return draw(rows, drop_implied(rows, read_arrows({box for row in rows for box in row})))


def main() -> None:
    """Write the picture."""
    PICTURE.write_text(render(), encoding="utf-8")
    sys.stdout.write(f"{PICTURE.relative_to(ROOT)} is drawn.\n")


if __name__ == "__main__":
    main()
