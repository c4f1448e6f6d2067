"""The queries of the emissions module, answered in the version the chain speaks; the other one is an unknown service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from forecastd.chain.codec import LABEL
from forecastd.chain.sdk import canonical_decimal, emissions, messages
from forecastd.localnet.activeset import SCORE_ALPHA, lowest
from forecastd.localnet.service import Declined, Seen
from forecastd.localnet.state import Stored
from forecastd.localnet.topics import TopicSpec

Query = Callable[[Seen, Any, Any], Any]
"""The chain, the request, and the module of the version's messages; gives the answer."""


def answer(chain: Seen, version: str, method: str, request: bytes) -> Any:
    """Answer one query.

    Raises:
        Declined: the chain speaks another version, there is no such method, or the query has no answer.
    """
    if version != chain.state.version:
        raise Declined("UNIMPLEMENTED", f"unknown service emissions.{version}.QueryService")
    query = QUERIES.get(method)
    em = emissions(chain.state.version)
    asked = getattr(em, f"{method}Request", None)
    if query is None or asked is None:
        raise Declined("UNIMPLEMENTED", f"unknown method {method} for service emissions.{version}.QueryService")
    return query(chain, asked.parse(request), em)


def _params(chain: Seen, asked: Any, em: Any) -> Any:
    del asked
    fees = chain.state.fees
    params = emissions("v9").Params(
        registration_fee=str(fees.registration),
        data_sending_fee=str(fees.data_sending),
        max_top_inferers_to_reward=max((topic.active_set for topic in chain.state.topics), default=0),
    )
    return em.GetParamsResponse(params=params)


def _next_topic_id(chain: Seen, asked: Any, em: Any) -> Any:
    del asked
    return em.GetNextTopicIdResponse(next_topic_id=1 + max((topic.id for topic in chain.state.topics), default=0))


def _topic(chain: Seen, asked: Any, em: Any) -> Any:
    found = _known(chain, asked.topic_id)
    topic = em.Topic(
        id=found.id,
        creator="",
        metadata=found.metadata,
        loss_method="mse",
        epoch_last_ended=found.newest_nonce(chain.state.height) or 0,
        epoch_length=found.epoch_length,
        ground_truth_lag=found.ground_truth_lag,
        worker_submission_window=found.worker_submission_window,
        allow_negative=True,
        merit_sortition_alpha=str(SCORE_ALPHA),
    )
    return em.GetTopicResponse(topic=topic, weight="1", effective_revenue="0", topic_stake="0")


def _topic_exists(chain: Seen, asked: Any, em: Any) -> Any:
    return em.TopicExistsResponse(exists=chain.state.topic(asked.topic_id) is not None)


def _is_topic_active(chain: Seen, asked: Any, em: Any) -> Any:
    return em.IsTopicActiveResponse(is_active=_known(chain, asked.topic_id).active)


def _is_registered(chain: Seen, asked: Any, em: Any) -> Any:
    topic = _known(chain, asked.topic_id)
    return em.IsWorkerRegisteredInTopicIdResponse(is_registered=(topic.id, asked.address) in chain.state.workers)


def _can_submit(chain: Seen, asked: Any, em: Any) -> Any:
    topic = _known(chain, asked.topic_id)
    return em.CanSubmitWorkerPayloadResponse(can_submit_worker_payload=topic.permits(asked.address))


def _nonces(chain: Seen, topic_id: int) -> Any:
    v3 = messages("emissions.v3")
    found = _known(chain, topic_id).open_nonces(chain.state.height)
    return v3.Nonces(nonces=[v3.Nonce(block_height=nonce) for nonce in found])


def _unfulfilled(chain: Seen, asked: Any, em: Any) -> Any:
    return em.GetUnfulfilledWorkerNoncesResponse(nonces=_nonces(chain, asked.topic_id))


def _open_windows(chain: Seen, asked: Any, em: Any) -> Any:
    return em.GetOpenWorkerSubmissionWindowsResponse(nonces=_nonces(chain, asked.topic_id))


def _is_unfulfilled(chain: Seen, asked: Any, em: Any) -> Any:
    is_open = asked.block_height in _known(chain, asked.topic_id).open_nonces(chain.state.height)
    return em.IsWorkerNonceUnfulfilledResponse(is_worker_nonce_unfulfilled=is_open)


def _latest_input(chain: Seen, asked: Any, em: Any) -> Any:
    found = _latest(chain, asked)
    value = em.InputLabeledValue(label=LABEL, value=found.value)
    return em.GetWorkerLatestInputInferenceByTopicIdResponse(
        latest_input_inference=em.InputInference(value="0", values=[value], **_common(found))
    )


def _latest_plain(chain: Seen, asked: Any, em: Any) -> Any:
    found = _latest(chain, asked)
    return em.GetWorkerLatestInferenceByTopicIdResponse(
        latest_inference=messages("emissions.v3").Inference(value=found.value, **_common(found))
    )


def _at_block(chain: Seen, asked: Any, em: Any) -> Any:
    """What counts for a nonce. As on the real chain that is settled when its window closes, and empty until then."""
    topic, stored = _known(chain, asked.topic_id), list[Stored]()
    if chain.state.height >= asked.block_height + topic.worker_submission_window:
        stored = list(chain.state.inferences.get((topic.id, asked.block_height), {}).values())
    if chain.state.version == "v10":
        found = em.Inferences(inferences=[em.Inference(values=[one.value], **_common(one)) for one in stored])
    else:
        v3 = messages("emissions.v3")
        found = v3.Inferences(inferences=[v3.Inference(value=one.value, **_common(one)) for one in stored])
    return em.GetInferencesAtBlockResponse(inferences=found)


def _network(chain: Seen, asked: Any, em: Any) -> Any:
    """The last closed nonce with inferences; combined is their mean, for nobody is scored here."""
    topic = _known(chain, asked.topic_id)
    closed = [
        nonce
        for (topic_id, nonce), active in chain.state.inferences.items()
        if active and topic_id == topic.id and nonce + topic.worker_submission_window <= chain.state.height
    ]
    if not closed:
        raise Declined("NOT_FOUND", f"no inferences found for topic {topic.id}")
    nonce = max(closed)
    by_worker = {worker: one.value for worker, one in chain.state.inferences[topic.id, nonce].items()}
    mean = repr(sum(map(float, by_worker.values())) / len(by_worker))
    make = _network_v10 if chain.state.version == "v10" else _network_v9
    return em.GetLatestNetworkInferencesResponse(
        network_inferences=make(em, topic.id, nonce, mean, by_worker), inference_block_height=nonce
    )


def _network_v10(em: Any, topic_id: int, nonce: int, mean: str, by_worker: dict[str, str]) -> Any:
    def labelled(value: str) -> Any:
        return [em.LabeledValue(label_id=0, label_name=LABEL, value=value)]

    return em.NetworkInferenceBundle(
        topic_id=topic_id,
        nonce=nonce,
        combined_value=labelled(mean),
        naive_value=labelled(mean),
        inferer_values=[
            em.WorkerInference(worker=worker, values=labelled(value)) for worker, value in by_worker.items()
        ],
    )


def _network_v9(em: Any, topic_id: int, nonce: int, mean: str, by_worker: dict[str, str]) -> Any:
    del em, nonce
    v3 = messages("emissions.v3")
    values = [v3.WorkerAttributedValue(worker=worker, value=value) for worker, value in by_worker.items()]
    return v3.ValueBundle(topic_id=topic_id, combined_value=mean, naive_value=mean, inferer_values=values)


def _score(chain: Seen, asked: Any, em: Any) -> Any:
    topic = _known(chain, asked.topic_id)
    return em.GetInfererScoreEmaResponse(score=_scored(chain, topic, asked.inferer))


def _lowest_score(chain: Seen, asked: Any, em: Any) -> Any:
    """The lowest score of the newest active set."""
    topic = _known(chain, asked.topic_id)
    worker = lowest(chain.state, topic.id, topic.newest_nonce(chain.state.height) or 0)
    return em.GetCurrentLowestInfererScoreResponse(score=_scored(chain, topic, worker or ""))


def _scored(chain: Seen, topic: TopicSpec, worker: str) -> Any:
    score = canonical_decimal(chain.state.score(topic.id, worker))
    return messages("emissions.v3").Score(
        topic_id=topic.id, block_height=chain.state.height, address=worker, score=score
    )


QUERIES: dict[str, Query] = {
    "GetParams": _params,
    "GetNextTopicId": _next_topic_id,
    "GetTopic": _topic,
    "TopicExists": _topic_exists,
    "IsTopicActive": _is_topic_active,
    "IsWorkerRegisteredInTopicId": _is_registered,
    "CanSubmitWorkerPayload": _can_submit,
    "GetUnfulfilledWorkerNonces": _unfulfilled,
    "GetOpenWorkerSubmissionWindows": _open_windows,
    "IsWorkerNonceUnfulfilled": _is_unfulfilled,
    "GetWorkerLatestInputInferenceByTopicId": _latest_input,
    "GetWorkerLatestInferenceByTopicId": _latest_plain,
    "GetInferencesAtBlock": _at_block,
    "GetLatestNetworkInferences": _network,
    "GetInfererScoreEma": _score,
    "GetCurrentLowestInfererScore": _lowest_score,
}


def _known(chain: Seen, topic_id: int) -> TopicSpec:
    found = chain.state.topic(topic_id)
    if found is None:
        raise Declined("NOT_FOUND", f"topic {topic_id} not found")
    return found


def _latest(chain: Seen, asked: Any) -> Stored:
    found = chain.state.latest.get((asked.topic_id, asked.worker_address))
    if found is None:
        raise Declined("NOT_FOUND", f"inference of {asked.worker_address[:64]} for topic {asked.topic_id} not found")
    return found


def _common(one: Stored) -> dict[str, Any]:
    return {
        "topic_id": one.topic_id, "block_height": one.nonce, "inferer": one.worker,
        "extra_data": one.extra_data, "proof": one.proof,
    }  # fmt: skip
