"""`doctor`: check the settings, wallet, chain, data, model, disk and service files; explain each problem and its fix.

On the local network the doctor creates the wallet and the chain when they are missing, as a cycle does. A check that
depends on a failed one is reported as skipped; all other checks run.

Invariant: nothing is signed, sent or registered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

from forecastd.chain.endpoint_pool import EndpointPool
from forecastd.clock import Clock
from forecastd.doctor import host, inputs, network
from forecastd.doctor.finding import CheckRunner, DoctorCheck, Finding, Level, failure, skipped, split_message, warning
from forecastd.errors import ForecastdError, RetryLater
from forecastd.settings import Settings
from forecastd.submission.connect import chain_id_for, open_endpoints

__all__ = ["Finding", "Level", "diagnose", "worst_level"]

SOURCE_FIX = "Correct DATA_SOURCE, or try `forecastd data inspect`."


def worst_level(findings: Sequence[Finding]) -> Level:
    """FAIL when anything fails, else WARN when anything warns, else OK."""
    levels = {finding.level for finding in findings}
    return next((level for level in (Level.FAIL, Level.WARN) if level in levels), Level.OK)


def diagnose(
    topics: Sequence[Settings],
    clock: Clock,
    *,
    invalid_settings: Mapping[str, str],
    sources: Mapping[str, str],
    report: Callable[[Finding], None] = lambda _: None,
) -> list[Finding]:
    """Run every check for the settings of each topic; the topics share network, endpoints and state.

    `invalid_settings` is from `load_valid_settings`, `sources` from `variable_sources`. `report` receives each finding
    as soon as those before it are reported.
    """
    findings: list[Finding] = []

    def emit(finding: Finding) -> None:
        findings.append(finding)
        report(finding)

    common = topics[0]
    threads = ThreadPoolExecutor(max_workers=32, thread_name_prefix="doctor")
    try:
        local_checks = CheckRunner(_local_checks(common, topics, clock), threads, clock)
        for finding in host.check_settings(invalid_settings, sources):
            emit(finding)
        wallets: list[str | None] = []
        wallet_findings: dict[str, Finding] = {}
        for settings in topics:
            finding, address = host.check_wallet(settings)
            wallets.append(address)
            wallet_findings.setdefault(finding.message, finding)
        for finding in wallet_findings.values():
            emit(finding)
        with ExitStack() as stack:
            if "ALLORA_NETWORK" in invalid_settings:
                emit(skipped("endpoint", "skipped: ALLORA_NETWORK is invalid"))
            else:
                chain = _connect_chain(stack, common, clock, emit)
                for finding in _chain_findings(chain, topics, wallets, clock, threads):
                    emit(finding)
        for finding in local_checks.findings():
            emit(finding)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
    return findings


def _local_checks(common: Settings, topics: Sequence[Settings], clock: Clock) -> list[DoctorCheck]:
    """The checks that need no chain. Sources and models that several topics share are checked once."""
    sources = {(topic.source, topic.model): topic for topic in topics}.values()
    models = {topic.model: topic for topic in topics}.values()
    state, logs = common.state_path, common.log_path
    return [
        *(DoctorCheck("source", partial(inputs.check_source, topic, clock), 40.0, SOURCE_FIX) for topic in sources),
        *(DoctorCheck("model", partial(inputs.check_model, topic, clock), 40.0, inputs.MODEL_FIX) for topic in models),
        DoctorCheck("disk", partial(host.check_disk, "STATE_DIR", state, required=True), 10.0),
        DoctorCheck("disk", partial(host.check_disk, "LOG_DIR", logs, required=False), 10.0),
        DoctorCheck("ledger", partial(host.check_ledger, state / "ledger.sqlite"), 10.0),
        DoctorCheck("service", host.check_services, 10.0),
    ]


def _connect_chain(
    stack: ExitStack, settings: Settings, clock: Clock, emit: Callable[[Finding], None]
) -> EndpointPool | None:
    """Connect to the endpoints and emit a finding for each; None when none is usable."""
    try:
        chain = stack.enter_context(open_endpoints(settings, clock, chain_id_for(settings)))
    except RetryLater as error:
        # Only one process at a time can hold the embedded node; a worker that holds it is not a fault.
        fix = "Run `forecastd localnet` in the foreground; the worker and the doctor both connect to it."
        emit(warning("endpoint", split_message(str(error))[0], fix))
        return None
    except ForecastdError as error:
        emit(failure("endpoint", *split_message(str(error))))
        return None
    findings, usable = network.check_endpoints(chain)
    for finding in findings:
        emit(finding)
    return chain if usable else None


def _chain_findings(
    chain: EndpointPool | None,
    topics: Sequence[Settings],
    wallets: Sequence[str | None],
    clock: Clock,
    threads: Executor,
) -> list[Finding]:
    """The findings on balances, topics, account sequences and the clock; the checks run in parallel."""
    if chain is None:
        names = ("balance", "topic", "sequence", "clock")
        return [skipped(name, "skipped: no endpoint is usable") for name in names]
    checks = network.plan_chain_checks(chain, list(zip(topics, wallets, strict=True)), chain_id_for(topics[0]), clock)
    skipped_checks = [skipped(name, "skipped: there is no wallet") for name in ("balance", "sequence")]
    return [*CheckRunner(checks, threads, clock).findings(), *([] if any(wallets) else skipped_checks)]
