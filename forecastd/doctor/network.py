"""Checks of the chain: endpoints, balance, topics, account sequence and clock. Nothing is sent.

Each check queries the chain and passes the result to a pure function, which evaluates it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from decimal import Decimal
from functools import partial
from pathlib import Path

from forecastd.chain.client import ChainClient
from forecastd.chain.endpoint_health import EndpointState
from forecastd.chain.endpoint_pool import EndpointPool, EndpointReport
from forecastd.chain.fees import FeePolicy
from forecastd.chain.networks import NETWORKS, is_local
from forecastd.clock import Clock, to_iso
from forecastd.doctor.finding import DoctorCheck, Finding, Level, failure, ok, skipped, warning
from forecastd.errors import ForecastdError
from forecastd.ledger.snapshot import LedgerNotFound, open_snapshot
from forecastd.runtime.formatting import format_count, format_duration
from forecastd.settings import Settings
from forecastd.submission.account import compare_account, format_ranges

CHAIN_SECONDS, CHAIN_FIX = 25.0, "Check the endpoint lines above, and run the doctor again."
LOW_EPOCHS, MAX_SHOWN_EPOCHS = 100, 100_000
MAX_CLOCK_SKEW, DAY = 30.0, 86_400.0  # seconds
_UALLO_PER_ALLO = Decimal(10) ** 18
USABLE_STATES = (EndpointState.OK, EndpointState.BEHIND)


def evaluate_endpoints(reports: Sequence[EndpointReport]) -> list[Finding]:
    """One finding per endpoint. An unusable endpoint is a warning while another one is usable."""
    usable = any(report.state in USABLE_STATES for report in reports)
    findings = []
    for report in reports:
        latency = "" if report.latency is None else f", {1000 * report.latency:.0f} ms"
        message = (
            f"{report.endpoint}: {report.chain_id or 'chain unknown'}, height {report.height or 'unknown'}{latency}"
        )
        if report.state is EndpointState.OK:
            behind = f", {format_count(report.lag, 'block')} behind" if report.lag else ""
            findings.append(ok("endpoint", message + behind))
        elif report.state is EndpointState.BEHIND:
            fix = "Remove it from RPC_ENDPOINTS, or wait until it has caught up."
            findings.append(
                warning("endpoint", f"{message}, {format_count(report.lag, 'block')} behind the others", fix)
            )
        else:
            reason = report.error or "no response"
            fix = "Correct RPC_ENDPOINTS or ALLORA_NETWORK." if report.state is EndpointState.WRONG_CHAIN else (
                "Check RPC_ENDPOINTS, the network and the node."
            )  # fmt: skip
            level = Level.WARN if usable else Level.FAIL
            findings.append(Finding("endpoint", level, f"{report.endpoint}: {report.state}, {reason}", fix))
    return findings


def check_balance(chain: ChainClient, settings: Settings, chain_id: str, address: str, ledger: Path) -> list[Finding]:
    """The balance, and how many epochs it pays at the last fee, or at the current fee without one."""
    fee, fee_source = _last_fee(ledger, chain_id, address), "the last fee"
    if fee is None:
        floor = NETWORKS[settings.chain.network].gas_price_floor
        fee = FeePolicy(floor, settings.fees.tier).quote(None, chain.gas_price()).fee_uallo
        fee_source = "the current fee"
    return [evaluate_balance(address, chain.balance(address), fee + chain.params().data_sending_fee, fee_source)]


def _last_fee(ledger: Path, chain_id: str, address: str) -> int | None:
    """The fee of the wallet's last submission; None without one, or if the ledger is unreadable (its own check)."""
    with suppress(ForecastdError), open_snapshot(ledger) as copy:
        for entry in copy.newest_entries():
            if entry.key[0] == chain_id and entry.key[3] == address and (attempts := copy.attempts(entry.key)):
                return attempts[-1].fee_uallo
    return None


def evaluate_balance(address: str, balance: int, epoch_cost: int, fee_source: str) -> Finding:
    """How many epochs `balance` (uallo) pays at `epoch_cost` uallo each; `fee_source` says where the cost comes from."""
    message = f"{Decimal(balance) / _UALLO_PER_ALLO:.6f} ALLO"
    if epoch_cost <= 0:
        return ok("balance", f"{message}; submissions are free on this network")
    epochs = balance // epoch_cost
    epoch_count = format_count(epochs, "epoch") if epochs < MAX_SHOWN_EPOCHS else f"more than {MAX_SHOWN_EPOCHS} epochs"
    message = f"{message}, enough for {epoch_count} at {epoch_cost} uallo ({fee_source} and the chain's data fee)"
    if epochs >= LOW_EPOCHS:
        return ok("balance", message)
    return Finding("balance", Level.WARN if epochs else Level.FAIL, message, f"Send ALLO to {address}.")


def check_topic(
    chain: ChainClient, settings: Settings, chain_id: str, address: str | None, *, register: bool = False
) -> list[Finding]:
    """Whether the topic exists and is active, and whether the worker is registered and may submit.

    `register`: the next cycle may register the worker.
    """
    topic_id = settings.topic.id
    topic = chain.topic(topic_id)
    if topic is None:
        return [failure("topic", f"{topic_id} does not exist on {chain_id}", "Correct TOPIC_ID or --topic-id.")]
    window = format_count(topic.worker_submission_window, "block")
    lengths = f"epoch of {format_count(topic.epoch_length, 'block')}, window of {window}"
    if chain.is_topic_active(topic_id):
        findings = [ok("topic", f"{topic_id} is active: {lengths}")]
    else:
        fix = "Wait until it is funded again, or choose another topic."
        findings = [warning("topic", f"{topic_id} is not active: it opens no submission windows", fix)]
    if address is None:
        return [
            *findings,
            skipped("topic", f"registration for {topic_id} skipped: there is no wallet"),
        ]
    if not chain.can_submit(topic_id, address):
        fix = "Ask the topic's owner to put it on the whitelist."
        findings.append(failure("topic", f"{address} is not permitted to submit to {topic_id}", fix))
    if chain.is_registered(topic_id, address):
        return [*findings, ok("topic", f"{address} is registered for {topic_id}")]
    if is_local(chain_id) or register:
        price = ", free on the local network" if is_local(chain_id) else " for the chain's registration fee"
        message = f"{address} is not registered for {topic_id}; the next cycle registers it{price}"
        return [*findings, ok("topic", message)]
    fix = "Run `forecastd --once --register`, which pays the chain's registration fee."
    return [*findings, failure("topic", f"{address} is not registered for {topic_id}", fix)]


def check_sequence(chain: ChainClient, chain_id: str, address: str, ledger: Path) -> list[Finding]:
    """Compare the account's sequence with the ledger: does another program sign with this key?"""
    try:
        with open_snapshot(ledger) as copy:
            account = compare_account(copy, chain, chain_id, address)
    except LedgerNotFound:
        account = None
    if account is None or account.known_from is None:
        return [ok("sequence", "not in the ledger yet; the first run accepts the account as it is")]
    message = f"next is {account.sequence}"
    if account.unexplained:
        fix = "Stop the other worker; if these transactions are yours, run `forecastd ledger trust`."
        message = (
            f"{message}; another program used this key: sequence {format_ranges(account.unexplained)}. Signing is off"
        )
        return [failure("sequence", message, fix)]
    if account.was_reset:
        message = f"{message}, but the ledger tracks the account from sequence {account.known_from}"
        if is_local(chain_id):
            return [ok("sequence", f"{message}: the local chain was reset")]
        return [warning("sequence", message, "Check for an endpoint that is far behind or was reset.")]
    return [ok("sequence", f"{message}; the ledger tracks the account from sequence {account.known_from}")]


def check_clock(chain: ChainClient, clock: Clock) -> list[Finding]:
    """Compare this machine's clock with the time of the latest block."""
    block_time = chain.block_time()
    return [evaluate_clock(clock.now(), block_time)]


def evaluate_clock(now: float, block_time: float) -> Finding:
    """Compare wall time `now` with a block's time (unix seconds). A stalled chain looks like a clock that is ahead."""
    offset = now - block_time
    message = f"{to_iso(now)}, {format_duration(abs(offset))} {'after' if offset >= 0 else 'before'} the latest block"
    if abs(offset) <= MAX_CLOCK_SKEW:
        return ok("clock", message)
    fix = "Correct the clock (chrony or timedatectl set-ntp true)"
    fix += "; or check the chain and the endpoint, which may have stalled." if offset > 0 else "."
    if abs(offset) > DAY:
        return failure("clock", f"{message}: the age of candles would be wrong", fix)
    return warning("clock", message, fix)


def check_endpoints(chain: EndpointPool) -> tuple[list[Finding], bool]:
    """One finding per endpoint, one per duplicate in the list, and whether any endpoint is usable."""
    reports = chain.inspect()
    duplicates = [warning("endpoint", sentence, "Remove the duplicate.") for sentence in chain.warnings]
    return [*evaluate_endpoints(reports), *duplicates], any(report.state in USABLE_STATES for report in reports)


def plan_chain_checks(
    chain: EndpointPool,
    topics: Sequence[tuple[Settings, str | None]],
    chain_id: str,
    clock: Clock,
    *,
    register: bool = False,
) -> list[DoctorCheck]:
    """The checks of wallets, topics and clock. `topics`: each topic's settings and its wallet's address, if any.

    `register`: a cycle may register the worker. The checks read the ledger from a snapshot, so this process must
    not have it open.
    """
    wallets = {address: settings for settings, address in topics if address is not None}.items()
    calls: list[tuple[str, Callable[[], list[Finding]]]] = []
    for address, settings in wallets:
        ledger = settings.state_path / "ledger.sqlite"
        calls.append(("balance", partial(check_balance, chain, settings, chain_id, address, ledger)))
    for topic_settings, wallet in topics:
        calls.append(("topic", partial(check_topic, chain, topic_settings, chain_id, wallet, register=register)))
    for address, settings in wallets:
        ledger = settings.state_path / "ledger.sqlite"
        calls.append(("sequence", partial(check_sequence, chain, chain_id, address, ledger)))
    calls.append(("clock", partial(check_clock, chain, clock)))
    return [DoctorCheck(name, run, CHAIN_SECONDS, CHAIN_FIX) for name, run in calls]
