"""The wallet's account on the chain: compared with the ledger, registered for a topic, recovered after a lost ledger.

Invariant: the chain's account is compared with the ledger before anything is signed. A sequence that is not in the ledger
means that another signer uses this key; nothing is signed until a person resolves it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from forecastd.chain.client import ChainClient
from forecastd.chain.networks import is_local
from forecastd.chain.submit import register
from forecastd.chain.types import Topic
from forecastd.clock import Clock
from forecastd.errors import NeedsHuman
from forecastd.ledger.ledger import Ledger, SubmissionState
from forecastd.ledger.snapshot import open_snapshot
from forecastd.runtime.failpoints import failpoint
from forecastd.settings import Settings
from forecastd.submission.connect import chain_id_for, open_endpoints
from forecastd.submission.context import CycleContext

log = logging.getLogger(__name__)

MAX_RECOVERED_EPOCHS = 24  # queried from the chain after a ledger was lost
RECOVERED_REASON = "on the chain, but not in the ledger"


@dataclass(frozen=True)
class AccountStatus:
    """A wallet's next sequence on the chain, compared with the ledger.

    `unexplained`: sequences that were used, but not by this ledger. `known_from`: the first sequence from which the ledger is
    complete; None for an account that it has not seen.
    """

    chain_id: str
    wallet: str
    sequence: int
    known_from: int | None
    unexplained: tuple[int, ...]

    @property
    def was_reset(self) -> bool:
        """Whether the account's sequence is lower than the ledger knows, as after a reset of the chain."""
        return self.known_from is not None and self.sequence < self.known_from


def compare_account(ledger: Ledger, chain: ChainClient, chain_id: str, wallet: str) -> AccountStatus:
    """Compare a wallet's account on the chain with the ledger. Changes nothing.

    Raises:
        RetryLater: no endpoint answered.
    """
    account = chain.account(wallet)
    sequence = 0 if account is None else account.sequence
    known_from = ledger.known_from(chain_id, wallet)
    return AccountStatus(
        chain_id, wallet, sequence, known_from, tuple(ledger.unexplained_sequences(chain_id, wallet, sequence))
    )


def check_account(
    chain: ChainClient,
    ledger: Ledger,
    chain_id: str,
    wallet: str,
    is_lost_submission: Callable[[], bool] = lambda: False,
) -> bool:
    """Compare the account's sequence with the ledger. An account seen for the first time is accepted as it is.

    Returns True when it was accepted and has used sequences: the chain may then have epochs of an earlier ledger.
    `is_lost_submission`: whether the sequences that the ledger does not have are those of an earlier ledger.

    Raises:
        NeedsHuman: transactions that are not in this ledger used sequences.
    """
    account = compare_account(ledger, chain, chain_id, wallet)
    if account.was_reset and is_local(chain_id):
        log.warning("The local chain %s was reset; the entries of the old chain are deleted from the ledger.", chain_id)
        ledger.delete_account(chain_id, wallet)
    elif account.unexplained and not is_lost_submission():
        examples = ", ".join(map(str, account.unexplained[:5])) + (" and more" if len(account.unexplained) > 5 else "")
        raise NeedsHuman(
            f"Another worker signs with the key of {wallet}: the sequences {examples} are not in this ledger. "
            "Nothing is signed. Stop the other worker; if it was you, run `forecastd ledger trust`."
        )
    elif account.known_from is not None and not account.unexplained:
        return False
    trust_account(ledger, account)
    return account.sequence > 0


def has_lost_submission(context: CycleContext) -> bool:
    """Whether the chain has a forecast of this worker that an earlier, lost ledger signed.

    It was in flight when this ledger was made, so this ledger has signed nothing yet.
    """
    resources, ledger = context.resources, context.ledger
    if ledger.used_sequences(resources.chain_id, resources.wallet.address):
        return False
    latest = context.chain.latest_inference(*resources.key)
    return latest is not None and ledger.find(resources.epoch_key(latest.nonce)) is None


def accept_before_first_signature(context: CycleContext, sequence: int) -> None:
    """Accept the sequences below `sequence`, unless the ledger has signed before.

    A transaction of an earlier, lost ledger may have been included since the account was compared.
    """
    chain_id, wallet = context.resources.chain_id, context.resources.wallet.address
    if not context.ledger.used_sequences(chain_id, wallet):
        context.ledger.set_known_from(chain_id, wallet, sequence)


def needs_registration(context: CycleContext) -> bool:
    """Whether the worker must be registered before it can submit.

    Raises:
        NeedsHuman: it is not registered and may not be, or it is registered but may not submit.
    """
    resources, chain = context.resources, context.chain
    topic_id, wallet = resources.key
    if not chain.is_registered(topic_id, wallet):
        if not resources.may_register:
            raise NeedsHuman(
                f"Worker {wallet} is not registered for topic {topic_id} on {resources.chain_id}. Run again with "
                f"--register to register it; the chain charges {chain.params().registration_fee} uallo for that, plus "
                "the gas fee."
            )
        return True
    if not chain.can_submit(topic_id, wallet):
        raise NeedsHuman(
            f"Worker {wallet} is registered but not permitted to submit to topic {topic_id} on {resources.chain_id}. "
            "Ask the topic's owner to add it to the whitelist."
        )
    return False


def register_worker(context: CycleContext, nonce: int) -> int:
    """Register the worker for the topic, before it signs for `nonce`; returns the cost in uallo.

    The ledger has the transaction first.

    Raises:
        NeedsHuman: the balance or the user's maximum does not cover it, or the chain refuses.
        RetryLater: no block included it in time.
    """
    resources, ledger = context.resources, context.ledger

    def next_free_sequence(minimum: int) -> int:
        key, other_topics = resources.epoch_key(nonce), resources.topics_of_other_threads
        return ledger.next_free_sequence(key, minimum, topics_of_other_threads=other_topics)

    def commit(sequence: int, tx_hash: str) -> None:
        failpoint("before register")
        purpose = f"register for topic {resources.topic_id}"
        accept_before_first_signature(context, sequence)
        ledger.record_sequence_use(resources.chain_id, resources.wallet.address, sequence, tx_hash, purpose)

    return register(
        context.chain, resources.wallet, resources.topic_id, resources.fee_policy, chain_id=resources.chain_id,
        clock=context.clock, wake=context.wake, next_free_sequence=next_free_sequence, commit=commit,
    )  # fmt: skip


def recover_from_chain(context: CycleContext, topic: Topic, before_nonce: int) -> int:
    """Record the latest epochs before `before_nonce` whose forecast by this worker the chain counts; returns how many."""
    recovered_count = 0
    for offset in range(1, MAX_RECOVERED_EPOCHS + 1):
        nonce = before_nonce - offset * topic.epoch_length
        if topic.epoch_length <= 0 or nonce <= 0:
            break
        for inference in context.chain.inferences_at(topic.id, nonce):
            if inference.worker == context.resources.wallet.address:
                recovered_count += record_recovered(context, nonce, inference.value)
    return recovered_count


def record_recovered(context: CycleContext, nonce: int, value: str) -> bool:
    """Record a forecast of this worker that the chain has; return whether the ledger did not have it."""
    key, now = context.resources.epoch_key(nonce), context.clock.now()
    entry = context.ledger.record_unsigned(key, SubmissionState.ADMITTED, now, reason=RECOVERED_REASON, value=value)
    return entry is not None


@contextmanager
def open_unexplained_accounts(settings: Settings, clock: Clock) -> Iterator[tuple[Ledger, list[AccountStatus]]]:
    """Open the ledger, with those of its accounts on this chain for which another signer used sequences.

    Raises:
        LedgerNotFound: there is no ledger.
        RetryLater: a worker holds it, or no endpoint answered.
    """
    path, chain_id = settings.state_path / "ledger.sqlite", chain_id_for(settings)
    with open_snapshot(path) as snapshot:  # opening the ledger itself could create or rename it
        wallets = [wallet for account_chain_id, wallet in snapshot.accounts() if account_chain_id == chain_id]
    with Ledger(path) as ledger, open_endpoints(settings, clock, chain_id) as chain:
        accounts = [compare_account(ledger, chain, chain.chain_id(), wallet) for wallet in wallets]
        yield ledger, [account for account in accounts if account.unexplained]


def trust_account(ledger: Ledger, account: AccountStatus) -> None:
    """Accept the account's sequence: the unexplained ones are no longer checked.

    Raises:
        RetryLater: the ledger could not be written.
    """
    ledger.set_known_from(account.chain_id, account.wallet, account.sequence)


def format_ranges(numbers: tuple[int, ...], max_ranges: int = 8) -> str:
    """Numbers as ranges: `3, 5-9 and 12 more`, with at most `max_ranges` ranges."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    text = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges[:max_ranges])
    remaining = sum(high - low + 1 for low, high in ranges[max_ranges:])
    return f"{text} and {remaining} more" if remaining else text
