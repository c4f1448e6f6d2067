"""Several topics and wallets in one run, against a local node in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PHRASE = "off merge tell trick table game glare dress come robust gas orange"  # no other file of tests has this one


@pytest.fixture
def node(root: Path, tmp_path: Path, environment: dict[str, str]) -> Iterator[str]:
    """A foreground local node with two topics, of one epoch each that outlasts every test; its endpoint."""
    topics = [word for number in (67, 69) for word in ("--topic", f"{number}:{10**9}:17280")]
    arguments = ["localnet", *topics, "--port", "0", "--ws-port", "0", "--seal-at-once"]
    process = subprocess.Popen(
        [sys.executable, str(root / "submit_prediction.py"), *arguments],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    told = tmp_path / "state" / "localnet" / "endpoint.json"
    assert process.stdout is not None
    for _ in process.stdout:
        if told.exists():
            break
    yield str(json.loads(told.read_text())["endpoint"])
    process.terminate()
    process.communicate(timeout=120)


def test_two_topics_of_one_wallet_and_a_third_with_another_get_a_submission_each(
    command: Any, node: str, tmp_path: Path
) -> None:
    (tmp_path / "second.phrase").write_text(PHRASE)
    (tmp_path / "second.phrase").chmod(0o600)
    (tmp_path / "topics.toml").write_text(
        '[[topic]]\nid = 67\n[[topic]]\nid = 69\nsource = "sample:5"\n'
        '[[topic]]\nid = 67\nsource = "sample:6"\nmnemonic_file = "second.phrase"\n'
    )
    arguments = ("--once", "--json", "--topics", "topics.toml")
    first = command(*arguments, RPC_ENDPOINTS=node)
    assert first.code == 0, first.out + first.err
    told = first.told["topics"]
    assert [one["outcome"] for one in told] == ["submitted"] * 3
    assert [one["topic_id"] for one in told] == [67, 69, 67]
    assert told[0]["wallet"] == told[1]["wallet"] != told[2]["wallet"]
    assert len({one["tx_hash"] for one in told}) == 3
    second = command(*arguments, RPC_ENDPOINTS=node)
    assert [one["outcome"] for one in second.told["topics"]] == ["already_submitted"] * 3
    assert [one["tx_hash"] for one in second.told["topics"]] == [one["tx_hash"] for one in told]


def test_a_running_local_node_is_found_without_being_named(command: Any, node: str) -> None:
    done = command("--once", "--json", "--topic-id", "69")
    assert done.told["outcome"] == "submitted", done.told["reason"]
    assert done.told["chain_id"] == "localnet"


def test_the_gravest_outcome_is_the_exit_code(command: Any, node: str, tmp_path: Path) -> None:
    (tmp_path / "topics.toml").write_text("[[topic]]\nid = 67\n[[topic]]\nid = 4242\n")
    done = command("--once", "--json", "--topics", "topics.toml", RPC_ENDPOINTS=node)
    assert done.code == done.told["exit_code"] == 5
    assert [one["outcome"] for one in done.told["topics"]] == ["submitted", "failed"]
