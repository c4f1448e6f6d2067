"""Checks of the chain as this worker needs it: endpoints, money, topics, the account, the clock. Nothing is sent.

Each asks and then hands what it was told to a pure function that judges it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

from forecastd.bookkeeping import compare_account, shown
from forecastd.chain.client import ChainClient
from forecastd.chain.endpoints import EndpointReport, Endpoints
from forecastd.chain.fees import quote
from forecastd.chain.health import Standing
from forecastd.chain.networks import NETWORKS, is_local
from forecastd.clock import Clock, iso
from forecastd.doctor.finding import Finding, Level
from forecastd.errors import ForecastdError
from forecastd.ledgercopy import NoLedger, read_ledger
from forecastd.settings import Settings

FEW_EPOCHS, MANY_EPOCHS = 100, 100_000
SKEW, DAY = 30.0, 86_400.0  # seconds
_ALLO = Decimal(10) ** 18
USABLE = (Standing.OK, Standing.BEHIND)


def judge_endpoints(reports: Sequence[EndpointReport]) -> list[Finding]:
    """A line an endpoint. One that cannot be used is a warning while another can."""
    usable = any(report.state in USABLE for report in reports)
    found = []
    for report in reports:
        latency = "" if report.latency is None else f", {1000 * report.latency:.0f} ms"
        told = (
            f"{report.endpoint}: {report.chain_id or 'chain not told'}, height {report.height or 'not told'}{latency}"
        )
        if report.state is Standing.OK:
            behind = f", {report.lag} blocks behind" if report.lag else ""
            found.append(Finding("endpoint", Level.OK, told + behind))
        elif report.state is Standing.BEHIND:
            fix = "Remove it from RPC_ENDPOINTS, or wait until it has caught up."
            found.append(Finding("endpoint", Level.WARN, f"{told}, {report.lag} blocks behind the others", fix))
        else:
            why = report.error or "it gave no answer"
            fix = "Correct RPC_ENDPOINTS or ALLORA_NETWORK." if report.state is Standing.WRONG_CHAIN else (
                "Check RPC_ENDPOINTS, the network and the node."
            )  # fmt: skip
            level = Level.WARN if usable else Level.FAIL
            found.append(Finding("endpoint", level, f"{report.endpoint}: {report.state}, {why}", fix))
    return found


def check_balance(chain: ChainClient, settings: Settings, chain_id: str, address: str, ledger: Path) -> list[Finding]:
    """The balance, and for how many epochs it lasts at the last fee, or at what the chain asks now."""
    fee, which = _last_fee(ledger, chain_id, address), "the last fee"
    if fee is None:
        floor = NETWORKS[settings.allora_network].gas_price_floor
        fee, which = quote(None, chain.gas_price(), floor=floor, tier=settings.fee_tier).fee_uallo, "the fee as of now"
    return [judge_balance(address, chain.balance(address), fee + chain.params().data_sending_fee, which)]


def _last_fee(ledger: Path, chain_id: str, address: str) -> int | None:
    """What the wallet's last submission paid; None without one, or when the ledger tells nothing (its own check says why)."""
    with suppress(ForecastdError), read_ledger(ledger) as copy:
        for entry in copy.newest():
            if entry.key[0] == chain_id and entry.key[3] == address and (signed := copy.attempts(entry.key)):
                return signed[-1].fee_uallo
    return None


def judge_balance(address: str, balance: int, each: int, which: str) -> Finding:
    """The runway of `balance` at `each` uallo an epoch; `which` says where that figure comes from."""
    told = f"{Decimal(balance) / _ALLO:.6f} ALLO"
    if each <= 0:
        return Finding("balance", Level.OK, f"{told}; submitting costs nothing here")
    epochs = balance // each
    many = f"{epochs}" if epochs < MANY_EPOCHS else f"more than {MANY_EPOCHS}"
    told = f"{told}, enough for {many} epochs at {each} uallo ({which} and the chain's data fee)"
    if epochs >= FEW_EPOCHS:
        return Finding("balance", Level.OK, told)
    return Finding("balance", Level.WARN if epochs else Level.FAIL, told, f"Send some ALLO to {address}.")


def check_topic(
    chain: ChainClient, settings: Settings, chain_id: str, address: str | None, *, register: bool = False
) -> list[Finding]:
    """Whether the topic exists and issues nonces, and whether the worker is registered and may submit.

    `register`: the next cycle may register it.
    """
    number = settings.topic_id
    topic = chain.topic(number)
    if topic is None:
        return [
            Finding("topic", Level.FAIL, f"{number} does not exist on {chain_id}", "Correct TOPIC_ID or --topic-id.")
        ]
    lengths = f"epoch of {topic.epoch_length} blocks, window of {topic.worker_submission_window}"
    if chain.is_topic_active(number):
        found = [Finding("topic", Level.OK, f"{number} is active: {lengths}")]
    else:
        fix = "Wait until it is funded again, or choose another."
        found = [Finding("topic", Level.WARN, f"{number} is not active, so it opens no submission window", fix)]
    if address is None:
        return [*found, Finding("topic", Level.SKIP, f"registration for {number} not looked at: there is no wallet")]
    if not chain.can_submit(number, address):
        fix = "Ask the topic's owner to put it on the whitelist."
        found.append(Finding("topic", Level.FAIL, f"{address} is not permitted to submit to {number}", fix))
    if chain.is_registered(number, address):
        return [*found, Finding("topic", Level.OK, f"{address} is registered for {number}")]
    if is_local(chain_id):
        told = f"{address} is not registered for {number}; the next cycle does it, the local network is free"
        return [*found, Finding("topic", Level.OK, told)]
    if register:
        told = f"{address} is not registered for {number}; the next cycle does it, for the chain's registration fee"
        return [*found, Finding("topic", Level.OK, told)]
    fix = "Run `forecastd --once --register`; it costs the chain's registration fee."
    return [*found, Finding("topic", Level.FAIL, f"{address} is not registered for {number}", fix)]


def check_sequence(chain: ChainClient, chain_id: str, address: str, ledger: Path) -> list[Finding]:
    """The account's sequence against the ledger: whether somebody else signs with the key."""
    try:
        with read_ledger(ledger) as copy:
            account = compare_account(copy, chain, chain_id, address)
    except NoLedger:
        account = None
    if account is None or account.known_from is None:
        return [Finding("sequence", Level.OK, "not in the ledger yet; the first run takes the account as it is")]
    told = f"next is {account.sequence}"
    if account.unknown:
        fix = "Stop the other worker; if it was you, run `forecastd ledger trust`."
        told = f"{told}; somebody else signed with this key: {shown(account.unknown)}. Nothing will be signed"
        return [Finding("sequence", Level.FAIL, told, fix)]
    if account.began_anew:
        told = f"{told}, and the ledger knows the account from {account.known_from} on"
        if is_local(chain_id):
            return [Finding("sequence", Level.OK, f"{told}: the local chain began anew")]
        return [Finding("sequence", Level.WARN, told, "Look for an endpoint that is far behind or was reset.")]
    return [Finding("sequence", Level.OK, f"{told}, the ledger knows all from {account.known_from} on")]


def check_clock(chain: ChainClient, clock: Clock) -> list[Finding]:
    """This machine's clock against the time of the latest block."""
    block = chain.block_time()
    return [judge_clock(clock.now(), block)]


def judge_clock(now: float, block: float) -> Finding:
    """Wall time `now` against a block's, both unix seconds. A chain that stands still looks like a clock ahead."""
    ahead = now - block
    told = f"{iso(now)}, {abs(ahead):.0f} s {'after' if ahead >= 0 else 'before'} the latest block"
    if abs(ahead) <= SKEW:
        return Finding("clock", Level.OK, told)
    fix = "Correct the clock (chrony or timedatectl set-ntp true)"
    fix += "; or the chain or the endpoint stands still, then look there." if ahead > 0 else "."
    if abs(ahead) > DAY:
        return Finding(
            "clock", Level.FAIL, f"{told}, {abs(ahead) / DAY:.1f} days: candles would be judged wrongly", fix
        )
    return Finding("clock", Level.WARN, told, fix)


def survey(chain: Endpoints) -> tuple[list[Finding], bool]:
    """A line an endpoint, and whether any can be asked for the rest. Items given twice in the list are told too."""
    reports = chain.survey()
    doubled = [Finding("endpoint", Level.WARN, sentence, "Remove one.") for sentence in chain.told]
    return [*judge_endpoints(reports), *doubled], any(report.state in USABLE for report in reports)
