"""Which epoch to serve, and whether this wallet may sign: everything that is checked before a forecast is made.

Invariant: the chain's account is compared with the ledger first. A sequence that is not in the ledger means that another
signer uses this key; nothing is signed until a person resolves it.
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
from forecastd.ledger.ledger import FINISHED_STATES, EpochKey, Ledger, SubmissionState
from forecastd.runtime.failpoints import failpoint

log = logging.getLogger(__name__)

CLOCK_TOLERANCE_SECONDS = 600.0  # between this machine's clock and the latest block
MAX_RECOVERED_EPOCHS = 24  # queried from the chain after a ledger was lost
NOT_SUBMITTED_REASON = "no submission was made while its window was open"  # stored in ledgers, and compared
MAX_MISSED_EPOCHS = 1000  # recorded at once after a long absence


@dataclass(frozen=True)
class OpenEpoch:
    """An epoch whose submission window is open. `last_height` is the last block of the window."""

    chain_id: str
    topic_id: int
    nonce: int
    wallet: str
    last_height: int

    @property
    def key(self) -> EpochKey:
        return self.chain_id, self.topic_id, self.nonce, self.wallet


def find_topic(chain: ChainClient, chain_id: str, topic_id: int) -> Topic:
    """The topic. Raises NeedsHuman when it does not exist."""
    topic = chain.topic(topic_id)
    if topic is None:
        raise NeedsHuman(f"Topic {topic_id} does not exist on {chain_id}. Check --topic-id.")
    return topic


def list_open_epochs(chain: ChainClient, topic: Topic, chain_id: str, wallet: str) -> tuple[int, list[OpenEpoch]]:
    """The chain's height, and the epochs for which the next block can still include a submission, newest first."""
    height = chain.height()
    nonces = sorted((n for n in chain.open_nonces(topic.id) if n <= height < topic.last_block(n)), reverse=True)
    return height, [OpenEpoch(chain_id, topic.id, nonce, wallet, topic.last_block(nonce)) for nonce in nonces]


def select_epoch(ledger: Ledger, epochs: list[OpenEpoch]) -> OpenEpoch:
    """The newest epoch that still needs work; the newest of all if none does."""
    for epoch in epochs:
        entry = ledger.find(epoch.key)
        if entry is None or entry.row.state not in FINISHED_STATES:
            return epoch
    return epochs[0]


def needs_registration(chain: ChainClient, chain_id: str, topic_id: int, wallet: str, *, allowed: bool) -> bool:
    """Whether the worker must be registered before it can submit. `allowed`: it may be registered, for a fee.

    Raises:
        NeedsHuman: it is not registered and that is not allowed, or it is registered but may not submit.
    """
    if not chain.is_registered(topic_id, wallet):
        if not allowed:
            raise NeedsHuman(
                f"Worker {wallet} is not registered for topic {topic_id} on {chain_id}. Run again with --register to "
                f"register it; the chain charges {chain.params().registration_fee} uallo for that, plus the gas fee."
            )
        return True
    if not chain.can_submit(topic_id, wallet):
        raise NeedsHuman(
            f"Worker {wallet} is registered but not permitted to submit to topic {topic_id} on {chain_id}. "
            "Ask the topic's owner to add it to the whitelist."
        )
    return False


def register_worker(
    chain: ChainClient, wallet: Wallet, ledger: Ledger, epoch: OpenEpoch, *, spending: FeePolicy, clock: Clock, wake: Event,
    topics_of_other_threads: frozenset[int] = frozenset(),
) -> int:  # fmt: skip
    """Register the worker for the epoch's topic; returns the cost in uallo. The ledger has the transaction first.

    `topics_of_other_threads`: topics that other threads serve with this wallet.

    Raises:
        NeedsHuman: the balance or the user's maximum does not cover it, or the chain refuses.
        RetryLater: no block included it in time.
    """

    def commit(sequence: int, tx_hash: str) -> None:
        failpoint("before register")
        ledger.record_sequence_use(
            epoch.chain_id, wallet.address, sequence, tx_hash, f"register for topic {epoch.topic_id}"
        )

    return register(
        chain, wallet, epoch.topic_id, spending, chain_id=epoch.chain_id, clock=clock, wake=wake, commit=commit,
        next_free_sequence=lambda sequence: ledger.next_free_sequence(
            epoch.key, sequence, topics_of_other_threads=topics_of_other_threads
        ),
    )  # fmt: skip


def check_account(chain: ChainClient, ledger: Ledger, chain_id: str, wallet: str) -> bool:
    """Compare the account's sequence with the ledger. An account seen for the first time is accepted as it is.

    Returns True when it is new to the ledger and has used sequences: the chain may then have epochs of an earlier ledger.

    Raises:
        NeedsHuman: transactions that are not in this ledger used sequences.
    """
    account = chain.account(wallet)
    sequence = 0 if account is None else account.sequence
    known_from = ledger.known_from(chain_id, wallet)
    if known_from is not None and sequence < known_from and is_local(chain_id):
        log.warning("The local chain %s was reset; the entries of the old chain are deleted from the ledger.", chain_id)
        ledger.delete_account(chain_id, wallet)
        known_from = None
    if known_from is None:
        ledger.set_known_from(chain_id, wallet, sequence)
        return sequence > 0
    unexplained = ledger.unexplained_sequences(chain_id, wallet, sequence)
    if unexplained:
        examples = ", ".join(map(str, unexplained[:5])) + (" and more" if len(unexplained) > 5 else "")
        raise NeedsHuman(
            f"Another worker signs with the key of {wallet}: the sequences {examples} are not in this ledger. "
            "Nothing is signed. Stop the other worker; if it was you, run `forecastd ledger trust`."
        )
    return False


def recover_from_chain(
    chain: ChainClient, ledger: Ledger, topic: Topic, chain_id: str, wallet: str, *, before_nonce: int, now: float
) -> int:
    """Record the latest epochs before `before_nonce` whose forecast by this worker the chain counts; returns how many."""
    recovered_count = 0
    for offset in range(1, MAX_RECOVERED_EPOCHS + 1):
        nonce = before_nonce - offset * topic.epoch_length
        if topic.epoch_length <= 0 or nonce <= 0:
            break
        own_inferences = [inference for inference in chain.inferences_at(topic.id, nonce) if inference.worker == wallet]
        if own_inferences:
            reason = "on the chain, but not in the ledger"
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
    """Record the epochs between the last one in the ledger and `before_nonce` as missed; returns how many.

    `chain_error`: why this process could not query the chain in the meantime.
    """
    last_nonce = ledger.newest_nonce_before(chain_id, wallet, topic.id, before_nonce)
    if last_nonce is None or topic.epoch_length <= 0:
        return 0
    missed_nonces = range(before_nonce - topic.epoch_length, last_nonce, -topic.epoch_length)[:MAX_MISSED_EPOCHS]
    reason = (
        f"{NOT_SUBMITTED_REASON}; the chain could not be queried: {chain_error}"
        if chain_error
        else NOT_SUBMITTED_REASON
    )
    for nonce in reversed(missed_nonces):
        ledger.record_unsigned((chain_id, topic.id, nonce, wallet), SubmissionState.MISSED, now, reason=reason)
    return len(missed_nonces)


def reference_time(chain: ChainClient, clock: Clock, chain_id: str) -> tuple[float, str]:
    """The time for checking the age of data, in unix seconds, and a warning when this machine's clock is wrong.

    With a clock that is a day off, a forecast would silently use yesterday's candles. The chain's time is exact to a
    minute, so it is used when the two differ by more than `CLOCK_TOLERANCE_SECONDS`. A local chain uses our own clock.
    """
    now = clock.now()
    if is_local(chain_id):
        return now, ""
    block_time = chain.block_time()
    if abs(now - block_time) <= CLOCK_TOLERANCE_SECONDS:
        return now, ""
    warning = (
        f"this machine's clock is wrong: it shows {to_iso(now)}, the latest block has {to_iso(block_time)}; "
        "using the chain's time"
    )
    log.warning("%s. Correct the clock.", warning)
    return block_time, warning
