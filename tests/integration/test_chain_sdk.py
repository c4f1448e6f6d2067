"""The seam to the SDK: only what is asked for runs, it is the SDK's own, and the SDK itself goes on working."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from forecastd.chain.sdk import canonical_decimal, emissions, messages


def run(root: Path, code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_messages_come_without_the_sdks_clients(root: Path) -> None:
    told = run(
        root,
        """if True:
        import sys
        from forecastd.chain import codec
        from forecastd.chain.wallet import Wallet
        codec.sign_submission(
            Wallet(b"\\1" * 32), version="v9", chain_id="localnet", topic_id=1, nonce=1, value=0.5, synthetic=True,
            account_number=0, sequence=0, gas=1, fee_uallo=1, timeout_height=1)
        print([name for name in ("aiohttp", "cosmpy", "numpy", "pandas", "requests") if name in sys.modules])
        print("allora_sdk.rpc_client.protos.emissions.v10" in sys.modules)
        """,
    )
    assert told.split("\n")[:2] == ["[]", "False"]


def test_the_sdk_works_whole_after_the_seam_was_used(root: Path) -> None:
    told = run(
        root,
        """if True:
        from forecastd.chain.sdk import emissions
        mine = emissions("v10").InsertWorkerPayloadRequest
        from allora_sdk import AlloraRPCClient, AlloraWorker
        from allora_sdk.rpc_client.client_emissions import InsertWorkerPayloadRequest
        from allora_sdk.rpc_client.event_utils import EventRegistry
        print(AlloraWorker.__name__, AlloraRPCClient.__name__, mine is InsertWorkerPayloadRequest)
        print(EventRegistry().get_event_class("emissions.v10.EventWorkerSubmissionWindowOpened").__name__)
        """,
    )
    assert told.splitlines() == ["AlloraWorker AlloraRPCClient True", "EventWorkerSubmissionWindowOpened"]


def test_the_seam_uses_the_sdk_that_is_there_already(root: Path) -> None:
    told = run(
        root,
        """if True:
        import allora_sdk
        from allora_sdk.rpc_client.protos.emissions.v10 import Topic
        from forecastd.chain.sdk import emissions
        print(emissions("v10").Topic is Topic)
        """,
    )
    assert told.strip() == "True"


def test_every_class_of_a_module_that_runs_lazily_is_there_and_equal_to_the_sdks(root: Path) -> None:
    code = """if True:
        import sys
        {first}
        from allora_sdk.rpc_client.protos.emissions import v10
        for name in sorted(v10.__all__):
            kind = getattr(v10, name)
            fields = getattr(kind, "__dataclass_fields__", None)
            shown = [(f.name, f.type, sorted(map(str, f.metadata))) for f in fields.values()] if fields else []
            print(name, kind.__module__, kind.__mro__[1].__name__, shown)
        """
    lazily = run(root, code.format(first="from forecastd.chain.sdk import emissions; emissions('v10')"))
    eagerly = run(root, code.format(first="import allora_sdk"))
    assert lazily == eagerly
    assert len(lazily.splitlines()) > 400


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Nothing"):
        _ = emissions("v9").Nothing
    with pytest.raises(ImportError):
        messages("no.such.package")


def test_a_class_is_the_same_whoever_asks_and_whenever() -> None:
    first = emissions("v10").GetTopicResponse
    assert first is importlib.import_module("allora_sdk.rpc_client.protos.emissions.v10").GetTopicResponse
    assert first.parse(bytes(first(topic=emissions("v10").Topic(id=3)))).topic.id == 3


@pytest.mark.parametrize(("value", "text"), [("1e-07", "1E-7"), ("0.50", "0.50"), (2.0, "2.0")])
def test_a_decimal_is_written_as_the_chain_writes_it(value: float | str, text: str) -> None:
    assert canonical_decimal(value) == text
