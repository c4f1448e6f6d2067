"""Who counts for a nonce: the active set, its scores, and what they become when a window closes. Pure functions.

A payload is stored while the set has room, or when its worker's score is better than the lowest in the set, which is then
evicted. Otherwise the transaction succeeds and nothing is stored: the worker is passive. Source: allora-chain
`x/emissions/keeper`. There are no reputers here, so the mean of the set stands in for the truth.
"""

from __future__ import annotations

from forecastd.localnet.state import INITIAL_SCORE, Effect, State, Stored
from forecastd.localnet.topics import TopicSpec

SCORE_ALPHA = 0.1  # of the moving average: the chain's `merit_sortition_alpha`


def lowest(state: State, topic_id: int, nonce: int) -> str | None:
    """The worker with the lowest score in a nonce's set; None when the set is empty."""
    active = state.inferences.get((topic_id, nonce), {})
    return min(active, key=lambda worker: (state.score(topic_id, worker), worker), default=None)


def admit(state: State, topic: TopicSpec, one: Stored) -> Effect:
    """What becomes of an inference that is right in itself; an effect of nothing when its worker is passive."""
    active = state.inferences.get((topic.id, one.nonce), {})
    if len(active) < topic.active_set:
        return Effect(inference=one)
    last = lowest(state, topic.id, one.nonce)
    if last is None or state.score(topic.id, one.worker) <= state.score(topic.id, last):
        return Effect()
    return Effect(inference=one, evicted=active[last])


def settle(state: State, topic: TopicSpec, nonce: int) -> Effect:
    """The scores after a window closed: towards what the active were worth, and back towards the start for the others."""
    active = state.inferences.get((topic.id, nonce), {})
    values = {worker: float(one.value) for worker, one in active.items()}
    mean = sum(values.values()) / len(values) if values else 0.0
    workers = {worker for topic_id, worker in state.workers if topic_id == topic.id}
    workers |= {worker for topic_id, worker in state.scores if topic_id == topic.id}
    scores = []
    for worker in sorted(workers):
        raw = -((values[worker] - mean) ** 2) if worker in values else INITIAL_SCORE
        before = state.score(topic.id, worker)
        after = SCORE_ALPHA * raw + (1 - SCORE_ALPHA) * before
        if after != before:
            scores.append((topic.id, worker, after))
    return Effect(scores=tuple(scores))
