"""The methods of a node: their messages, and their REST routes. One table for the client and for the local node.

Paths are those of the Cosmos SDK gateway (`google.api.http` in the chain's .proto files). allora_sdk's own REST clients
use the same paths; a test compares the two. Only simulate and broadcast are POST.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from google.protobuf.message import Message

from forecastd.chain.proto import cosmos_pb2, emissions_pb2

EmissionsVersion = Literal["v9", "v10"]
EMISSIONS_VERSIONS: tuple[EmissionsVersion, ...] = ("v10", "v9")  # the newest first

GRPC_STATUS_NAMES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
"""The names of gRPC status codes, in the order of the codes. A gateway puts them into its errors."""


@dataclass(frozen=True)
class Method:
    """A method of a node. `request` and `reply` are its message classes.

    `name` is `package.Service/Method`. `version` is that of the emissions module, None for another module. `path` has
    the request's fields in braces.
    """

    name: str
    version: EmissionsVersion | None
    request: Any
    reply: Any
    path: str

    @property
    def verb(self) -> str:
        """The verb of its REST route."""
        return "POST" if self.name in _POSTED else "GET"

    @property
    def pattern(self) -> re.Pattern[str]:
        """Matches the path of a request without its query; the request's fields are the groups."""
        return _pattern(self.path)


_POSTED = ("cosmos.tx.v1beta1.Service/Simulate", "cosmos.tx.v1beta1.Service/BroadcastTx")
_COSMOS_PATHS = {
    "cosmos.base.tendermint.v1beta1.Service/GetNodeInfo": "/cosmos/base/tendermint/v1beta1/node_info",
    "cosmos.base.tendermint.v1beta1.Service/GetLatestBlock": "/cosmos/base/tendermint/v1beta1/blocks/latest",
    "cosmos.auth.v1beta1.Query/AccountInfo": "/cosmos/auth/v1beta1/account_info/{address}",
    "cosmos.auth.v1beta1.Query/Account": "/cosmos/auth/v1beta1/accounts/{address}",
    "cosmos.bank.v1beta1.Query/Balance": "/cosmos/bank/v1beta1/balances/{address}/by_denom?denom={denom}",
    "feemarket.feemarket.v1.Query/GasPrice": "/feemarket/v1/gas_price/{denom}",
    "cosmos.tx.v1beta1.Service/GetTx": "/cosmos/tx/v1beta1/txs/{hash}",
    "cosmos.tx.v1beta1.Service/Simulate": "/cosmos/tx/v1beta1/simulate",
    "cosmos.tx.v1beta1.Service/BroadcastTx": "/cosmos/tx/v1beta1/txs",
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
# v10 renamed this query and changed the answer of the other; all else is alike in both versions.
_VERSION_ONLY = {"GetWorkerLatestInputInferenceByTopicId": "v10", "GetWorkerLatestInferenceByTopicId": "v9"}
_V9_REPLIES = {"GetLatestNetworkInferences": emissions_pb2.GetLatestNetworkInferencesResponseV9}


def _emissions_method(version: EmissionsVersion, name: str, path: str) -> Method:
    request, reply = getattr(emissions_pb2, f"{name}Request"), getattr(emissions_pb2, f"{name}Response")
    return Method(
        f"emissions.{version}.QueryService/{name}",
        version,
        request,
        _V9_REPLIES.get(name, reply) if version == "v9" else reply,
        f"/emissions/{version}/{path}",
    )


def _cosmos_method(name: str, path: str) -> Method:
    service, _, short_name = name.rpartition("/")
    prefix = "Query" if service in ("cosmos.auth.v1beta1.Query", "cosmos.bank.v1beta1.Query") else ""
    request, reply = (getattr(cosmos_pb2, f"{prefix}{short_name}{kind}") for kind in ("Request", "Response"))
    return Method(name, None, request, reply, path)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        *(_cosmos_method(name, path) for name, path in _COSMOS_PATHS.items()),
        *(
            _emissions_method(version, name, path)
            for version in EMISSIONS_VERSIONS
            for name, path in _EMISSIONS_PATHS.items()
            if _VERSION_ONLY.get(name, version) == version
        ),
    )
}
"""The methods by `package.Service/Method`."""


_BY_REQUEST = {(method.version, method.request): method for method in METHODS.values()}
# The query that v10 renamed goes by its new request.
_BY_REQUEST["v9", emissions_pb2.GetWorkerLatestInputInferenceByTopicIdRequest] = METHODS[
    "emissions.v9.QueryService/GetWorkerLatestInferenceByTopicId"
]


def is_emissions(request: Message) -> bool:
    """Whether a request goes to the emissions module, whose methods have a version."""
    return (None, type(request)) not in _BY_REQUEST


def find_method(request: Message, version: EmissionsVersion | None = None) -> Method:
    """The method that takes this request; of the emissions module the one in this version."""
    return _BY_REQUEST[version, type(request)]


@cache
def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path.partition("?")[0]))
