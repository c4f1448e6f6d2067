"""Reads request bodies, with limits on the size and time of one body and on the memory of all bodies together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect, Request

from forecastd.fleet.api.errors import RequestRefused
from forecastd.fleet.api.security import declared_length, is_encoded

BODY_TIMEOUT_SECONDS = 20.0  # to receive a whole body
MAX_CONCURRENT_BODIES = 4  # of the largest size, received at the same time


class BodyReader:
    """Reads the bodies of one server; used in its event loop only. `max_bytes`: the limit for one body."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._buffered_bytes, self._max_buffered_bytes = 0, MAX_CONCURRENT_BODIES * max_bytes

    def check_length(self, request: Request) -> None:
        """Raises RequestRefused when the declared length is too large."""
        length = declared_length(request.scope["headers"])
        if length is not None and length > self.max_bytes:
            raise self._too_large()

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The whole body, which counts as buffered until the block is left.

        Raises:
            RequestRefused: it is too large (413), encoded (415) or too slow (408), or too many bodies are being
                received (503).
        """
        self.check_length(request)
        if is_encoded(request.scope["headers"]):
            raise RequestRefused(415, "The body has a Content-Encoding.", "Send it without one.")
        body = bytearray()
        try:
            await self._receive(body, request)
            yield bytes(body)
        finally:
            self._buffered_bytes -= len(body)

    async def _receive(self, body: bytearray, request: Request) -> None:
        try:
            async with asyncio.timeout(BODY_TIMEOUT_SECONDS):
                async for chunk in request.stream():
                    self._buffered_bytes += len(chunk)
                    body += chunk
                    if len(body) > self.max_bytes:
                        raise self._too_large()
                    if self._buffered_bytes > self._max_buffered_bytes:
                        raise RequestRefused(
                            503, "Too many bodies are being received.", "Send it again in a second.",
                            headers={"Retry-After": "1"},
                        )  # fmt: skip
        except TimeoutError:
            raise RequestRefused(
                408, f"The body did not arrive within {BODY_TIMEOUT_SECONDS:g} s.", "Send smaller batches.",
                headers={"Connection": "close"},
            ) from None  # fmt: skip
        except ClientDisconnect:
            raise RequestRefused(400, "The client disconnected before the end of its body.", "Send it again.") from None

    def _too_large(self) -> RequestRefused:
        message = f"The body is larger than {self.max_bytes >> 20} MB."
        return RequestRefused(413, message, "Send smaller batches, or raise FLEET_MAX_BODY_MB.")
