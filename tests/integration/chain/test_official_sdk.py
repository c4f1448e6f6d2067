"""The official SDK, unmodified, against the local node: its client, and its worker with its websocket."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from forecastd.clock import SystemClock
from forecastd.localnet.embedded import open_embedded
from forecastd.localnet.topics import TopicSpec

CLIENT = """
import asyncio, json, sys
from allora_sdk import AlloraNetworkConfig, AlloraRPCClient, AlloraWalletConfig, LocalWallet
from allora_sdk.rpc_client.protos.emissions.v10 import (
    GetTopicRequest, GetUnfulfilledWorkerNoncesRequest, GetWorkerLatestInputInferenceByTopicIdRequest,
    InputLabeledValue, IsWorkerRegisteredInTopicIdRequest)
from allora_sdk.rpc_client.protos.feemarket.feemarket.v1 import GasPriceRequest

async def main():
    wallet = LocalWallet.generate(prefix="allo")
    address = str(wallet.address())
    client = AlloraRPCClient(
        wallet=AlloraWalletConfig(wallet=wallet), network=AlloraNetworkConfig.local(port=int(sys.argv[1])))
    query = client.emissions.query
    answers = {"chain": await client.raise_for_chain_id_mismatch()}
    answers["topic"] = (await query.get_topic(GetTopicRequest(topic_id=67))).topic.epoch_length
    answers["price"] = (await client.feemarket.query.gas_price(GasPriceRequest(denom="uallo"))).price.amount
    request = IsWorkerRegisteredInTopicIdRequest(topic_id=67, address=address)
    answers["before"] = (await query.is_worker_registered_in_topic_id(request)).is_registered
    result = await (await client.emissions.tx.register(67, address, address, False)).wait()
    answers["register"] = [result.code, result.height]
    answers["after"] = (await query.is_worker_registered_in_topic_id(request)).is_registered
    open_nonces = await query.get_unfulfilled_worker_nonces(GetUnfulfilledWorkerNoncesRequest(topic_id=67))
    nonce = open_nonces.nonces.nonces[0].block_height
    value = [InputLabeledValue(label="y", value="1E-7")]
    result = await (await client.emissions.tx.insert_worker_payload(67, value, nonce)).wait()
    answers["submit"] = [result.code, result.height]
    try:
        await (await client.emissions.tx.insert_worker_payload(67, value, nonce)).wait()
    except Exception as error:
        answers["again"] = str(error)
    latest = await query.get_worker_latest_input_inference_by_topic_id(
        GetWorkerLatestInputInferenceByTopicIdRequest(topic_id=67, worker_address=address))
    answers["latest"] = [latest.latest_input_inference.block_height, latest.latest_input_inference.values[0].value]
    await client.close()
    print(json.dumps(answers))

asyncio.run(main())
"""

WORKER = """
import asyncio, json, sys
from allora_sdk import AlloraNetworkConfig, AlloraWalletConfig, AlloraWorker, LocalWallet

async def main():
    network = AlloraNetworkConfig.local(port=int(sys.argv[1]), websocket_url=sys.argv[2])
    worker = AlloraWorker.inferer(
        run=lambda context: 0.0123, wallet=AlloraWalletConfig(wallet=LocalWallet.generate(prefix="allo")),
        network=network, topic_id=42, polling_interval=600, show_banner=False)
    results = []
    async for result in worker.run(timeout=200):
        results.append([type(result).__name__, result.submission, result.tx_result.code])
        if len(results) == 2:
            worker.stop()
    print(json.dumps(results))

asyncio.run(main())
"""


def run_sdk(code: str, *arguments: str) -> Any:
    """Run a program that uses the SDK in a process of its own, and return the JSON of its last line."""
    line = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    completed = subprocess.run(line, capture_output=True, text=True, check=False, timeout=240)
    assert completed.returncode == 0, completed.stderr
    return json.loads(completed.stdout.splitlines()[-1])


def test_sdk_client_queries_registers_and_submits(tmp_path: Path) -> None:
    with open_embedded(tmp_path, SystemClock(), block_time=None) as node:
        answers = run_sdk(CLIENT, node.endpoint.rpartition(":")[2])
        record = node.call(lambda chain: chain.state.inclusions(67, 1))
    assert "inference already submitted" in answers.pop("again")
    assert answers == {
        "chain": "localnet",
        "topic": 720,
        "price": str(10**18),
        "before": False,
        "register": [0, 2],
        "after": True,
        "submit": [0, 3],
        "latest": [1, "1E-7"],
    }
    assert [(tx_record.code, tx_record.height) for tx_record in record] == [(0, 3), (1, 4)]


def test_sdk_worker_serves_two_windows_the_second_by_event(tmp_path: Path) -> None:
    # A window stays open for many epochs, so that a slow worker misses none.
    topic = TopicSpec(42, epoch_length=12, worker_submission_window=1200)
    with open_embedded(tmp_path, SystemClock(), topics=(topic,), block_time=None, events=True) as node:
        assert node.websocket is not None
        ended = threading.Event()

        def open_windows() -> None:
            """Start the next epoch once the first is served: the worker does not receive events from before it
            listens.
            """
            while not ended.wait(3.0):
                record = node.record()
                if any(tx_record.kind == "payload" and tx_record.code == 0 for tx_record in record.transactions):
                    node.advance(12 - (record.height - 1) % 12)

        thread = threading.Thread(target=open_windows)
        thread.start()
        try:
            results = run_sdk(WORKER, node.endpoint.rpartition(":")[2], node.websocket)
        finally:
            ended.set()
            thread.join()
    assert results == [["WorkerResult", 0.0123, 0]] * 2
