"""Checks of the chain as this worker needs it: endpoints, money, topics, the account, the clock. Nothing is sent.

Each asks and then hands what it was told to a pure function that judges it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

from forecastd.chain.client import ChainClient
from forecastd.chain.endpoint_health import EndpointState
from forecastd.chain.endpoint_pool import EndpointPool, EndpointReport
from forecastd.chain.fees import quote_fee
from forecastd.chain.networks import NETWORKS, is_local
from forecastd.clock import Clock, to_iso
from forecastd.doctor.finding import Finding, Level
from forecastd.errors import ForecastdError
from forecastd.ledger.snapshot import LedgerNotFound, open_snapshot
from forecastd.settings import Settings
from forecastd.submission.account import compare_account, format_ranges

LOW_EPOCHS, MAX_SHOWN_EPOCHS = 100, 100_000
MAX_CLOCK_SKEW, DAY = 30.0, 86_400.0  # seconds
_UALLO_PER_ALLO = Decimal(10) ** 18
USABLE_STATES = (EndpointState.OK, EndpointState.BEHIND)


def evaluate_endpoints(reports: Sequence[EndpointReport]) -> list[Finding]:
    """A line an endpoint. One that cannot be used is a warning while another can."""
    usable = any(report.state in USABLE_STATES for report in reports)
    findings = []
    for report in reports:
        latency = "" if report.latency is None else f", {1000 * report.latency:.0f} ms"
        message = (
            f"{report.endpoint}: {report.chain_id or 'chain not told'}, height {report.height or 'not told'}{latency}"
        )
        if report.state is EndpointState.OK:
            behind = f", {report.lag} blocks behind" if report.lag else ""
            findings.append(Finding("endpoint", Level.OK, message + behind))
        elif report.state is EndpointState.BEHIND:
            fix = "Remove it from RPC_ENDPOINTS, or wait until it has caught up."
            findings.append(Finding("endpoint", Level.WARN, f"{message}, {report.lag} blocks behind the others", fix))
        else:
            reason = report.error or "it gave no answer"
            fix = "Correct RPC_ENDPOINTS or ALLORA_NETWORK." if report.state is EndpointState.WRONG_CHAIN else (
                "Check RPC_ENDPOINTS, the network and the node."
            )  # fmt: skip
            level = Level.WARN if usable else Level.FAIL
            findings.append(Finding("endpoint", level, f"{report.endpoint}: {report.state}, {reason}", fix))
    return findings


def check_balance(chain: ChainClient, settings: Settings, chain_id: str, address: str, ledger: Path) -> list[Finding]:
    """The balance, and for how many epochs it lasts at the last fee, or at what the chain asks now."""
    fee, fee_source = _last_fee(ledger, chain_id, address), "the last fee"
    if fee is None:
        floor = NETWORKS[settings.allora_network].gas_price_floor
        fee, fee_source = (
            quote_fee(None, chain.gas_price(), floor=floor, tier=settings.fee_tier).fee_uallo,
            "the fee as of now",
        )
    return [evaluate_balance(address, chain.balance(address), fee + chain.params().data_sending_fee, fee_source)]


def _last_fee(ledger: Path, chain_id: str, address: str) -> int | None:
    """What the wallet's last submission paid; None without one, or when the ledger tells nothing (its own check says why)."""
    with suppress(ForecastdError), open_snapshot(ledger) as copy:
        for entry in copy.newest_entries():
            if entry.key[0] == chain_id and entry.key[3] == address and (attempts := copy.attempts(entry.key)):
                return attempts[-1].fee_uallo
    return None


def evaluate_balance(address: str, balance: int, epoch_cost: int, fee_source: str) -> Finding:
    """The runway of `balance` at `each` uallo an epoch; `which` says where that figure comes from."""
    message = f"{Decimal(balance) / _UALLO_PER_ALLO:.6f} ALLO"
    if epoch_cost <= 0:
        return Finding("balance", Level.OK, f"{message}; submitting costs nothing here")
    epochs = balance // epoch_cost
    epoch_count = f"{epochs}" if epochs < MAX_SHOWN_EPOCHS else f"more than {MAX_SHOWN_EPOCHS}"
    message = (
        f"{message}, enough for {epoch_count} epochs at {epoch_cost} uallo ({fee_source} and the chain's data fee)"
    )
    if epochs >= LOW_EPOCHS:
        return Finding("balance", Level.OK, message)
    return Finding("balance", Level.WARN if epochs else Level.FAIL, message, f"Send some ALLO to {address}.")


def check_topic(
    chain: ChainClient, settings: Settings, chain_id: str, address: str | None, *, register: bool = False
) -> list[Finding]:
    """Whether the topic exists and issues nonces, and whether the worker is registered and may submit.

    `register`: the next cycle may register it.
    """
    topic_id = settings.topic_id
    topic = chain.topic(topic_id)
    if topic is None:
        return [
            Finding("topic", Level.FAIL, f"{topic_id} does not exist on {chain_id}", "Correct TOPIC_ID or --topic-id.")
        ]
    lengths = f"epoch of {topic.epoch_length} blocks, window of {topic.worker_submission_window}"
    if chain.is_topic_active(topic_id):
        findings = [Finding("topic", Level.OK, f"{topic_id} is active: {lengths}")]
    else:
        fix = "Wait until it is funded again, or choose another."
        findings = [Finding("topic", Level.WARN, f"{topic_id} is not active, so it opens no submission window", fix)]
    if address is None:
        return [
            *findings,
            Finding("topic", Level.SKIP, f"registration for {topic_id} not looked at: there is no wallet"),
        ]
    if not chain.can_submit(topic_id, address):
        fix = "Ask the topic's owner to put it on the whitelist."
        findings.append(Finding("topic", Level.FAIL, f"{address} is not permitted to submit to {topic_id}", fix))
    if chain.is_registered(topic_id, address):
        return [*findings, Finding("topic", Level.OK, f"{address} is registered for {topic_id}")]
    if is_local(chain_id):
        message = f"{address} is not registered for {topic_id}; the next cycle does it, the local network is free"
        return [*findings, Finding("topic", Level.OK, message)]
    if register:
        message = (
            f"{address} is not registered for {topic_id}; the next cycle does it, for the chain's registration fee"
        )
        return [*findings, Finding("topic", Level.OK, message)]
    fix = "Run `forecastd --once --register`; it costs the chain's registration fee."
    return [*findings, Finding("topic", Level.FAIL, f"{address} is not registered for {topic_id}", fix)]


def check_sequence(chain: ChainClient, chain_id: str, address: str, ledger: Path) -> list[Finding]:
    """The account's sequence against the ledger: whether somebody else signs with the key."""
    try:
        with open_snapshot(ledger) as copy:
            account = compare_account(copy, chain, chain_id, address)
    except LedgerNotFound:
        account = None
    if account is None or account.known_from is None:
        return [Finding("sequence", Level.OK, "not in the ledger yet; the first run takes the account as it is")]
    message = f"next is {account.sequence}"
    if account.unexplained:
        fix = "Stop the other worker; if it was you, run `forecastd ledger trust`."
        message = f"{message}; somebody else signed with this key: {format_ranges(account.unexplained)}. Nothing will be signed"
        return [Finding("sequence", Level.FAIL, message, fix)]
    if account.was_reset:
        message = f"{message}, and the ledger knows the account from {account.known_from} on"
        if is_local(chain_id):
            return [Finding("sequence", Level.OK, f"{message}: the local chain began anew")]
        return [Finding("sequence", Level.WARN, message, "Look for an endpoint that is far behind or was reset.")]
    return [Finding("sequence", Level.OK, f"{message}, the ledger knows all from {account.known_from} on")]


def check_clock(chain: ChainClient, clock: Clock) -> list[Finding]:
    """This machine's clock against the time of the latest block."""
    block_time = chain.block_time()
    return [evaluate_clock(clock.now(), block_time)]


def evaluate_clock(now: float, block_time: float) -> Finding:
    """Wall time `now` against a block's, both unix seconds. A chain that stands still looks like a clock ahead."""
    offset = now - block_time
    message = f"{to_iso(now)}, {abs(offset):.0f} s {'after' if offset >= 0 else 'before'} the latest block"
    if abs(offset) <= MAX_CLOCK_SKEW:
        return Finding("clock", Level.OK, message)
    fix = "Correct the clock (chrony or timedatectl set-ntp true)"
    fix += "; or the chain or the endpoint stands still, then look there." if offset > 0 else "."
    if abs(offset) > DAY:
        return Finding(
            "clock", Level.FAIL, f"{message}, {abs(offset) / DAY:.1f} days: candles would be judged wrongly", fix
        )
    return Finding("clock", Level.WARN, message, fix)


def check_endpoints(chain: EndpointPool) -> tuple[list[Finding], bool]:
    """A line an endpoint, and whether any can be asked for the rest. Items given twice in the list are told too."""
    reports = chain.inspect()
    duplicates = [Finding("endpoint", Level.WARN, sentence, "Remove one.") for sentence in chain.warnings]
    return [*evaluate_endpoints(reports), *duplicates], any(report.state in USABLE_STATES for report in reports)
