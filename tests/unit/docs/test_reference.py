"""The pages name every option, variable, metric, alert kind and exit code of the program, and none that does not exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cli.main import EPILOG, command
from forecastd.settings import DEFAULTS
from tests.support.pages import all_text, page_paths, table_rows

# Options of other programs that pages use, and of benchmarks and tests.
FOREIGN_OPTIONS = {
    "--create-home", "--data", "--data-binary", "--dist", "--fail", "--group", "--header", "--home", "--home-dir",
    "--json", "--no-create-home", "--no-loadscope-reorder", "--now", "--others", "--quick", "--request", "--seed",
    "--shell", "--silent", "--system", "--upgrade", "--user", "--version", "--web.listen-address",
}  # fmt: skip
# Variables that are not settings: of the shell, of systemd, and examples.
FOREIGN_VARIABLES = {
    "CODE", "COLUMNS", "HOME", "INSTALL", "LANG", "LISTEN", "LOGNAME", "MODEL_DIR", "PATH", "PYTHONPATH",
    "SIGHUP", "SIGINT", "SIGKILL", "SIGTERM", "SIGUSR1", "USER", "XDG_STATE_HOME",
}  # fmt: skip


def all_commands(group: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command with its path, such as `fleet serve`."""
    yield " ".join(path), group
    if isinstance(group, click.Group):
        context = click.Context(group)
        for name in group.list_commands(context):
            child = group.get_command(context, name)
            assert child is not None
            yield from all_commands(child, (*path, name))


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """The long options of every command."""
    return {
        path: {flag for param in found.params for flag in (*param.opts, *param.secondary_opts) if flag.startswith("--")}
        for path, found in all_commands(command)
    }


@pytest.fixture(scope="module")
def pages(root: Path) -> str:
    return all_text(root)


def test_every_command_is_in_a_page(options: dict[str, set[str]], pages: str) -> None:
    assert [path for path in options if path and path not in pages] == []


def test_every_option_is_in_a_page(options: dict[str, set[str]], pages: str) -> None:
    missing = {
        (path, flag) for path, flags in options.items() for flag in flags if not re.search(rf"{flag}(?![\w-])", pages)
    }
    assert missing == set()


def test_pages_name_no_option_that_does_not_exist(options: dict[str, set[str]], pages: str, root: Path) -> None:
    scripts = "".join(path.read_text(encoding="utf-8") for path in (root / "contrib").glob("*.py"))
    known = set().union(
        *options.values(), FOREIGN_OPTIONS, {"--help"}, re.findall(r'add_argument\("(--[a-z-]+)"', scripts)
    )
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+(?:\.[a-z-]+)?", pages)) - known == set()


def test_every_setting_is_in_the_configuration_page_with_its_default(root: Path) -> None:
    rows = {
        name: cells
        for cells in table_rows((root / "docs" / "configuration.md").read_text(encoding="utf-8"), r"[A-Z][A-Z0-9_, ]+")
        for name in cells[0].split(", ")
    }
    assert set(rows) - FOREIGN_VARIABLES == set(DEFAULTS)
    for name, default in DEFAULTS.items():
        if isinstance(default, (int, float, str)) and not isinstance(default, bool):
            stated = rows[name][1].replace(",", "")
            assert re.search(
                rf"(?<![\w.]){re.escape(f'{default:g}' if isinstance(default, float) else str(default))}", stated
            ), f"{name}: the page says {stated!r}, the program {default!r}"


def test_pages_name_no_variable_that_does_not_exist(pages: str) -> None:
    names = set(re.findall(r"`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)(?:=[^`]*)?`", pages))
    assert names - set(DEFAULTS) - FOREIGN_VARIABLES == set()


def test_exit_codes_page_agrees_with_help(root: Path) -> None:
    text = (root / "docs" / "exit-codes.md").read_text(encoding="utf-8")
    codes = {cells[0] for cells in table_rows(text, r"\d+")}
    assert {line.split()[0] for line in EPILOG.splitlines() if re.match(r"\s+\d", line)} <= codes
    assert "130" in codes


def test_links_lead_somewhere(root: Path) -> None:
    broken = []
    for page in page_paths(root):
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith(("http:", "https:")):
                continue
            name, _, anchor = target.partition("#")
            file = (page.parent / name).resolve() if name else page
            if not file.exists() or (
                anchor and file.suffix == ".md" and anchor not in anchors(file.read_text(encoding="utf-8"))
            ):
                broken.append(f"{page.name}: {target}")
    assert broken == []


def anchors(text: str) -> set[str]:
    """The anchors that a page's headings get."""
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
