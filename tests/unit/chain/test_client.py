"""What each query asks, and what the replies of both emissions versions mean."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from forecastd.chain.client import ChainClient, raise_refusal
from forecastd.chain.grpc_transport import RpcError, UnusableReply
from forecastd.chain.proto import cosmos_pb2 as cosmos
from forecastd.chain.proto import emissions_pb2 as emissions
from forecastd.chain.types import (
    AccountInfo,
    BroadcastResult,
    ChainParams,
    Inference,
    NetworkInferences,
    SimulationResult,
    Topic,
    TxResult,
)

NOT_FOUND, INVALID = RpcError("NOT_FOUND", "no such thing"), RpcError("INVALID_ARGUMENT", "malformed")


class ScriptedClient(ChainClient):
    """Gives every query one reply, or one refusal."""

    def __init__(self, reply: Any) -> None:
        self.reply = reply
        self.requests: list[Any] = []

    def ask(self, request: Any, read: Callable[[Any], Any], read_refusal: Any = raise_refusal) -> Any:
        self.requests.append(request)
        return read_refusal(self.reply) if isinstance(self.reply, RpcError) else read(self.reply)


def block(**fields: Any) -> cosmos.Block:
    return cosmos.Block(header=cosmos.Header(**fields))


HEADER = cosmos.GetLatestBlockResponse(sdk_block=block(height=7, time={"seconds": 5, "nanos": 500_000_000}))
LABELED = [emissions.LabeledValue(value="0.5"), emissions.LabeledValue(value="9")]
REPLIES: list[tuple[str, tuple[Any, ...], Any, Any]] = [
    ("height", (), HEADER, 7),
    ("height", (), cosmos.GetLatestBlockResponse(block=block(height=8)), 8),
    ("block_time", (), HEADER, 5.5),
    (
        "topic",
        (67,),
        emissions.GetTopicResponse(
            topic=emissions.Topic(
                id=67, metadata="BTC", epoch_length=720, worker_submission_window=60, ground_truth_lag=5, epoch_last_ended=1
            )
        ),
        Topic(67, "BTC", 720, 60, 5, 1),
    ),
    ("topic", (67,), emissions.GetTopicResponse(), None),
    ("topic", (67,), NOT_FOUND, None),
    ("topic", (67,), RpcError("INVALID_ARGUMENT", "Invalid topic ID"), None),
    ("is_topic_active", (67,), emissions.IsTopicActiveResponse(is_active=True), True),
    ("open_nonces", (67,), emissions.GetUnfulfilledWorkerNoncesResponse(), []),
    (
        "open_nonces",
        (67,),
        emissions.GetUnfulfilledWorkerNoncesResponse(
            nonces=emissions.Nonces(nonces=[emissions.Nonce(block_height=height) for height in (20, 40, 20)])
        ),
        [40, 20],
    ),
    (
        "is_nonce_unfulfilled",
        (67, 20),
        emissions.IsWorkerNonceUnfulfilledResponse(is_worker_nonce_unfulfilled=True),
        True,
    ),
    ("is_registered", (67, "a"), emissions.IsWorkerRegisteredInTopicIdResponse(is_registered=True), True),
    ("can_submit", (67, "a"), emissions.CanSubmitWorkerPayloadResponse(can_submit_worker_payload=True), True),
    (
        "params",
        (),
        emissions.GetParamsResponse(params=emissions.Params(registration_fee="12", data_sending_fee="")),
        ChainParams(12, 0),
    ),
    (
        "latest_inference",
        (67, "a"),
        emissions.GetWorkerLatestInferenceByTopicIdResponse(
            latest_inference=emissions.Inference(topic_id=67, block_height=20, inferer="a", value="0.5")
        ),
        Inference("a", 67, 20, "0.5"),
    ),
    (
        "latest_inference",
        (67, "a"),
        emissions.GetWorkerLatestInputInferenceByTopicIdResponse(
            latest_input_inference=emissions.InputInference(
                topic_id=67, block_height=20, inferer="a", value="0",
                values=[emissions.InputLabeledValue(label="y", value="0.5")],
            )
        ),
        Inference("a", 67, 20, "0.5"),
    ),
    ("latest_inference", (67, "a"), emissions.GetWorkerLatestInputInferenceByTopicIdResponse(), None),
    ("latest_inference", (67, "a"), NOT_FOUND, None),
    (
        "inferences_at",
        (67, 20),
        emissions.GetInferencesAtBlockResponse(
            inferences=emissions.Inferences(
                inferences=[
                    emissions.Inference(topic_id=67, block_height=20, inferer="a", value="1"),
                    emissions.Inference(topic_id=67, block_height=20, inferer="b", values=["2", "3"]),
                ]
            )
        ),
        [Inference("a", 67, 20, "1"), Inference("b", 67, 20, "2")],
    ),
    ("inferences_at", (67, 20), NOT_FOUND, []),
    (
        "network_inferences",
        (67,),
        emissions.GetLatestNetworkInferencesResponse(
            network_inferences=emissions.NetworkInferenceBundle(
                combined_value=LABELED, inferer_values=[emissions.WorkerInference(worker="a", values=LABELED)]
            ),
            inference_block_height=20,
        ),
        NetworkInferences(20, 0.5, {"a": 0.5}),
    ),
    (
        "network_inferences",
        (67,),
        emissions.GetLatestNetworkInferencesResponseV9(
            network_inferences=emissions.ValueBundle(
                combined_value="NaN",
                inferer_values=[
                    emissions.WorkerAttributedValue(worker="a", value="0.5"),
                    emissions.WorkerAttributedValue(worker="b", value="text"),
                ],
            ),
            inference_block_height=20,
        ),
        NetworkInferences(20, None, {"a": 0.5}),
    ),
    ("network_inferences", (67,), emissions.GetLatestNetworkInferencesResponse(), None),
    ("network_inferences", (67,), INVALID, None),
    (
        "account",
        ("a",),
        cosmos.QueryAccountInfoResponse(info=cosmos.BaseAccount(account_number=3, sequence=4)),
        AccountInfo(3, 4),
    ),
    ("account", ("a",), cosmos.QueryAccountInfoResponse(), None),
    ("account", ("a",), RpcError("UNKNOWN", "account a not found"), None),
    ("balance", ("a",), cosmos.QueryBalanceResponse(balance=cosmos.Coin(amount="9" * 78)), int("9" * 78)),
    ("balance", ("a",), cosmos.QueryBalanceResponse(), 0),
    ("gas_price", (), cosmos.GasPriceResponse(price=cosmos.DecCoin(amount=str(10**19))), Decimal(10)),
    ("gas_price", (), cosmos.GasPriceResponse(price=cosmos.DecCoin(amount="10.5")), Decimal("10.5")),
    ("gas_price", (), cosmos.GasPriceResponse(price=cosmos.DecCoin(amount="-1")), None),
    ("gas_price", (), cosmos.GasPriceResponse(), None),
    ("gas_price", (), RpcError("UNIMPLEMENTED", "unknown service"), None),
    ("simulate", (b"tx",), cosmos.SimulateResponse(gas_info=cosmos.GasInfo(gas_used=5)), SimulationResult(5, "")),
    ("simulate", (b"tx",), cosmos.SimulateResponse(), SimulationResult(None, "")),
    ("simulate", (b"tx",), INVALID, SimulationResult(None, "malformed")),
    (
        "broadcast",
        (b"tx",),
        cosmos.BroadcastTxResponse(tx_response=cosmos.TxResponse(codespace="sdk", code=5, raw_log="no\n", txhash="AB")),
        BroadcastResult("sdk", 5, "no ", "AB"),
    ),
    (
        "find_tx",
        ("AB",),
        cosmos.GetTxResponse(tx_response=cosmos.TxResponse(txhash="AB", height=9, code=0, gas_used=77)),
        TxResult("AB", 9, "", 0, "", 77),
    ),
    ("find_tx", ("AB",), cosmos.GetTxResponse(), None),
    ("find_tx", ("AB",), NOT_FOUND, None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "reply", "expected"), REPLIES)
def test_query_reads_the_reply(name: str, arguments: tuple[Any, ...], reply: Any, expected: Any) -> None:
    assert getattr(ScriptedClient(reply), name)(*arguments) == expected


@pytest.mark.parametrize(
    ("name", "arguments", "reply", "reason"),
    [
        ("height", (), cosmos.GetLatestBlockResponse(), "without a height"),
        ("block_time", (), cosmos.GetLatestBlockResponse(block=block(height=7)), "without a time"),
        ("params", (), emissions.GetParamsResponse(), "without parameters"),
        ("balance", ("a",), cosmos.QueryBalanceResponse(balance=cosmos.Coin(amount="1e9")), "invalid amount"),
        ("balance", ("a",), cosmos.QueryBalanceResponse(balance=cosmos.Coin(amount="9" * 79)), "invalid amount"),
        ("broadcast", (b"tx",), cosmos.BroadcastTxResponse(), "empty answer"),
    ],
)
def test_query_unusable_reply_is_refused(name: str, arguments: tuple[Any, ...], reply: Any, reason: str) -> None:
    with pytest.raises(UnusableReply, match=reason):
        getattr(ScriptedClient(reply), name)(*arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("topic", (67,)), ("is_topic_active", (67,)), ("account", ("a",)), ("find_tx", ("AB",)), ("broadcast", (b"tx",))],
)
def test_query_other_refusal_is_an_error(name: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(RpcError):
        getattr(ScriptedClient(INVALID), name)(*arguments)


def test_query_requests_carry_their_arguments() -> None:
    client = ScriptedClient(NOT_FOUND)
    client.latest_inference(67, "a")
    client.inferences_at(67, 20)
    client.find_tx("AB")
    client.gas_price()
    assert client.requests == [
        emissions.GetWorkerLatestInputInferenceByTopicIdRequest(topic_id=67, worker_address="a"),
        emissions.GetInferencesAtBlockRequest(topic_id=67, block_height=20),
        cosmos.GetTxRequest(hash="AB"),
        cosmos.GasPriceRequest(denom="uallo"),
    ]
