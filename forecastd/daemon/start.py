"""The start: what is said first, and what the chain says to it before the daemon calls itself ready.

That the network is down is no reason not to start. What only a person can mend is: a topic that does not exist, a worker
that is not registered, somebody else who signs, endpoints that are all on another chain.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from forecastd.chain.health import Standing
from forecastd.chain.wallet import open_wallet
from forecastd.clock import Clock, iso
from forecastd.connect import Way, chain_of
from forecastd.daemon.workshop import Gear
from forecastd.doctor import Finding, Level
from forecastd.doctor import network as chain_checks
from forecastd.doctor.host import check_disk, check_settings
from forecastd.errors import ForecastdError, NeedsHuman
from forecastd.settings import Settings, given_names

log = logging.getLogger(__name__)

CHAIN_SECONDS = 25.0  # for all that is asked of the chain
_FATAL = ("topic", "sequence")  # what else is found wrong may pass by itself, and is told


def banner(topics: Sequence[Settings], versions: dict[str, str], now: float) -> str:
    """What this daemon is about to do, in one block; nothing has been opened or checked yet."""
    common = topics[0]
    deadline = "none" if common.submission_deadline is None else iso(common.submission_deadline.timestamp())
    lines = [
        ("network", f"{common.allora_network}, chain {chain_of(common)}"),
        ("now", iso(now)),
        ("interval", f"{common.submission_interval} s"),
        ("deadline", deadline),
        ("state", str(common.state)),
        ("logs", str(common.logs)),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    for one in topics:
        model = "the embedded demo" if one.model is None else str(one.model)
        lines.append((f"topic {one.topic_id}", f"wallet {_wallet(one)}"))
        lines.append(("", f"model {model}, features {one.features_path}, source {one.data_source}"))
    return "\n".join(["forecastd starts", *(f"  {name:<9} {text}" for name, text in lines)])


def _wallet(settings: Settings) -> str:
    try:
        return open_wallet(settings).address
    except NeedsHuman:
        return "not known, see below"


def look_at_host(common: Settings) -> list[str]:
    """What only a person can mend on this machine; that a log cannot be written is no reason not to start."""
    problems = []
    for finding in check_settings({}, given_names()):  # names that are none, above all: a deadline misspelt is none
        if finding.level is Level.WARN:
            log.warning("%s: %s", finding.check, _told(finding), extra={"action": "start"})
    for finding in check_disk("STATE_DIR", common.state, vital=True):
        problems += [_told(finding)] if finding.level is Level.FAIL else []
        if finding.level is Level.WARN:
            log.warning("%s: %s", finding.check, _told(finding), extra={"action": "start"})
    return problems


def ask_chain(way: Way, gears: Sequence[Gear], clock: Clock, *, register: bool) -> list[str]:
    """Look at endpoints, topics, accounts and the clock; gives what only a person can mend, and logs everything else."""
    found, usable = chain_checks.survey(way.chain)
    problems = []
    if not usable:
        reports = way.chain.report()
        if all(report.state is Standing.WRONG_CHAIN for report in reports):
            return [_told(finding) for finding in found if finding.level is Level.FAIL]
        log.warning(
            "No endpoint can be asked now; the daemon starts all the same and goes on when one answers. %s",
            " ".join(_told(finding) for finding in found if finding.level is not Level.OK), extra={"action": "start"},
        )  # fmt: skip
        return []
    threads = ThreadPoolExecutor(max_workers=16, thread_name_prefix="start")
    try:
        checks = [threads.submit(check) for check in _checks(way, gears, clock, register=register)]
        end = clock.monotonic() + CHAIN_SECONDS
        for future in checks:
            findings, trouble = _result(future, max(0.0, end - clock.monotonic()))
            problems += trouble
            found += findings
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
    for finding in found:
        fatal = finding.level is Level.FAIL and finding.check in _FATAL
        problems += [_told(finding)] if fatal else []
        level = logging.INFO if finding.level in (Level.OK, Level.SKIP) else logging.WARNING
        if not fatal:
            log.log(level, "%s: %s", finding.check, _told(finding), extra={"action": "start"})
    return problems


def _checks(way: Way, gears: Sequence[Gear], clock: Clock, *, register: bool) -> list[Callable[[], list[Finding]]]:
    """The doctor's, of what this daemon will do. They read the ledger from a copy, so it must not be open here yet."""
    chain, chain_id = way.chain, chain_of(gears[0].settings) if gears else ""
    wallets = {gear.wallet.address: gear.settings for gear in gears}
    checks: list[Callable[[], list[Finding]]] = [partial(chain_checks.check_clock, chain, clock)]
    for gear in gears:
        one, address = gear.settings, gear.wallet.address
        checks.append(partial(chain_checks.check_topic, chain, one, chain_id, address, register=register))
    for address, one in wallets.items():
        path: Path = one.state / "ledger.sqlite"
        checks.append(partial(chain_checks.check_sequence, chain, chain_id, address, path))
        checks.append(partial(chain_checks.check_balance, chain, one, chain_id, address, path))
    return checks


def _result(future: Future[list[Finding]], seconds: float) -> tuple[list[Finding], list[str]]:
    """Its findings, and what it says needs a person. What could not be found out is told and no reason not to start."""
    try:
        return future.result(seconds), []
    except TimeoutError:
        log.warning("A check of the chain gave no result within %g s.", CHAIN_SECONDS, extra={"action": "start"})
    except NeedsHuman as error:
        return [], [str(error)]
    except ForecastdError as error:
        log.warning("A check of the chain could not be made: %s", error, extra={"action": "start"})
    return [], []


def _told(finding: Finding) -> str:
    text = finding.found if finding.found.endswith(".") else f"{finding.found}."
    return f"{text} {finding.fix}".strip()
