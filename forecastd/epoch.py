"""Which epoch to serve, and whether this wallet may be signed with at all: everything before a forecast is made.

The chain's account is compared with the ledger first. A sequence that the ledger cannot explain means that somebody else
signs with this key, and nothing is signed any more until a person has looked.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from threading import Event

from forecastd.chain.answers import Topic
from forecastd.chain.client import ChainClient
from forecastd.chain.networks import is_local
from forecastd.chain.submit import Spending, register
from forecastd.chain.wallet import Wallet
from forecastd.clock import Clock, iso
from forecastd.errors import NeedsHuman
from forecastd.failpoints import failpoint
from forecastd.ledger import SERVED, Key, Ledger, State

log = logging.getLogger(__name__)

CLOCK_TOLERANCE = 600.0  # seconds between this machine's clock and the latest block
MOST_REBUILT = 24  # epochs that the chain is asked about after a ledger was lost
UNSERVED = "no submission was made while its window was open"
MOST_NOTED = 1000  # missed epochs recorded at once after a long absence


@dataclass(frozen=True)
class Epoch:
    """An epoch to serve: `last_height` is the last block of its submission window."""

    chain_id: str
    topic_id: int
    nonce: int
    wallet: str
    last_height: int

    @property
    def key(self) -> Key:
        return self.chain_id, self.topic_id, self.nonce, self.wallet


def find_topic(chain: ChainClient, chain_id: str, topic_id: int) -> Topic:
    """The topic. Raises NeedsHuman when there is none of that number."""
    topic = chain.topic(topic_id)
    if topic is None:
        raise NeedsHuman(f"Topic {topic_id} does not exist on {chain_id}. Check --topic-id.")
    return topic


def open_epochs(chain: ChainClient, topic: Topic, chain_id: str, wallet: str) -> tuple[int, list[Epoch]]:
    """The chain's height, and the epochs that the next block can still take a submission for, newest first."""
    height = chain.height()
    nonces = sorted((n for n in chain.open_nonces(topic.id) if n <= height < topic.last_block(n)), reverse=True)
    return height, [Epoch(chain_id, topic.id, nonce, wallet, topic.last_block(nonce)) for nonce in nonces]


def choose(ledger: Ledger, epochs: list[Epoch]) -> Epoch:
    """The newest epoch that is not served; the newest of all when every one is."""
    for epoch in epochs:
        entry = ledger.find(epoch.key)
        if entry is None or entry.row.state not in SERVED:
            return epoch
    return epochs[0]


def needs_registering(chain: ChainClient, chain_id: str, topic_id: int, wallet: str, *, may: bool) -> bool:
    """Whether the worker has to be registered before it can submit; `may` says that it may be, for a fee.

    Raises:
        NeedsHuman: it is not registered and may not be, or it is and is not permitted to submit.
    """
    if not chain.is_registered(topic_id, wallet):
        if not may:
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


def enrol(
    chain: ChainClient, wallet: Wallet, ledger: Ledger, epoch: Epoch, *, spending: Spending, clock: Clock, wake: Event,
    elsewhere: frozenset[int] = frozenset(),
) -> int:  # fmt: skip
    """Register the worker for the epoch's topic, its transaction on record first; what it cost in uallo.

    `elsewhere`: topics that other threads serve with this wallet.

    Raises:
        NeedsHuman: the balance or the user's maximum does not cover it, or the chain refuses.
        RetryLater: no block took it in time.
    """

    def commit(sequence: int, tx_hash: str) -> None:
        failpoint("before use")
        ledger.note_use(epoch.chain_id, wallet.address, sequence, tx_hash, f"register for topic {epoch.topic_id}")

    return register(
        chain, wallet, epoch.topic_id, spending, chain_id=epoch.chain_id, clock=clock, wake=wake, commit=commit,
        free=lambda sequence: ledger.free_sequence(epoch.key, sequence, elsewhere=elsewhere),
    )  # fmt: skip


def check_account(chain: ChainClient, ledger: Ledger, chain_id: str, wallet: str) -> bool:
    """Compare the account's sequence with the ledger; an account seen for the first time is taken as it is.

    True when it is new to the ledger and has used sequences: then the chain may know what an earlier ledger knew.

    Raises:
        NeedsHuman: sequences were used by transactions that are not in this ledger.
    """
    account = chain.account(wallet)
    sequence = 0 if account is None else account.sequence
    known = ledger.known_from(chain_id, wallet)
    if known is not None and sequence < known and is_local(chain_id):
        log.warning("The local chain %s began anew; what the ledger knew of the old one is dropped.", chain_id)
        ledger.forget(chain_id, wallet)
        known = None
    if known is None:
        ledger.know_from(chain_id, wallet, sequence)
        return sequence > 0
    unknown = ledger.unexplained(chain_id, wallet, sequence)
    if unknown:
        first = ", ".join(map(str, unknown[:5])) + (" and more" if len(unknown) > 5 else "")
        raise NeedsHuman(
            f"Somebody else signs with the key of {wallet}: the account used the sequences {first} elsewhere. "
            "Nothing is signed. Stop the other worker; if it was you, run `forecastd ledger trust`."
        )
    return False


def rebuild(
    chain: ChainClient, ledger: Ledger, topic: Topic, chain_id: str, wallet: str, *, before: int, now: float
) -> int:
    """Record the latest epochs before nonce `before` that the chain counts a forecast of this worker for; how many."""
    found = 0
    for number in range(1, MOST_REBUILT + 1):
        nonce = before - number * topic.epoch_length
        if topic.epoch_length <= 0 or nonce <= 0:
            break
        mine = [one for one in chain.inferences_at(topic.id, nonce) if one.worker == wallet]
        if mine:
            reason = "the chain has it, the ledger did not"
            ledger.adopt((chain_id, topic.id, nonce, wallet), State.ADMITTED, now, reason=reason, value=mine[0].value)
            found += 1
    return found


def note_missed(
    ledger: Ledger, topic: Topic, chain_id: str, wallet: str, *, newest: int, now: float, trouble: str = ""
) -> int:
    """Record the epochs between the last one in the ledger and `newest` as missed; how many there were.

    `trouble`: what kept this process from asking the chain in the meantime.
    """
    before = ledger.newest_before(chain_id, wallet, topic.id, newest)
    if before is None or topic.epoch_length <= 0:
        return 0
    missed = range(newest - topic.epoch_length, before, -topic.epoch_length)[:MOST_NOTED]
    reason = f"{UNSERVED}; the chain could not be asked: {trouble}" if trouble else UNSERVED
    for nonce in reversed(missed):
        ledger.adopt((chain_id, topic.id, nonce, wallet), State.MISSED, now, reason=reason)
    return len(missed)


def reference_time(chain: ChainClient, clock: Clock, chain_id: str) -> tuple[float, str]:
    """The time that data is judged by, in unix seconds, and a warning where this machine's clock is not to be believed.

    A clock that is off by a day would forecast from yesterday's candles without anybody noticing. The chain's clock is
    right to the minute, so where the two are far apart it is the chain's that counts. A local chain has no clock but ours.
    """
    now = clock.now()
    if is_local(chain_id):
        return now, ""
    block = chain.block_time()
    if abs(now - block) <= CLOCK_TOLERANCE:
        return now, ""
    told = f"this machine's clock says {iso(now)}, the chain's latest block {iso(block)}: the chain's time is used"
    log.warning("%s. Set the clock.", told)
    return block, told
