"""Files that a person writes, when they are something else: refused by name, never waited for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from forecastd.errors import NeedsHuman
from forecastd.market.features import load_features
from forecastd.settings import load_settings
from forecastd.submission.topics import load_topics

READERS: dict[str, Callable[[Path], object]] = {
    ".env": lambda _: load_settings(),
    "features.json": load_features,
    "topics.toml": lambda path: load_topics(path, load_settings()),
}


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", READERS)
def test_named_pipe_is_refused_at_once(name: str) -> None:
    os.mkfifo(name)
    with pytest.raises(NeedsHuman, match=rf"{name} is not a regular file"):
        READERS[name](Path(name))


@pytest.mark.parametrize("name", READERS)
def test_device_is_refused(name: str) -> None:
    Path(name).symlink_to("/dev/zero")
    with pytest.raises(NeedsHuman, match=rf"{name} is not a regular file"):
        READERS[name](Path(name))


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("content", [b"TOPIC_ID=\xff\xfe\n", b"\x00\xd8", b"\xed\xa0\x80"])
def test_text_not_in_utf8_is_refused(name: str, content: bytes) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(NeedsHuman, match="UTF-8"):
        READERS[name](Path(name))


@pytest.mark.parametrize("name", READERS)
def test_oversized_file_is_refused(name: str) -> None:
    Path(name).write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(NeedsHuman, match="larger than 1 MB"):
        READERS[name](Path(name))


@pytest.mark.parametrize(("name", "before"), [("features.json", ""), ("topics.toml", "a = ")])
def test_deeply_nested_lists_are_refused(name: str, before: str) -> None:
    Path(name).write_text(before + "[" * 100_000)
    with pytest.raises(NeedsHuman, match=rf"{name} is nested too deeply"):
        READERS[name](Path(name))


def test_directory_named_env_is_ignored(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()
    assert load_settings().topic.id == 67
