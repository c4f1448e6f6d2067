"""Access to the SDK's messages: only the used classes are loaded, they are the SDK's own, and the SDK still works."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from forecastd.chain.sdk import canonical_decimal, emissions, messages


def run_python(root: Path, code: str) -> str:
    completed = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def test_messages_import_no_sdk_clients(root: Path) -> None:
    output = run_python(
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
    assert output.split("\n")[:2] == ["[]", "False"]


def test_sdk_works_fully_after_messages_were_loaded(root: Path) -> None:
    output = run_python(
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
    assert output.splitlines() == ["AlloraWorker AlloraRPCClient True", "EventWorkerSubmissionWindowOpened"]


def test_messages_use_an_already_imported_sdk(root: Path) -> None:
    output = run_python(
        root,
        """if True:
        import allora_sdk
        from allora_sdk.rpc_client.protos.emissions.v10 import Topic
        from forecastd.chain.sdk import emissions
        print(emissions("v10").Topic is Topic)
        """,
    )
    assert output.strip() == "True"


def test_lazy_module_has_every_class_of_the_sdk(root: Path) -> None:
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
    lazily = run_python(root, code.format(first="from forecastd.chain.sdk import emissions; emissions('v10')"))
    eagerly = run_python(root, code.format(first="import allora_sdk"))
    assert lazily == eagerly
    assert len(lazily.splitlines()) > 400


def test_lazy_module_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Nothing"):
        _ = emissions("v9").Nothing
    with pytest.raises(ImportError):
        messages("no.such.package")


def test_lazy_module_returns_one_class_object() -> None:
    first = emissions("v10").GetTopicResponse
    assert first is importlib.import_module("allora_sdk.rpc_client.protos.emissions.v10").GetTopicResponse
    assert first.parse(bytes(first(topic=emissions("v10").Topic(id=3)))).topic.id == 3


@pytest.mark.parametrize(("value", "text"), [("1e-07", "1E-7"), ("0.50", "0.50"), (2.0, "2.0")])
def test_canonical_decimal_equals_the_chains_form(value: float | str, text: str) -> None:
    assert canonical_decimal(value) == text
