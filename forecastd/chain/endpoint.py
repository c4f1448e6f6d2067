"""Parses an endpoint as users and the SDK write it.

gRPC: `grpc+https://host:port`, `grpc+http://host:port` or plain `host:port`. REST: `rest+https://host:port/path`,
`rest+http://...` or plain `https://...`.

Invariant: only scheme, host and port are ever shown, because the path of a REST endpoint may hold a key. A user, a
query or a fragment in the URL is refused, and the error does not repeat the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from forecastd.errors import NeedsHuman
from forecastd.runtime.http import is_loopback

_GRPC_SCHEMES = {"grpc+https": True, "grpc+http": False}
_REST_SCHEMES = {"rest+https": True, "rest+http": False, "https": True, "http": False}
_SCHEMES = _GRPC_SCHEMES | _REST_SCHEMES
_FORMAT_HELP = (
    "Write grpc+https://HOST:PORT, grpc+http://HOST:PORT or HOST:PORT for gRPC, rest+https://HOST:PORT for REST."
)


@dataclass(frozen=True)
class Endpoint:
    """The address of a node. Prints as `host:port` for gRPC, as `https://host:port` for REST."""

    host: str
    port: int
    tls: bool
    is_rest: bool = False
    path: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}" if self.is_rest else self.authority

    @property
    def authority(self) -> str:
        """`host:port`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The base URL of a REST endpoint. It may hold a key: never show it."""
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.path}"

    @property
    def is_loopback(self) -> bool:
        """Whether the host is this machine."""
        return is_loopback(self.host)

    def channel(self, max_bytes: int) -> Any:
        """A new grpcio channel that accepts answers of at most `max_bytes`. It connects at the first call."""
        import grpc  # type: ignore[import-untyped]  # no stubs

        options = [
            ("grpc.max_receive_message_length", max_bytes),
            # A connection of its own, and short pauses before a reconnect: a submission window lasts only minutes.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.min_reconnect_backoff_ms", 5000),  # in fact the time limit for one connection attempt, TLS included
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.enable_retries", 0),
            # A proxy from the environment must not be used for a node on this machine.
            ("grpc.enable_http_proxy", 0 if self.is_loopback else 1),
        ]
        if self.tls:
            return grpc.secure_channel(self.authority, grpc.ssl_channel_credentials(), options)
        return grpc.insecure_channel(self.authority, options)


def parse_endpoint(text: str, name: str = "An endpoint of RPC_ENDPOINTS") -> Endpoint:
    """Parse an endpoint. `name` is what errors call it. Without a scheme it is gRPC, and port 443 means TLS.

    Raises:
        NeedsHuman: the text is not an endpoint. The text is not repeated, because it may hold a secret.
    """
    text = text.strip()
    scheme, separator, _ = text.partition("://")
    scheme = scheme.lower()
    if separator and scheme not in _SCHEMES:
        raise NeedsHuman(f"{name} has the unknown scheme {scheme[:12]!r}. {_FORMAT_HELP}")
    is_rest = bool(separator) and scheme in _REST_SCHEMES
    try:
        parts = urlsplit(text if separator else f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise NeedsHuman(f"{name} has no usable port. {_FORMAT_HELP}") from None
    if "@" in parts.netloc or parts.query or parts.fragment or (parts.path not in ("", "/") and not is_rest):
        raise NeedsHuman(f"{name} holds more than a host and a port. {_FORMAT_HELP}")
    if not host or any(character.isspace() or not character.isprintable() for character in host + parts.path):
        raise NeedsHuman(f"{name} has no host. {_FORMAT_HELP}")
    if port == 0 or (port is None and not separator):
        raise NeedsHuman(f"{name} has no port. {_FORMAT_HELP}")
    tls = _SCHEMES[scheme] if separator else port == 443
    return Endpoint(host, port or (443 if tls else 80), tls, is_rest, parts.path.rstrip("/") if is_rest else "")


def parse_endpoints(texts: Sequence[str]) -> tuple[tuple[Endpoint, ...], tuple[str, ...]]:
    """The endpoints of a list without duplicates, and a warning for each duplicate.

    Raises:
        NeedsHuman: the list is empty, or an item is not an endpoint. The error names the position of the item.
    """
    if not texts:
        raise NeedsHuman(f"RPC_ENDPOINTS is empty. {_FORMAT_HELP} Separate several with commas.")
    positions: dict[Endpoint, int] = {}
    warnings = []
    for number, text in enumerate(texts, start=1):
        endpoint = parse_endpoint(text, f"Item {number} of RPC_ENDPOINTS")
        if endpoint in positions:
            warnings.append(
                f"Item {number} of RPC_ENDPOINTS is the same endpoint as item {positions[endpoint]}: {endpoint}."
            )
        positions.setdefault(endpoint, number)
    return tuple(positions), tuple(warnings)
