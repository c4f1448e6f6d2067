"""An endpoint as users and the SDK write it: `grpc+https://host:port`, `grpc+http://host:port`, or plain `host:port`.

Only host and port are ever shown: whatever else a URL may carry (a user, a token) is refused and not repeated.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from forecastd.errors import NeedsHuman

_SCHEMES = {"grpc+https": True, "grpc+http": False}
_FORM = "Write grpc+https://HOST:PORT, grpc+http://HOST:PORT or HOST:PORT."


@dataclass(frozen=True)
class Endpoint:
    """Where a node listens for gRPC. Prints as `host:port`."""

    host: str
    port: int
    secure: bool

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether this is the machine itself."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def channel(self, largest: int) -> Any:
        """A new grpcio channel that takes answers of at most `largest` bytes. Connects with the first call."""
        import grpc  # type: ignore[import-untyped]  # no stubs

        options = [
            ("grpc.max_receive_message_length", largest),
            # Its own connection, and quick to try a healed endpoint again: what a window is worth is minutes.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.min_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.enable_retries", 0),
            # A proxy of the environment must not stand between this process and a node on the same machine.
            ("grpc.enable_http_proxy", 0 if self.loopback else 1),
        ]
        if self.secure:
            return grpc.secure_channel(str(self), grpc.ssl_channel_credentials(), options)
        return grpc.insecure_channel(str(self), options)


def parse_endpoint(text: str) -> Endpoint:
    """An endpoint from its text. Without a scheme, port 443 means TLS.

    Raises:
        NeedsHuman: it is not one; the text is not repeated, it may hold a secret.
    """
    scheme, separator, _ = text.strip().partition("://")
    if separator and scheme not in _SCHEMES:
        raise NeedsHuman(f"An endpoint of RPC_ENDPOINTS has the unknown scheme {scheme[:12]!r}. {_FORM}")
    try:
        parts = urlsplit(text.strip() if separator else f"//{text.strip()}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise NeedsHuman(f"An endpoint of RPC_ENDPOINTS has no usable port. {_FORM}") from None
    if "@" in parts.netloc or parts.query or parts.fragment or parts.path not in ("", "/"):
        raise NeedsHuman(f"An endpoint of RPC_ENDPOINTS holds more than a host and a port. {_FORM}")
    if not host or any(character.isspace() for character in host):
        raise NeedsHuman(f"An endpoint of RPC_ENDPOINTS has no host. {_FORM}")
    if port is None and not separator:
        raise NeedsHuman(f"The endpoint {host} of RPC_ENDPOINTS has no port. {_FORM}")
    secure = _SCHEMES[scheme] if separator else port == 443
    return Endpoint(host, port if port is not None else (443 if secure else 80), secure)
