"""The daemon's status: model, file, health check, metrics, and /healthz, /metrics, /status over HTTP."""

from forecastd.status.health import DaemonHealth, check_health
from forecastd.status.server import HealthServer

__all__ = ["DaemonHealth", "HealthServer", "check_health"]
