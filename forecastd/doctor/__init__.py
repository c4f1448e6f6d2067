"""`doctor`: everything a worker stands on, looked at before it is needed, each with its cause and its fix.

Nothing is signed, sent or registered. On the local network the wallet and the chain are made where there are none, as a
cycle would. What a check needs from another that failed is told as skipped; all others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from forecastd.chain.endpoints import Endpoints
from forecastd.clock import Clock
from forecastd.connect import chain_of, open_chain
from forecastd.doctor import host, inputs, network
from forecastd.doctor.finding import Check, Finding, Level, Running, split
from forecastd.errors import ForecastdError, RetryLater
from forecastd.settings import Settings

__all__ = ["Finding", "Level", "diagnose", "worst"]

SOURCE_FIX = "Correct DATA_SOURCE, or try `forecastd data inspect`."
CHAIN_FIX = "Look at the lines of the endpoints, and run again."
INPUT_SECONDS, CHAIN_SECONDS, HOST_SECONDS = 40.0, 25.0, 10.0


def worst(findings: Sequence[Finding]) -> Level:
    """FAIL when anything fails, else WARN when anything warns, else OK."""
    levels = {finding.level for finding in findings}
    return next((level for level in (Level.FAIL, Level.WARN) if level in levels), Level.OK)


def diagnose(
    topics: Sequence[Settings],
    clock: Clock,
    *,
    wrong: Mapping[str, str],
    given: Mapping[str, str],
    report: Callable[[Finding], None] = lambda _: None,
) -> list[Finding]:
    """Look at everything, for each topic's settings; they share network, endpoints and state.

    `wrong` and `given` as `load_fitting` and `given_names` tell. Each finding is reported as soon as those before it are.
    """
    found: list[Finding] = []

    def tell(finding: Finding) -> None:
        found.append(finding)
        report(finding)

    common = topics[0]
    threads = ThreadPoolExecutor(max_workers=32, thread_name_prefix="doctor")
    try:
        early = Running(_own(common, topics, clock), threads, clock)
        for finding in host.check_settings(wrong, given):
            tell(finding)
        wallets: list[str | None] = []
        told: dict[str, Finding] = {}
        for settings in topics:
            finding, address = host.check_wallet(settings)
            wallets.append(address)
            told.setdefault(finding.found, finding)
        for finding in told.values():
            tell(finding)
        with ExitStack() as stack:
            if "ALLORA_NETWORK" in wrong:
                tell(Finding("endpoint", Level.SKIP, "not asked: ALLORA_NETWORK does not fit"))
            else:
                chain = _reach(stack, common, clock, tell)
                for finding in _on_chain(chain, topics, wallets, clock, threads):
                    tell(finding)
        for finding in early.findings():
            tell(finding)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
    return found


def _own(common: Settings, topics: Sequence[Settings], clock: Clock) -> list[Check]:
    """What needs no chain. Sources and models that several topics share are looked at once."""
    sources = {(one.data_source, one.symbol, one.model): one for one in topics}.values()
    models = {(one.model, one.features): one for one in topics}.values()
    state, logs = common.state, common.logs
    return [
        *(Check("source", partial(inputs.check_source, one, clock), INPUT_SECONDS, SOURCE_FIX) for one in sources),
        *(Check("model", partial(inputs.check_model, one, clock), INPUT_SECONDS, inputs.MODEL_FIX) for one in models),
        Check("disk", partial(host.check_disk, "STATE_DIR", state, vital=True), HOST_SECONDS),
        Check("disk", partial(host.check_disk, "LOG_DIR", logs, vital=False), HOST_SECONDS),
        Check("ledger", partial(host.check_ledger, _ledger(common)), HOST_SECONDS),
        Check("service", host.check_services, HOST_SECONDS),
    ]


def _ledger(settings: Settings) -> Path:
    return settings.state / "ledger.sqlite"


def _reach(stack: ExitStack, settings: Settings, clock: Clock, tell: Callable[[Finding], None]) -> Endpoints | None:
    """The endpoints, told one by one; None when none can be asked."""
    try:
        chain = stack.enter_context(open_chain(settings, clock, chain_of(settings)))
    except RetryLater as error:
        # The embedded node belongs to one process at a time. That a worker has it is no fault.
        fix = "Run `forecastd localnet` in the foreground: a worker and the doctor both find it."
        tell(Finding("endpoint", Level.WARN, split(str(error))[0], fix))
        return None
    except ForecastdError as error:
        tell(Finding("endpoint", Level.FAIL, *split(str(error))))
        return None
    findings, usable = network.survey(chain)
    for finding in findings:
        tell(finding)
    return chain if usable else None


def _on_chain(
    chain: Endpoints | None, topics: Sequence[Settings], wallets: Sequence[str | None], clock: Clock, threads: Executor
) -> list[Finding]:
    """Money, topics, the accounts and the clock, all asked at once."""
    if chain is None:
        names = ("balance", "topic", "sequence", "clock")
        return [Finding(name, Level.SKIP, "not looked at: no endpoint can be asked") for name in names]
    common, chain_id = topics[0], chain_of(topics[0])
    ledger = _ledger(common)
    mine = {address: one for one, address in zip(topics, wallets, strict=True) if address is not None}
    checks = [
        *(Check("balance", partial(network.check_balance, chain, one, chain_id, address, ledger), CHAIN_SECONDS, CHAIN_FIX)
          for address, one in mine.items()),
        *(Check("topic", partial(network.check_topic, chain, one, chain_id, address), CHAIN_SECONDS, CHAIN_FIX)
          for one, address in zip(topics, wallets, strict=True)),
        *(Check("sequence", partial(network.check_sequence, chain, chain_id, address, ledger), CHAIN_SECONDS, CHAIN_FIX)
          for address in mine),
        Check("clock", partial(network.check_clock, chain, clock), CHAIN_SECONDS, CHAIN_FIX),
    ]  # fmt: skip
    lacking = [Finding(name, Level.SKIP, "not looked at: there is no wallet") for name in ("balance", "sequence")]
    return [*Running(checks, threads, clock).findings(), *([] if mine else lacking)]
