"""The daemon's startup: its banner, and the checks of host and chain before it is ready.

Invariant: the daemon starts even when the network is down. Only what needs a person prevents the start: a topic that
does not exist, a worker that is not registered, another signer of the account, endpoints that are all on another
chain.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from forecastd.chain.endpoint_health import EndpointState
from forecastd.chain.wallet import open_wallet
from forecastd.clock import Clock, to_iso
from forecastd.daemon.resources import TopicWallet
from forecastd.doctor import Finding, Level
from forecastd.doctor import network as chain_checks
from forecastd.doctor.host import check_disk, check_settings
from forecastd.errors import ForecastdError, NeedsHuman
from forecastd.settings import Settings, variable_sources
from forecastd.submission.connect import ChainConnection, chain_id_for

log = logging.getLogger(__name__)

CHAIN_TIMEOUT_SECONDS = 25.0  # for all checks of the chain together
_FATAL_CHECKS = ("topic", "sequence")  # failures of other checks may be temporary and are only logged


def banner(topics: Sequence[Settings], versions: dict[str, str], now: float) -> str:
    """The settings that this daemon starts with, as one block of text. Nothing is opened or checked yet."""
    settings = topics[0]
    deadline = settings.daemon.submission_deadline
    lines = [
        ("network", f"{settings.chain.network}, chain {chain_id_for(settings)}"),
        ("now", to_iso(now)),
        ("interval", f"{settings.daemon.submission_interval} s"),
        ("deadline", "none" if deadline is None else to_iso(deadline.timestamp())),
        ("state", str(settings.state_path)),
        ("logs", str(settings.log_path)),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    for topic in topics:
        model = "the embedded demo" if topic.model.bundle is None else str(topic.model.bundle)
        lines.append((f"topic {topic.topic.id}", f"wallet {_wallet(topic)}"))
        lines.append(("", f"model {model}, features {topic.model.features_path}, source {topic.source.name}"))
    return "\n".join(["forecastd starts", *(f"  {name:<9} {text}" for name, text in lines)])


def _wallet(settings: Settings) -> str:
    try:
        return open_wallet(settings).address
    except NeedsHuman:
        return "unknown, see below"


def check_host(settings: Settings) -> list[str]:
    """Check this machine; returns the problems that need a person. An unwritable log does not prevent the start."""
    problems = []
    for finding in check_settings({}, variable_sources()):  # a misspelled name, such as of the deadline, has no effect
        if finding.level is Level.WARN:
            log.warning("%s: %s", finding.check, _describe(finding), extra={"action": "start"})
    for finding in check_disk("STATE_DIR", settings.state_path, required=True):
        problems += [_describe(finding)] if finding.level is Level.FAIL else []
        if finding.level is Level.WARN:
            log.warning("%s: %s", finding.check, _describe(finding), extra={"action": "start"})
    return problems


def check_chain(
    connection: ChainConnection, topics: Sequence[TopicWallet], clock: Clock, *, register: bool
) -> list[str]:
    """Check endpoints, topics, accounts and the clock; returns the problems that need a person and logs the others."""
    findings, usable = chain_checks.check_endpoints(connection.endpoints)
    problems = []
    if not usable:
        reports = connection.endpoints.report()
        if all(report.state is EndpointState.WRONG_CHAIN for report in reports):
            return [_describe(finding) for finding in findings if finding.level is Level.FAIL]
        log.warning(
            "No endpoint is usable now; the daemon starts anyway and continues when one answers. %s",
            " ".join(_describe(finding) for finding in findings if finding.level is not Level.OK), extra={"action": "start"},
        )  # fmt: skip
        return []
    threads = ThreadPoolExecutor(max_workers=16, thread_name_prefix="start")
    try:
        chain_id = chain_id_for(topics[0][0]) if topics else ""
        wallets = [(settings, wallet.address) for settings, wallet in topics]
        plan = chain_checks.plan_chain_checks(connection.endpoints, wallets, chain_id, clock, register=register)
        checks = [threads.submit(check.run) for check in plan]
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


def _check_result(future: Future[list[Finding]], seconds: float) -> tuple[list[Finding], list[str]]:
    """The findings of a check, and the problems that need a person. A check that fails is logged and not fatal."""
    try:
        return future.result(seconds), []
    except TimeoutError:
        log.warning(
            "A check of the chain gave no result within %g s.", CHAIN_TIMEOUT_SECONDS, extra={"action": "start"}
        )
    except NeedsHuman as error:
        return [], [str(error)]
    except ForecastdError as error:
        log.warning("A check of the chain failed: %s", error, extra={"action": "start"})
    return [], []


def _describe(finding: Finding) -> str:
    text = finding.message if finding.message.endswith(".") else f"{finding.message}."
    return f"{text} {finding.fix}".strip()
