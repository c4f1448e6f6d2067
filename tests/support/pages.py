"""The documentation pages as data: their code blocks, table rows, options and variables."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. `info`: what follows the language on its first line; `line`: where it begins."""

    page: str
    line: int
    language: str
    info: str
    text: str

    @property
    def runs(self) -> bool:
        """Whether a reader can type it as it is, on a machine without network and without systemd."""
        return self.language == "sh" and not self.info.startswith("no-run")


def page_paths(root: Path) -> list[Path]:
    """The README and every page of docs/."""
    return [root / "README.md", *sorted((root / "docs").glob("**/*.md"))]


def all_text(root: Path) -> str:
    """All pages and `.env.example`, one after the other."""
    return "\n".join(path.read_text(encoding="utf-8") for path in [*page_paths(root), root / ".env.example"])


def read_blocks(path: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = path.read_text(encoding="utf-8")
    return [
        Block(path.name, text[: match.start()].count("\n") + 1, match[1], match[2].strip(), match[3])
        for match in _FENCE.finditer(text)
    ]


def table_rows(text: str, first_cell: str) -> list[list[str]]:
    """The cells of each table row whose first cell matches the regular expression, without the code marks."""
    rows = []
    for line in text.splitlines():
        if line.startswith("|"):
            cells = [cell.strip().replace("`", "") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if re.fullmatch(first_cell, cells[0]):
                rows.append(cells)
    return rows
