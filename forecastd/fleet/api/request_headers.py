"""What a request's headers say of who sends it, and whether a browser was talked into sending it.

A web page that a user of this machine looks at can send requests here. Two things give it away: the name it used for this
machine (Host; a name of its own that it made to point here), and the site that the page is of (Origin).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

Headers = Iterable[tuple[bytes, bytes]]

LOCAL_NAMES = frozenset({"localhost"})
CLIENT_BUCKETS = 4096  # how many different clients are told apart


def header(headers: Headers, name: bytes) -> str | None:
    """The value of a header (its name in lower case), None without it or when it is there twice with two values."""
    values = {value for key, value in headers if key == name}
    return values.pop().decode("latin-1").strip() if len(values) == 1 else None


def request_key(headers: Headers) -> str | None:
    """The API key that a request bears: `X-API-Key: KEY` or `Authorization: Bearer KEY`."""
    key = header(headers, b"x-api-key")
    if key is not None:
        return key
    scheme, _, credentials = (header(headers, b"authorization") or "").partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" else None


def is_local_name(host: str | None) -> bool:
    """Whether a Host header names this machine as only a program of this machine would."""
    name = host_name(host)
    if name in LOCAL_NAMES:
        return True
    try:
        return name is not None and ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def host_name(host: str | None) -> str | None:
    """The name in a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname if host else None
    except ValueError:
        return None


def is_cross_site(origin: str | None, host: str | None, allowed: Iterable[str]) -> bool:
    """Whether a request comes from the page of another site. `allowed`: sites that may."""
    if origin is None or origin in allowed:
        return False
    try:
        return host is None or urlsplit(origin).netloc.lower() != host.lower()
    except ValueError:
        return True


def client_bucket(client: str, salt: int) -> str:
    """Which counter an address is counted in. An IPv6 network of 64 bits is one client; the number of counters is fixed."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return "unknown"
    mapped = getattr(address, "ipv4_mapped", None) or address
    number = int(mapped) if mapped.version == 4 else int(mapped) >> 64
    return f"address-{hash((number, salt)) % CLIENT_BUCKETS}"


def declared_length(headers: Headers) -> int | None:
    """The Content-Length of a request, None when it declares none that can be read."""
    text = header(headers, b"content-length")
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) <= 18 else None


def is_encoded(headers: Headers) -> bool:
    """Whether the body is packed in some way."""
    return (header(headers, b"content-encoding") or "identity").lower() != "identity"
