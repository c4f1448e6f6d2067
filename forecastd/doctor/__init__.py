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
from pathlib import Path

from forecastd.chain.endpoint_pool import EndpointPool
from forecastd.clock import Clock
from forecastd.doctor import host, inputs, network
from forecastd.doctor.finding import CheckRunner, DoctorCheck, Finding, Level, split_message
from forecastd.errors import ForecastdError, RetryLater
from forecastd.settings import Settings
from forecastd.submission.connect import chain_id_for, open_endpoints

__all__ = ["Finding", "Level", "diagnose", "worst_level"]

SOURCE_FIX = "Correct DATA_SOURCE, or try `forecastd data inspect`."
CHAIN_FIX = "Check the endpoint lines above, and run the doctor again."
INPUT_SECONDS, CHAIN_SECONDS, HOST_SECONDS = 40.0, 25.0, 10.0


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
                emit(Finding("endpoint", Level.SKIP, "skipped: ALLORA_NETWORK is invalid"))
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
    sources = {(topic_settings.source, topic_settings.model): topic_settings for topic_settings in topics}.values()
    models = {topic_settings.model: topic_settings for topic_settings in topics}.values()
    state, logs = common.state_path, common.log_path
    return [
        *(
            DoctorCheck("source", partial(inputs.check_source, topic_settings, clock), INPUT_SECONDS, SOURCE_FIX)
            for topic_settings in sources
        ),
        *(
            DoctorCheck("model", partial(inputs.check_model, topic_settings, clock), INPUT_SECONDS, inputs.MODEL_FIX)
            for topic_settings in models
        ),
        DoctorCheck("disk", partial(host.check_disk, "STATE_DIR", state, required=True), HOST_SECONDS),
        DoctorCheck("disk", partial(host.check_disk, "LOG_DIR", logs, required=False), HOST_SECONDS),
        DoctorCheck("ledger", partial(host.check_ledger, _ledger_path(common)), HOST_SECONDS),
        DoctorCheck("service", host.check_services, HOST_SECONDS),
    ]


def _ledger_path(settings: Settings) -> Path:
    return settings.state_path / "ledger.sqlite"


def _connect_chain(
    stack: ExitStack, settings: Settings, clock: Clock, emit: Callable[[Finding], None]
) -> EndpointPool | None:
    """Connect to the endpoints and emit a finding for each; None when none is usable."""
    try:
        chain = stack.enter_context(open_endpoints(settings, clock, chain_id_for(settings)))
    except RetryLater as error:
        # Only one process at a time can hold the embedded node; a worker that holds it is not a fault.
        fix = "Run `forecastd localnet` in the foreground; the worker and the doctor both connect to it."
        emit(Finding("endpoint", Level.WARN, split_message(str(error))[0], fix))
        return None
    except ForecastdError as error:
        emit(Finding("endpoint", Level.FAIL, *split_message(str(error))))
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
        return [Finding(name, Level.SKIP, "skipped: no endpoint is usable") for name in names]
    runs = network.plan_chain_checks(chain, list(zip(topics, wallets, strict=True)), chain_id_for(topics[0]), clock)
    checks = [DoctorCheck(name, run, CHAIN_SECONDS, CHAIN_FIX) for name, run in runs]
    skipped_checks = [Finding(name, Level.SKIP, "skipped: there is no wallet") for name in ("balance", "sequence")]
    return [*CheckRunner(checks, threads, clock).findings(), *([] if any(wallets) else skipped_checks)]
