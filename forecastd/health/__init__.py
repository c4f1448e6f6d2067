"""Whether the daemon does its work, told over HTTP on this machine: /healthz, /metrics, /status."""

from forecastd.health.judge import Health, judge
from forecastd.health.server import HealthServer

__all__ = ["Health", "HealthServer", "judge"]
