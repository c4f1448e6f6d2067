"""Several topics and wallets in one run, against a local node in a separate process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PHRASE = "off merge tell trick table game glare dress come robust gas orange"  # no other test file contains it


@pytest.fixture
def node(root: Path, tmp_path: Path, environment: dict[str, str]) -> Iterator[str]:
    """The endpoint of a foreground local node with two topics, whose epochs outlast every test."""
    topics = [word for number in (67, 69) for word in ("--topic", f"{number}:{10**9}:17280")]
    arguments = ["localnet", *topics, "--port", "0", "--ws-port", "0", "--seal-at-once"]
    process = subprocess.Popen(
        [sys.executable, str(root / "submit_prediction.py"), *arguments],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    endpoint_file = tmp_path / "state" / "localnet" / "endpoint.json"
    assert process.stdout is not None
    for _ in process.stdout:
        if endpoint_file.exists():
            break
    yield str(json.loads(endpoint_file.read_text())["endpoint"])
    process.terminate()
    process.communicate(timeout=120)


def test_three_topics_with_two_wallets_are_each_submitted(command: Any, node: str, tmp_path: Path) -> None:
    (tmp_path / "second.phrase").write_text(PHRASE)
    (tmp_path / "second.phrase").chmod(0o600)
    (tmp_path / "topics.toml").write_text(
        '[[topic]]\nid = 67\n[[topic]]\nid = 69\nsource = "sample:5"\n'
        '[[topic]]\nid = 67\nsource = "sample:6"\nmnemonic_file = "second.phrase"\n'
    )
    arguments = ("--once", "--json", "--topics", "topics.toml")
    first = command(*arguments, RPC_ENDPOINTS=node)
    assert first.code == 0, first.out + first.err
    outcomes = first.document["topics"]
    assert [topic["outcome"] for topic in outcomes] == ["submitted"] * 3
    assert [topic["topic_id"] for topic in outcomes] == [67, 69, 67]
    assert outcomes[0]["wallet"] == outcomes[1]["wallet"] != outcomes[2]["wallet"]
    assert len({topic["tx_hash"] for topic in outcomes}) == 3
    second = command(*arguments, RPC_ENDPOINTS=node)
    assert [topic["outcome"] for topic in second.document["topics"]] == ["already_submitted"] * 3
    assert [topic["tx_hash"] for topic in second.document["topics"]] == [topic["tx_hash"] for topic in outcomes]


def test_running_local_node_is_discovered(command: Any, node: str) -> None:
    result = command("--once", "--json", "--topic-id", "69")
    assert result.document["outcome"] == "submitted", result.document["reason"]
    assert result.document["chain_id"] == "localnet"


def test_worst_outcome_is_the_exit_code(command: Any, node: str, tmp_path: Path) -> None:
    (tmp_path / "topics.toml").write_text("[[topic]]\nid = 67\n[[topic]]\nid = 4242\n")
    result = command("--once", "--json", "--topics", "topics.toml", RPC_ENDPOINTS=node)
    assert result.code == result.document["exit_code"] == 5
    assert [topic["outcome"] for topic in result.document["topics"]] == ["submitted", "failed"]
