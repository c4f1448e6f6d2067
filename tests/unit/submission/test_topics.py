"""topics.toml: each topic overrides the common settings, and invalid files are refused with a clear message."""

from __future__ import annotations

from pathlib import Path

import pytest

from forecastd.errors import NeedsHuman
from forecastd.settings import load_settings
from forecastd.submission.topics import load_topics


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "conf" / "topics.toml"


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


def test_topic_overrides_common_settings(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNEMONIC", "common phrase")
    monkeypatch.setenv("RPC_ENDPOINTS", "a:1,b:2")
    write(
        file, '[[topic]]\nid = 67\n[[topic]]\nid = 69\nmodel = "eth"\nsource = "sample:7"\nmnemonic_file = "/second"\n'
    )
    common = load_settings(fee_tier="eco")
    first, second = load_topics(file, common)
    assert first == common.with_values(topic_id=67)
    assert (second.topic.id, second.source.name, second.fees.tier) == (69, "sample:7", "eco")
    assert second.model.bundle == file.parent / "eth"
    assert second.wallet.mnemonic_file == Path("/second")
    assert second.wallet.mnemonic is None
    assert second.chain.rpc_endpoints == ("a:1", "b:2")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "one [[topic]] or more"),
        ("x = 1\n[[topic]]\nid = 1\n", "nothing else"),
        ("[topic]\nid = 1\n", "one [[topic]] or more"),
        ("[[topic]]\nmodel = 'm'\n", "topic 1: the key `id` is missing"),
        ("[[topic]]\nid = 1\n[[topic]]\nid = 'two'\n", "topic 2: id must be a number"),
        ("[[topic]]\nid = true\n", "id must be a number"),
        ("[[topic]]\nid = 0\n", "topic_id"),
        ("[[topic]]\nid = 1\nendpoints = 'x'\n", "unknown key 'endpoints'"),
        ("[[topic]]\nid = 1\nfee_tier = 'lavish'\n", "fee_tier"),
        ("[[topic]]\nid = 1\n[[topic]]\nid = 1\n", "twice"),
        ("[[topic]\n", "not valid TOML"),
    ],
)
def test_invalid_file_is_refused_with_position_and_key(file: Path, text: str, words: str) -> None:
    with pytest.raises(NeedsHuman) as caught:
        load_topics(write(file, text), load_settings())
    assert words in str(caught.value)


def test_missing_file_is_named(file: Path) -> None:
    with pytest.raises(NeedsHuman, match="Cannot read"):
        load_topics(file, load_settings())


def test_same_topic_with_two_wallets_is_allowed(file: Path) -> None:
    write(file, '[[topic]]\nid = 1\nmnemonic_file = "/a"\n[[topic]]\nid = 1\nmnemonic_file = "/b"\n')
    assert len(load_topics(file, load_settings())) == 2
