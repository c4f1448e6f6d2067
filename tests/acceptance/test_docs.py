"""Every command block of the README and of docs/ runs as typed.

A block that needs a network, root, a service manager or endless time says so behind ```` ```sh no-run ````, with the reason.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.pages import page_paths, read_blocks

ROOT = Path(__file__).resolve().parents[2]
PAGES = [path for path in page_paths(ROOT) if any(block.runs for block in read_blocks(path))]
REASONS = {"forever", "install", "later", "network", "root", "tests"}
LINKS = (
    "submit_prediction.py", "cli", "forecastd", "models", "features.json", ".env.example", "allora-submission.service",
    "supervisord-allora-submission.conf", "forecastd-fleet.service", "supervisord-forecastd-fleet.conf", "docs", "benchmarks",
)  # fmt: skip
INSTALL = re.compile(r"python3 -m venv \S+ && \. \S+ && pip install [^&]+ && ")
TIMEOUT_SECONDS = 240


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A directory like a checkout, in which a page's commands can leave their files."""
    directory = tmp_path / "checkout"
    directory.mkdir()
    for name in LINKS:
        (directory / name).symlink_to(ROOT / name)
    return directory


@pytest.fixture
def shell(checkout: Path, tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Runs a block in the checkout with the program's environment active, a home of its own and no settings."""
    home, programs = tmp_path / "home", tmp_path / "programs"
    home.mkdir()
    programs.mkdir()
    commands = {"forecastd": f"{sys.executable} {ROOT}/submit_prediction.py"}
    commands |= dict.fromkeys(("python", "python3"), sys.executable)  # a link would not find the virtual environment
    for name, program in commands.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {program} "$@"\n')
        (programs / name).chmod(0o755)
    environment = {
        "PATH": f"{programs}:{os.defpath}",
        "HOME": str(home),
        "LOG_DIR": str(tmp_path / "logs"),
        "COLUMNS": "80",
    }

    def run(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/bash", "-euo", "pipefail", "-c", INSTALL.sub("", text)], cwd=checkout, env=environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT_SECONDS,
            check=False,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_command_blocks_run_as_typed(page: Path, shell: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    for block in read_blocks(page):
        if block.runs:
            finished = shell(block.text)
            assert finished.returncode == 0, f"{page.name}:{block.line}\n{block.text}\n{finished.stdout}"


def test_blocks_that_do_not_run_name_a_reason() -> None:
    for page in page_paths(ROOT):
        for block in read_blocks(page):
            if block.language == "sh" and not block.runs:
                reason = block.info.removeprefix("no-run").split()[:1]
                assert set(reason) & REASONS, f"{page.name}:{block.line}: {block.info}"


def test_shell_blocks_are_marked_as_such() -> None:
    for page in page_paths(ROOT):
        for block in read_blocks(page):
            assert block.language, f"{page.name}:{block.line} has no language; write text, sh, json, toml, ..."
            assert block.language not in {"bash", "shell", "console"}, f"{page.name}:{block.line}"
