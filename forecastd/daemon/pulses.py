"""The daemon's pulse: everything it knows of itself, gathered when somebody asks. Nothing here waits or asks the network."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version

from forecastd import __version__
from forecastd.chain.endpoints import Endpoints
from forecastd.chain.events import StreamReport
from forecastd.daemon import memory
from forecastd.daemon.topicworker import Kit
from forecastd.guards import DAY, MAX_MODEL_AGE_DAYS
from forecastd.pulse import ChildPulse, EndpointPulse, Hangs, ModelPulse, StreamPulse, SupervisionPulse


def versions() -> dict[str, str]:
    """What runs here, for the banner and for `status`."""
    found = {"forecastd": __version__, "python": platform.python_version()}
    for name in ("allora_sdk",):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def endpoints(chain: Endpoints) -> tuple[EndpointPulse, ...]:
    """What is known of each endpoint."""
    return tuple(
        EndpointPulse(
            one.endpoint, one.state.value, one.chain_id, one.height, one.lag, one.latency, one.streak, one.error
        )
        for one in chain.report()
    )


def streams(reports: Iterable[StreamReport]) -> tuple[StreamPulse, ...]:
    """What is known of each websocket."""
    return tuple(StreamPulse(one.endpoint, one.connected, one.last_at, one.error) for one in reports)


def models(kits: Iterable[Kit], since: Mapping[str, float]) -> tuple[ModelPulse, ...]:
    """The bundles in use, each once; `since` when each was taken into use, by its hash."""
    found = {}
    for kit in kits:
        manifest = kit.forecaster.manifest
        aged = not manifest.training.synthetic
        found[manifest.sha256] = ModelPulse(
            manifest.name, manifest.sha256, float(manifest.training.learnt_until) if aged else None,
            since.get(manifest.sha256), MAX_MODEL_AGE_DAYS * DAY if aged else None,
        )  # fmt: skip
    return tuple(found.values())


def supervision(kits: Iterable[Kit], quarantined: Iterable[str]) -> SupervisionPulse:
    """What the models' processes are at, and what became of them so far, over all topics; `quarantined` bundles by name."""
    hangs: dict[tuple[str, str], int] = {}
    jobs: dict[str, int] = {}
    children: list[ChildPulse] = []
    crashes = replacements = hand_overs = slow = 0
    for forecaster in {id(kit.forecaster): kit.forecaster for kit in kits}.values():
        counts, name = forecaster.counts, forecaster.manifest.name
        crashes += counts.crashes
        replacements += counts.replacements
        hand_overs += counts.hand_overs
        slow += counts.slow_but_fine
        for (phase, bundle), number in list(counts.hangs.items()):
            hangs[bundle, phase] = hangs.get((bundle, phase), 0) + number
        for result, number in list(counts.jobs.items()):
            jobs[result] = jobs.get(result, 0) + number
        told = forecaster.children()
        busy = any(one["job"] for one in told)
        children += [_child(one, name, active=bool(one["job"]) or (not busy and one is told[0])) for one in told]
    return SupervisionPulse(
        tuple(Hangs(bundle, phase, number) for (bundle, phase), number in sorted(hangs.items())), crashes, replacements,
        hand_overs, slow, jobs, tuple(sorted(quarantined)), tuple(children),
    )  # fmt: skip


def _child(told: Mapping[str, object], bundle: str, *, active: bool) -> ChildPulse:
    pid = int(str(told["pid"]))
    return ChildPulse(pid, "active" if active else "standby", bundle, str(told["phase"]), memory.resident(pid))
