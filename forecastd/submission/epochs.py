"""Which epoch to serve, and whether this wallet may be signed with at all: everything before a forecast is made.

The chain's account is compared with the ledger first. A sequence that the ledger cannot explain means that somebody else
signs with this key, and nothing is signed any more until a person has looked.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from threading import Event

from forecastd.chain.client import ChainClient
from forecastd.chain.networks import is_local
from forecastd.chain.submit import FeePolicy, register
from forecastd.chain.types import Topic
from forecastd.chain.wallet import Wallet
from forecastd.clock import Clock, to_iso
from forecastd.errors import NeedsHuman
from forecastd.ledger.ledger import SERVED_STATES, EpochKey, Ledger, SubmissionState
from forecastd.runtime.failpoints import failpoint

log = logging.getLogger(__name__)

CLOCK_TOLERANCE_SECONDS = 600.0  # seconds between this machine's clock and the latest block
MAX_RECOVERED_EPOCHS = 24  # epochs that the chain is asked about after a ledger was lost
NOT_SUBMITTED_REASON = "no submission was made while its window was open"
MAX_MISSED_EPOCHS = 1000  # missed epochs recorded at once after a long absence


@dataclass(frozen=True)
class OpenEpoch:
    """An epoch to serve: `last_height` is the last block of its submission window."""

    chain_id: str
    topic_id: int
    nonce: int
    wallet: str
    last_height: int

    @property
    def key(self) -> EpochKey:
        return self.chain_id, self.topic_id, self.nonce, self.wallet


def find_topic(chain: ChainClient, chain_id: str, topic_id: int) -> Topic:
    """The topic. Raises NeedsHuman when there is none of that number."""
    topic = chain.topic(topic_id)
    if topic is None:
        raise NeedsHuman(f"Topic {topic_id} does not exist on {chain_id}. Check --topic-id.")
    return topic


def list_open_epochs(chain: ChainClient, topic: Topic, chain_id: str, wallet: str) -> tuple[int, list[OpenEpoch]]:
    """The chain's height, and the epochs that the next block can still take a submission for, newest first."""
    height = chain.height()
    nonces = sorted((n for n in chain.open_nonces(topic.id) if n <= height < topic.last_block(n)), reverse=True)
    return height, [OpenEpoch(chain_id, topic.id, nonce, wallet, topic.last_block(nonce)) for nonce in nonces]


def select_epoch(ledger: Ledger, epochs: list[OpenEpoch]) -> OpenEpoch:
    """The newest epoch that is not served; the newest of all when every one is."""
    for epoch in epochs:
        entry = ledger.find(epoch.key)
        if entry is None or entry.row.state not in SERVED_STATES:
            return epoch
    return epochs[0]


def needs_registration(chain: ChainClient, chain_id: str, topic_id: int, wallet: str, *, allowed: bool) -> bool:
    """Whether the worker has to be registered before it can submit; `may` says that it may be, for a fee.

    Raises:
        NeedsHuman: it is not registered and may not be, or it is and is not permitted to submit.
    """
    if not chain.is_registered(topic_id, wallet):
        if not allowed:
            raise NeedsHuman(
                f"Worker {wallet} is not registered for topic {topic_id} on {chain_id}. Run once more with --register to "
                f"register it; the chain asks {chain.params().registration_fee} uallo for that, and the fee for gas."
            )
        return True
    if not chain.can_submit(topic_id, wallet):
        raise NeedsHuman(
            f"Worker {wallet} is registered but not permitted to submit to topic {topic_id} on {chain_id}. "
            "Ask the topic's owner to put it on the whitelist."
        )
    return False


def register_worker(
    chain: ChainClient, wallet: Wallet, ledger: Ledger, epoch: OpenEpoch, *, spending: FeePolicy, clock: Clock, wake: Event,
    excluded_topics: frozenset[int] = frozenset(),
) -> int:  # fmt: skip
    """Register the worker for the epoch's topic, its transaction on record first; what it cost in uallo.

    `elsewhere`: topics that other threads serve with this wallet.

    Raises:
        NeedsHuman: the balance or the user's maximum does not cover it, or the chain refuses.
        RetryLater: no block took it in time.
    """

    def commit(sequence: int, tx_hash: str) -> None:
        failpoint("before use")
        ledger.record_sequence_use(
            epoch.chain_id, wallet.address, sequence, tx_hash, f"register for topic {epoch.topic_id}"
        )

    return register(
        chain, wallet, epoch.topic_id, spending, chain_id=epoch.chain_id, clock=clock, wake=wake, commit=commit,
        next_free_sequence=lambda sequence: ledger.next_free_sequence(epoch.key, sequence, excluded_topics=excluded_topics),
    )  # fmt: skip


def check_account(chain: ChainClient, ledger: Ledger, chain_id: str, wallet: str) -> bool:
    """Compare the account's sequence with the ledger; an account seen for the first time is taken as it is.

    True when it is new to the ledger and has used sequences: then the chain may know what an earlier ledger knew.

    Raises:
        NeedsHuman: sequences were used by transactions that are not in this ledger.
    """
    account = chain.account(wallet)
    sequence = 0 if account is None else account.sequence
    known_from = ledger.known_from(chain_id, wallet)
    if known_from is not None and sequence < known_from and is_local(chain_id):
        log.warning("The local chain %s began anew; what the ledger knew of the old one is dropped.", chain_id)
        ledger.delete_account(chain_id, wallet)
        known_from = None
    if known_from is None:
        ledger.set_known_from(chain_id, wallet, sequence)
        return sequence > 0
    unexplained = ledger.unexplained_sequences(chain_id, wallet, sequence)
    if unexplained:
        examples = ", ".join(map(str, unexplained[:5])) + (" and more" if len(unexplained) > 5 else "")
        raise NeedsHuman(
            f"Somebody else signs with the key of {wallet}: the account used the sequences {examples} elsewhere. "
            "Nothing is signed. Stop the other worker; if it was you, run `forecastd ledger trust`."
        )
    return False


def recover_from_chain(
    chain: ChainClient, ledger: Ledger, topic: Topic, chain_id: str, wallet: str, *, before_nonce: int, now: float
) -> int:
    """Record the latest epochs before nonce `before` that the chain counts a forecast of this worker for; how many."""
    recovered_count = 0
    for offset in range(1, MAX_RECOVERED_EPOCHS + 1):
        nonce = before_nonce - offset * topic.epoch_length
        if topic.epoch_length <= 0 or nonce <= 0:
            break
        own_inferences = [inference for inference in chain.inferences_at(topic.id, nonce) if inference.worker == wallet]
        if own_inferences:
            reason = "the chain has it, the ledger did not"
            ledger.record_unsigned(
                (chain_id, topic.id, nonce, wallet),
                SubmissionState.ADMITTED,
                now,
                reason=reason,
                value=own_inferences[0].value,
            )
            recovered_count += 1
    return recovered_count


def record_missed_epochs(
    ledger: Ledger, topic: Topic, chain_id: str, wallet: str, *, before_nonce: int, now: float, chain_error: str = ""
) -> int:
    """Record the epochs between the last one in the ledger and `newest` as missed; how many there were.

    `trouble`: what kept this process from asking the chain in the meantime.
    """
    last_nonce = ledger.newest_nonce_before(chain_id, wallet, topic.id, before_nonce)
    if last_nonce is None or topic.epoch_length <= 0:
        return 0
    missed_nonces = range(before_nonce - topic.epoch_length, last_nonce, -topic.epoch_length)[:MAX_MISSED_EPOCHS]
    reason = (
        f"{NOT_SUBMITTED_REASON}; the chain could not be asked: {chain_error}" if chain_error else NOT_SUBMITTED_REASON
    )
    for nonce in reversed(missed_nonces):
        ledger.record_unsigned((chain_id, topic.id, nonce, wallet), SubmissionState.MISSED, now, reason=reason)
    return len(missed_nonces)


def reference_time(chain: ChainClient, clock: Clock, chain_id: str) -> tuple[float, str]:
    """The time that data is judged by, in unix seconds, and a warning where this machine's clock is not to be believed.

    A clock that is off by a day would forecast from yesterday's candles without anybody noticing. The chain's clock is
    right to the minute, so where the two are far apart it is the chain's that counts. A local chain has no clock but ours.
    """
    now = clock.now()
    if is_local(chain_id):
        return now, ""
    block_time = chain.block_time()
    if abs(now - block_time) <= CLOCK_TOLERANCE_SECONDS:
        return now, ""
    warning = f"this machine's clock says {to_iso(now)}, the chain's latest block {to_iso(block_time)}: the chain's time is used"
    log.warning("%s. Set the clock.", warning)
    return block_time, warning
