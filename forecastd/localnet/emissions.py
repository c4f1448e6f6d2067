"""Answers the queries of the emissions module in the chain's version."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from forecastd.chain.codec import VALUE_LABEL, canonical_value
from forecastd.chain.proto import emissions_pb2 as em
from forecastd.localnet.active_set import SCORE_ALPHA, lowest_scored
from forecastd.localnet.service import ChainView, MethodHandler, RpcStatusError
from forecastd.localnet.state import StoredInference
from forecastd.localnet.topics import TopicSpec


def _params(chain: ChainView, request: Any) -> Message:
    del request
    fees = chain.state.fees
    params = em.Params(
        registration_fee=str(fees.registration),
        data_sending_fee=str(fees.data_sending),
        max_top_inferers_to_reward=max((topic.active_set for topic in chain.state.topics), default=0),
    )
    return em.GetParamsResponse(params=params)


def _next_topic_id(chain: ChainView, request: Any) -> Message:
    del request
    return em.GetNextTopicIdResponse(next_topic_id=1 + max((topic.id for topic in chain.state.topics), default=0))


def _topic(chain: ChainView, request: Any) -> Message:
    spec = _find_topic(chain, request.topic_id)
    topic = em.Topic(
        id=spec.id,
        creator="",
        metadata=spec.metadata,
        loss_method="mse",
        epoch_last_ended=spec.newest_nonce(chain.state.height) or 0,
        epoch_length=spec.epoch_length,
        ground_truth_lag=spec.ground_truth_lag,
        worker_submission_window=spec.worker_submission_window,
        allow_negative=True,
        merit_sortition_alpha=str(SCORE_ALPHA),
    )
    return em.GetTopicResponse(topic=topic, weight="1", effective_revenue="0", topic_stake="0")


def _topic_exists(chain: ChainView, request: Any) -> Message:
    return em.TopicExistsResponse(exists=chain.state.topic(request.topic_id) is not None)


def _is_topic_active(chain: ChainView, request: Any) -> Message:
    return em.IsTopicActiveResponse(is_active=_find_topic(chain, request.topic_id).active)


def _is_registered(chain: ChainView, request: Any) -> Message:
    topic = _find_topic(chain, request.topic_id)
    return em.IsWorkerRegisteredInTopicIdResponse(is_registered=(topic.id, request.address) in chain.state.workers)


def _can_submit(chain: ChainView, request: Any) -> Message:
    topic = _find_topic(chain, request.topic_id)
    return em.CanSubmitWorkerPayloadResponse(can_submit_worker_payload=topic.permits(request.address))


def _open_nonces(chain: ChainView, topic_id: int) -> em.Nonces:
    nonces = _find_topic(chain, topic_id).open_nonces(chain.state.height)
    return em.Nonces(nonces=[em.Nonce(block_height=nonce) for nonce in nonces])


def _unfulfilled_nonces(chain: ChainView, request: Any) -> Message:
    return em.GetUnfulfilledWorkerNoncesResponse(nonces=_open_nonces(chain, request.topic_id))


def _open_windows(chain: ChainView, request: Any) -> Message:
    return em.GetOpenWorkerSubmissionWindowsResponse(nonces=_open_nonces(chain, request.topic_id))


def _is_unfulfilled(chain: ChainView, request: Any) -> Message:
    is_open = request.block_height in _find_topic(chain, request.topic_id).open_nonces(chain.state.height)
    return em.IsWorkerNonceUnfulfilledResponse(is_worker_nonce_unfulfilled=is_open)


def _latest_input(chain: ChainView, request: Any) -> Message:
    inference = _find_latest(chain, request)
    value = em.InputLabeledValue(label=VALUE_LABEL, value=inference.value)
    return em.GetWorkerLatestInputInferenceByTopicIdResponse(
        latest_input_inference=em.InputInference(value="0", values=[value], **_common_fields(inference))
    )


def _latest_plain(chain: ChainView, request: Any) -> Message:
    inference = _find_latest(chain, request)
    return em.GetWorkerLatestInferenceByTopicIdResponse(
        latest_inference=em.Inference(value=inference.value, **_common_fields(inference))
    )


def _inferences_at_block(chain: ChainView, request: Any) -> Message:
    """The inferences that count for a nonce. As on the real chain, there are none until the window closes."""
    topic, inferences = _find_topic(chain, request.topic_id), list[StoredInference]()
    if chain.state.height >= request.block_height + topic.worker_submission_window:
        inferences = list(chain.state.inferences.get((topic.id, request.block_height), {}).values())
    is_v10 = chain.state.version == "v10"
    answers = [
        em.Inference(
            **{"values": [inference.value]} if is_v10 else {"value": inference.value}, **_common_fields(inference)
        )
        for inference in inferences
    ]
    return em.GetInferencesAtBlockResponse(inferences=em.Inferences(inferences=answers))


def _network_inferences(chain: ChainView, request: Any) -> Message:
    """The inferences of the last closed nonce that has any.

    The combined value is their mean, because no one is scored here.
    """
    topic = _find_topic(chain, request.topic_id)
    closed_nonces = [
        nonce
        for (topic_id, nonce), active in chain.state.inferences.items()
        if active and topic_id == topic.id and nonce + topic.worker_submission_window <= chain.state.height
    ]
    if not closed_nonces:
        raise RpcStatusError("NOT_FOUND", f"no inferences found for topic {topic.id}")
    nonce = max(closed_nonces)
    by_worker = {worker: inference.value for worker, inference in chain.state.inferences[topic.id, nonce].items()}
    mean = repr(sum(map(float, by_worker.values())) / len(by_worker))
    if chain.state.version == "v9":
        values = [em.WorkerAttributedValue(worker=worker, value=value) for worker, value in by_worker.items()]
        bundle = em.ValueBundle(topic_id=topic.id, combined_value=mean, naive_value=mean, inferer_values=values)
        return em.GetLatestNetworkInferencesResponseV9(network_inferences=bundle, inference_block_height=nonce)

    def labeled(value: str) -> list[em.LabeledValue]:
        return [em.LabeledValue(label_name=VALUE_LABEL, value=value)]

    labeled_bundle = em.NetworkInferenceBundle(
        topic_id=topic.id,
        nonce=nonce,
        combined_value=labeled(mean),
        naive_value=labeled(mean),
        inferer_values=[
            em.WorkerInference(worker=worker, values=labeled(value)) for worker, value in by_worker.items()
        ],
    )
    return em.GetLatestNetworkInferencesResponse(network_inferences=labeled_bundle, inference_block_height=nonce)


def _score(chain: ChainView, request: Any) -> Message:
    topic = _find_topic(chain, request.topic_id)
    return em.GetInfererScoreEmaResponse(score=_score_message(chain, topic, request.inferer))


def _lowest_score(chain: ChainView, request: Any) -> Message:
    """The lowest score of the newest active set."""
    topic = _find_topic(chain, request.topic_id)
    worker = lowest_scored(chain.state, topic.id, topic.newest_nonce(chain.state.height) or 0)
    return em.GetCurrentLowestInfererScoreResponse(score=_score_message(chain, topic, worker or ""))


def _score_message(chain: ChainView, topic: TopicSpec, worker: str) -> em.Score:
    score = canonical_value(chain.state.score(topic.id, worker))
    return em.Score(topic_id=topic.id, block_height=chain.state.height, address=worker, score=score)


HANDLERS: dict[str, MethodHandler] = {
    "GetParams": _params,
    "GetNextTopicId": _next_topic_id,
    "GetTopic": _topic,
    "TopicExists": _topic_exists,
    "IsTopicActive": _is_topic_active,
    "IsWorkerRegisteredInTopicId": _is_registered,
    "CanSubmitWorkerPayload": _can_submit,
    "GetUnfulfilledWorkerNonces": _unfulfilled_nonces,
    "GetOpenWorkerSubmissionWindows": _open_windows,
    "IsWorkerNonceUnfulfilled": _is_unfulfilled,
    "GetWorkerLatestInputInferenceByTopicId": _latest_input,
    "GetWorkerLatestInferenceByTopicId": _latest_plain,
    "GetInferencesAtBlock": _inferences_at_block,
    "GetLatestNetworkInferences": _network_inferences,
    "GetInfererScoreEma": _score,
    "GetCurrentLowestInfererScore": _lowest_score,
}


def _find_topic(chain: ChainView, topic_id: int) -> TopicSpec:
    topic = chain.state.topic(topic_id)
    if topic is None:
        raise RpcStatusError("NOT_FOUND", f"topic {topic_id} not found")
    return topic


def _find_latest(chain: ChainView, request: Any) -> StoredInference:
    inference = chain.state.latest_inferences.get((request.topic_id, request.worker_address))
    if inference is None:
        raise RpcStatusError(
            "NOT_FOUND", f"inference of {request.worker_address[:64]} for topic {request.topic_id} not found"
        )
    return inference


def _common_fields(inference: StoredInference) -> dict[str, Any]:
    return {
        "topic_id": inference.topic_id, "block_height": inference.nonce, "inferer": inference.worker,
        "extra_data": inference.extra_data, "proof": inference.proof,
    }  # fmt: skip
