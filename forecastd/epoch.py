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
from forecastd.clock import Clock
from forecastd.errors import NeedsHuman
from forecastd.failpoints import failpoint
from forecastd.ledger import SERVED, Key, Ledger, State
from forecastd.outbox import OVERTAKEN

log = logging.getLogger(__name__)

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
    """The chain's height, and the epochs whose submission window is open at it, newest first."""
    height, window = chain.height(), topic.worker_submission_window
    nonces = sorted((n for n in chain.open_nonces(topic.id) if n <= height < n + window), reverse=True)
    return height, [Epoch(chain_id, topic.id, nonce, wallet, nonce + window - 1) for nonce in nonces]


def choose(ledger: Ledger, epochs: list[Epoch]) -> Epoch:
    """The newest epoch that is not served; the newest of all when every one is."""
    for epoch in epochs:
        entry = ledger.find(epoch.key)
        if entry is None or entry.row.state not in SERVED:
            return epoch
    return epochs[0]


def allow(
    chain: ChainClient,
    wallet: Wallet,
    ledger: Ledger,
    *,
    chain_id: str,
    topic_id: int,
    spending: Spending | None,
    clock: Clock,
    wake: Event,
) -> int | None:
    """Make sure that the worker is registered and may submit; the fee in uallo when it was registered just now.

    `spending` of None: do not register.

    Raises:
        NeedsHuman: it is not registered and may not be, or not permitted to submit.
    """  # fmt: skip
    paid: int | None = None
    if not chain.is_registered(topic_id, wallet.address):
        if spending is None:
            raise NeedsHuman(
                f"Worker {wallet.address} is not registered for topic {topic_id} on {chain_id}. "
                "Run once more with --register to register it (this costs the chain's registration fee)."
            )

        def commit(sequence: int, tx_hash: str) -> None:
            failpoint("before use")
            ledger.note_use(chain_id, wallet.address, sequence, tx_hash, f"register for topic {topic_id}")

        paid = register(chain, wallet, topic_id, spending, chain_id=chain_id, clock=clock, wake=wake, commit=commit)
    if not chain.can_submit(topic_id, wallet.address):
        raise NeedsHuman(
            f"Worker {wallet.address} is registered but not permitted to submit to topic {topic_id} on {chain_id}. "
            "Ask the topic's owner to put it on the whitelist."
        )
    return paid


def check_account(chain: ChainClient, ledger: Ledger, chain_id: str, wallet: str) -> None:
    """Compare the account's sequence with the ledger; an account seen for the first time is taken as it is.

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
        return
    unknown = set(range(known, sequence)) - ledger.used_sequences(chain_id, wallet)
    for entry in ledger.entries(chain_id, wallet):
        if entry.row.reason == OVERTAKEN and entry.row.sequence > known:
            unknown.add(entry.row.sequence)
    if unknown:
        first = ", ".join(map(str, sorted(unknown)[:5])) + (" and more" if len(unknown) > 5 else "")
        raise NeedsHuman(
            f"Somebody else signs with the key of {wallet}: the account used the sequences {first} elsewhere. "
            "Nothing is signed. Stop the other worker; if it was you, run `forecastd ledger trust`."
        )


def note_missed(ledger: Ledger, topic: Topic, chain_id: str, wallet: str, *, newest: int, now: float) -> int:
    """Record the epochs between the last one in the ledger and `newest` as missed; how many there were."""
    mine = [entry.nonce for entry in ledger.entries(chain_id, wallet) if entry.key[1] == topic.id]
    before = [nonce for nonce in mine if nonce < newest]
    if not before or topic.epoch_length <= 0:
        return 0
    passed = range(newest - topic.epoch_length, max(before), -topic.epoch_length)
    missed = [nonce for nonce in passed if nonce not in mine][:MOST_NOTED]
    for nonce in reversed(missed):
        ledger.adopt(
            (chain_id, topic.id, nonce, wallet),
            State.MISSED,
            now,
            reason="no submission was made while its window was open",
        )
    return len(missed)
