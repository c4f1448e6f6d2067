"""Whether the daemon does its work, told over HTTP on this machine: /healthz, /metrics, /status."""

from forecastd.status.health import DaemonHealth, check_health
from forecastd.status.server import HealthServer

__all__ = ["DaemonHealth", "HealthServer", "check_health"]
