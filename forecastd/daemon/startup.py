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

from forecastd.chain.endpoint_health import EndpointState
from forecastd.chain.wallet import open_wallet
from forecastd.clock import Clock, to_iso
from forecastd.daemon.resources import TopicComponents
from forecastd.doctor import Finding, Level
from forecastd.doctor import network as chain_checks
from forecastd.doctor.host import check_disk, check_settings
from forecastd.errors import ForecastdError, NeedsHuman
from forecastd.settings import Settings, variable_sources
from forecastd.submission.connect import ChainConnection, chain_id_for

log = logging.getLogger(__name__)

CHAIN_TIMEOUT_SECONDS = 25.0  # for all that is asked of the chain
_FATAL_CHECKS = ("topic", "sequence")  # what else is found wrong may pass by itself, and is told


def banner(topics: Sequence[Settings], versions: dict[str, str], now: float) -> str:
    """What this daemon is about to do, in one block; nothing has been opened or checked yet."""
    settings = topics[0]
    deadline = "none" if settings.submission_deadline is None else to_iso(settings.submission_deadline.timestamp())
    lines = [
        ("network", f"{settings.allora_network}, chain {chain_id_for(settings)}"),
        ("now", to_iso(now)),
        ("interval", f"{settings.submission_interval} s"),
        ("deadline", deadline),
        ("state", str(settings.state_path)),
        ("logs", str(settings.log_path)),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    for topic in topics:
        model = "the embedded demo" if topic.model is None else str(topic.model)
        lines.append((f"topic {topic.topic_id}", f"wallet {_wallet(topic)}"))
        lines.append(("", f"model {model}, features {topic.features_path}, source {topic.data_source}"))
    return "\n".join(["forecastd starts", *(f"  {name:<9} {text}" for name, text in lines)])


def _wallet(settings: Settings) -> str:
    try:
        return open_wallet(settings).address
    except NeedsHuman:
        return "not known, see below"


def check_host(settings: Settings) -> list[str]:
    """What only a person can mend on this machine; that a log cannot be written is no reason not to start."""
    problems = []
    for finding in check_settings(
        {}, variable_sources()
    ):  # names that are none, above all: a deadline misspelt is none
        if finding.level is Level.WARN:
            log.warning("%s: %s", finding.check, _describe(finding), extra={"action": "start"})
    for finding in check_disk("STATE_DIR", settings.state_path, required=True):
        problems += [_describe(finding)] if finding.level is Level.FAIL else []
        if finding.level is Level.WARN:
            log.warning("%s: %s", finding.check, _describe(finding), extra={"action": "start"})
    return problems


def check_chain(
    connection: ChainConnection, topics: Sequence[TopicComponents], clock: Clock, *, register: bool
) -> list[str]:
    """Look at endpoints, topics, accounts and the clock; gives what only a person can mend, and logs everything else."""
    findings, usable = chain_checks.check_endpoints(connection.endpoints)
    problems = []
    if not usable:
        reports = connection.endpoints.report()
        if all(report.state is EndpointState.WRONG_CHAIN for report in reports):
            return [_describe(finding) for finding in findings if finding.level is Level.FAIL]
        log.warning(
            "No endpoint can be asked now; the daemon starts all the same and goes on when one answers. %s",
            " ".join(_describe(finding) for finding in findings if finding.level is not Level.OK), extra={"action": "start"},
        )  # fmt: skip
        return []
    threads = ThreadPoolExecutor(max_workers=16, thread_name_prefix="start")
    try:
        checks = [threads.submit(check) for check in _planned_checks(connection, topics, clock, register=register)]
        end = clock.monotonic() + CHAIN_TIMEOUT_SECONDS
        for future in checks:
            new_findings, new_problems = _check_result(future, max(0.0, end - clock.monotonic()))
            problems += new_problems
            findings += new_findings
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
    for finding in findings:
        fatal = finding.level is Level.FAIL and finding.check in _FATAL_CHECKS
        problems += [_describe(finding)] if fatal else []
        level = logging.INFO if finding.level in (Level.OK, Level.SKIP) else logging.WARNING
        if not fatal:
            log.log(level, "%s: %s", finding.check, _describe(finding), extra={"action": "start"})
    return problems


def _planned_checks(
    connection: ChainConnection, topics: Sequence[TopicComponents], clock: Clock, *, register: bool
) -> list[Callable[[], list[Finding]]]:
    """The doctor's, of what this daemon will do. They read the ledger from a copy, so it must not be open here yet."""
    chain, chain_id = connection.endpoints, chain_id_for(topics[0].settings) if topics else ""
    wallets = {topic.wallet.address: topic.settings for topic in topics}
    checks: list[Callable[[], list[Finding]]] = [partial(chain_checks.check_clock, chain, clock)]
    for topic in topics:
        settings, address = topic.settings, topic.wallet.address
        checks.append(partial(chain_checks.check_topic, chain, settings, chain_id, address, register=register))
    for address, settings in wallets.items():
        path: Path = settings.state_path / "ledger.sqlite"
        checks.append(partial(chain_checks.check_sequence, chain, chain_id, address, path))
        checks.append(partial(chain_checks.check_balance, chain, settings, chain_id, address, path))
    return checks


def _check_result(future: Future[list[Finding]], seconds: float) -> tuple[list[Finding], list[str]]:
    """Its findings, and what it says needs a person. What could not be found out is told and no reason not to start."""
    try:
        return future.result(seconds), []
    except TimeoutError:
        log.warning(
            "A check of the chain gave no result within %g s.", CHAIN_TIMEOUT_SECONDS, extra={"action": "start"}
        )
    except NeedsHuman as error:
        return [], [str(error)]
    except ForecastdError as error:
        log.warning("A check of the chain could not be made: %s", error, extra={"action": "start"})
    return [], []


def _describe(finding: Finding) -> str:
    text = finding.message if finding.message.endswith(".") else f"{finding.message}."
    return f"{text} {finding.fix}".strip()
