"""The REST path of each gRPC method: one table for the client of a node and for the local node's gateway.

Paths are those of the Cosmos SDK gateway (`google.api.http` in the chain's .proto files). allora_sdk's own REST clients
use the same paths; a test compares the two. Only simulate and broadcast are POST.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

GRPC_STATUS_NAMES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
"""The names of gRPC status codes, in the order of the codes. A gateway puts them into its errors."""

# The fields that are read from an answer. Its other fields hold what the message classes cannot parse from JSON:
# `@type`, and enums by the names of the .proto files.
_HEADER_FIELDS: dict[str, Any] = {"header": {"height": {}, "chain_id": {}, "time": {}}}
_TX_RESPONSE_FIELDS = {
    name: dict[str, Any]() for name in ("height", "txhash", "codespace", "code", "raw_log", "gas_used")
}


@dataclass(frozen=True)
class Route:
    """A REST route. `path` has the request's fields in braces.

    `response_fields` is a tree of the field names that are read from the answer. Empty: all fields.
    """

    verb: str
    path: str
    response_fields: dict[str, Any]

    @property
    def pattern(self) -> re.Pattern[str]:
        """Matches the path of a request without its query; the request's fields are the groups."""
        return _pattern(self.path)


_COSMOS_ROUTES = {
    "cosmos.base.tendermint.v1beta1.Service/GetNodeInfo": Route(
        "GET", "/cosmos/base/tendermint/v1beta1/node_info", {"default_node_info": {"network": {}}}
    ),
    "cosmos.base.tendermint.v1beta1.Service/GetLatestBlock": Route(
        "GET", "/cosmos/base/tendermint/v1beta1/blocks/latest", {"block": _HEADER_FIELDS, "sdk_block": _HEADER_FIELDS}
    ),
    "cosmos.auth.v1beta1.Query/AccountInfo": Route(
        "GET", "/cosmos/auth/v1beta1/account_info/{address}", {"info": {"account_number": {}, "sequence": {}}}
    ),
    "cosmos.auth.v1beta1.Query/Account": Route("GET", "/cosmos/auth/v1beta1/accounts/{address}", {}),
    "cosmos.bank.v1beta1.Query/Balance": Route(
        "GET", "/cosmos/bank/v1beta1/balances/{address}/by_denom?denom={denom}", {}
    ),
    "feemarket.feemarket.v1.Query/GasPrice": Route("GET", "/feemarket/v1/gas_price/{denom}", {}),
    "cosmos.tx.v1beta1.Service/GetTx": Route(
        "GET", "/cosmos/tx/v1beta1/txs/{hash}", {"tx_response": _TX_RESPONSE_FIELDS}
    ),
    "cosmos.tx.v1beta1.Service/Simulate": Route(
        "POST", "/cosmos/tx/v1beta1/simulate", {"gas_info": {"gas_wanted": {}, "gas_used": {}}}
    ),
    "cosmos.tx.v1beta1.Service/BroadcastTx": Route(
        "POST", "/cosmos/tx/v1beta1/txs", {"tx_response": _TX_RESPONSE_FIELDS}
    ),
}
_EMISSIONS_PATHS = {
    "GetParams": "params",
    "GetNextTopicId": "next_topic_id",
    "GetTopic": "topics/{topic_id}",
    "TopicExists": "topic_exists/{topic_id}",
    "IsTopicActive": "is_topic_active/{topic_id}",
    "IsWorkerRegisteredInTopicId": "worker_registered/{topic_id}/{address}",
    "CanSubmitWorkerPayload": "can_submit_worker_payload/{topic_id}/{address}",
    "GetUnfulfilledWorkerNonces": "unfulfilled_worker_nonces/{topic_id}",
    "GetOpenWorkerSubmissionWindows": "open_worker_submission_windows/{topic_id}",
    "IsWorkerNonceUnfulfilled": "is_worker_nonce_unfulfilled/{topic_id}/{block_height}",
    "GetWorkerLatestInputInferenceByTopicId": "topics/{topic_id}/workers/{worker_address}/latest_input_inference",
    "GetWorkerLatestInferenceByTopicId": "topics/{topic_id}/workers/{worker_address}/latest_inference",
    "GetInferencesAtBlock": "inferences/{topic_id}/{block_height}",
    "GetLatestNetworkInferences": "latest_network_inferences/{topic_id}",
    "GetInfererScoreEma": "inferer_score_ema/{topic_id}/{inferer}",
    "GetCurrentLowestInfererScore": "current_lowest_inferer_score/{topic_id}",
}
_EMISSIONS_RESPONSE_FIELDS: dict[str, dict[str, Any]] = {
    "GetParams": {"params": {"registration_fee": {}, "data_sending_fee": {}}},
    "GetTopic": {
        "topic": {
            name: {}
            for name in (
                "id", "metadata", "epoch_length", "worker_submission_window", "ground_truth_lag", "epoch_last_ended",
            )
        }
    },
}  # fmt: skip
_VERSION_ONLY = {"GetWorkerLatestInputInferenceByTopicId": "v10", "GetWorkerLatestInferenceByTopicId": "v9"}

ROUTES: dict[str, Route] = _COSMOS_ROUTES | {
    f"emissions.{version}.QueryService/{method}": Route(
        "GET", f"/emissions/{version}/{path}", _EMISSIONS_RESPONSE_FIELDS.get(method, {})
    )
    for version in ("v9", "v10")
    for method, path in _EMISSIONS_PATHS.items()
    if _VERSION_ONLY.get(method, version) == version
}
"""The routes by `package.Service/Method`."""


def select_fields(answer: Any, fields: dict[str, Any]) -> Any:
    """The part of an answer that `fields` names; all of it when `fields` is empty."""
    if not fields or not isinstance(answer, dict):
        return answer
    return {name: select_fields(answer[name], nested) for name, nested in fields.items() if name in answer}


@cache
def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path.partition("?")[0]))
