"""The active set of a nonce: which workers count, and how their scores change when a window closes. Pure functions.

A payload is stored while the set has room, or when its worker's score is higher than the lowest score in the set; that
worker is then evicted. Otherwise the transaction succeeds but nothing is stored: the worker is passive. Source:
allora-chain `x/emissions/keeper`. This chain has no reputers, so the mean of the set replaces the truth.
"""

from __future__ import annotations

from forecastd.localnet.state import INITIAL_SCORE, ChainState, Effect, StoredInference
from forecastd.localnet.topics import TopicSpec

SCORE_ALPHA = 0.1  # weight of the moving average: the chain's `merit_sortition_alpha`


def lowest_scored(state: ChainState, topic_id: int, nonce: int) -> str | None:
    """The worker with the lowest score in the set of a nonce, or None when the set is empty."""
    active = state.inferences.get((topic_id, nonce), {})
    return min(active, key=lambda worker: (state.score(topic_id, worker), worker), default=None)


def admit(state: ChainState, topic: TopicSpec, inference: StoredInference) -> Effect:
    """The effect of a valid inference. The effect is empty when its worker is passive."""
    active = state.inferences.get((topic.id, inference.nonce), {})
    if len(active) < topic.active_set:
        return Effect(inference=inference)
    lowest_worker = lowest_scored(state, topic.id, inference.nonce)
    if lowest_worker is None or state.score(topic.id, inference.worker) <= state.score(topic.id, lowest_worker):
        return Effect()
    return Effect(inference=inference, evicted=active[lowest_worker])


def settle_scores(state: ChainState, topic: TopicSpec, nonce: int) -> Effect:
    """The scores after a window closed.

    Active workers move towards their result, the others back towards the initial score.
    """
    active = state.inferences.get((topic.id, nonce), {})
    values = {worker: float(inference.value) for worker, inference in active.items()}
    mean = sum(values.values()) / len(values) if values else 0.0
    workers = {worker for topic_id, worker in state.workers if topic_id == topic.id}
    workers |= {worker for topic_id, worker in state.scores if topic_id == topic.id}
    scores = []
    for worker in sorted(workers):
        raw_score = -((values[worker] - mean) ** 2) if worker in values else INITIAL_SCORE
        old_score = state.score(topic.id, worker)
        new_score = SCORE_ALPHA * raw_score + (1 - SCORE_ALPHA) * old_score
        if new_score != old_score:
            scores.append((topic.id, worker, new_score))
    return Effect(scores=tuple(scores))
