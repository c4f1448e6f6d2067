"""The channels of an alert: a webhook that gets a JSON object, or a command that gets it on its standard input.

Invariant: both belong to another party and may hang or answer without end, so each has one limit on its total time. The
webhook's URL is a secret, because whoever knows it can post there: no message and no log line contains it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping
from typing import Protocol

from forecastd.errors import NeedsHuman, RetryLater
from forecastd.logs import hide
from forecastd.runtime.http import HttpClient, ResponseTooLarge, request_thread_name, split_http_url

WEBHOOK_SECONDS = 10.0
COMMAND_SECONDS = 30.0
MAX_RESPONSE_BYTES = 65_536  # of a webhook's response; its content is ignored
MIN_SECRET_CHARACTERS = 16  # a shorter URL path may be an ordinary word, which would be redacted everywhere
COMMAND_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_WEBHOOK = "The webhook of ALERT_WEBHOOK"
log = logging.getLogger(__name__)


class AlertChannel(Protocol):
    """Delivers a message's bytes within a limited time.

    `send` raises RetryLater when another attempt may help, NeedsHuman when none will. `stop` aborts a running delivery.
    """

    name: str

    def send(self, body: bytes) -> None: ...

    def stop(self) -> None: ...


class WebhookChannel:
    """POSTs to a URL. Redirects are not followed, because they would carry the message to another host."""

    name = "webhook"

    def __init__(self, url: str, *, timeout: float = WEBHOOK_SECONDS) -> None:
        """Raises NeedsHuman when `url` is not an HTTP URL."""
        parts = split_http_url(url)
        if parts is None:
            raise NeedsHuman("ALERT_WEBHOOK is not a URL: it must be https://HOST/... or http://HOST/...")
        path = url.partition(parts.netloc)[2]
        hide(parts.password or "", path if len(path) >= MIN_SECRET_CHARACTERS else "")
        self._timeout = timeout
        self._client = HttpClient(
            url, name=_WEBHOOK, headers={"Content-Type": "application/json"}, max_bytes=MAX_RESPONSE_BYTES
        )
        for library in ("urllib3.connectionpool", "urllib3.connection", "urllib3.util.retry"):
            logging.getLogger(library).addFilter(_is_address_free)

    def send(self, body: bytes) -> None:
        try:
            status = self._client.request("POST", body=body, deadline=self._timeout).status
        except ResponseTooLarge as error:
            status = error.response.status
        if 200 <= status < 300:
            return
        if 300 <= status < 400:
            raise NeedsHuman(
                f"{_WEBHOOK} answers with a redirect ({status}), which is not followed. Set ALERT_WEBHOOK to the final URL."
            )
        if status in {408, 425, 429} or status >= 500:
            raise RetryLater(f"{_WEBHOOK} answered with {status}.")
        raise NeedsHuman(f"{_WEBHOOK} refused the message with {status}. Check the URL with its provider.")

    def stop(self) -> None:
        """Do nothing: the thread ends with the process."""


class CommandChannel:
    """Runs a command without a shell, in its own session, with a short environment that contains no secret."""

    name = "command"

    def __init__(self, command: str, *, timeout: float = COMMAND_SECONDS) -> None:
        """`command` is split like a shell does. Raises NeedsHuman when it cannot be split."""
        try:
            self._arguments = shlex.split(command)
        except ValueError as error:
            raise NeedsHuman(f"Cannot parse ALERT_COMMAND: {error}. Check its quotes.") from None
        if not self._arguments:
            raise NeedsHuman("ALERT_COMMAND is empty. Remove it, or name a program.")
        if shutil.which(self._arguments[0], path=COMMAND_PATH) is None:
            log.warning("ALERT_COMMAND names %s, which cannot be run here: no alert would be sent.", self._arguments[0])
        self._timeout = timeout
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def send(self, body: bytes) -> None:
        process = self._start()
        try:
            process.communicate(body, self._timeout)
        except subprocess.TimeoutExpired:
            raise RetryLater(
                f"The command of ALERT_COMMAND was killed after {self._timeout:g} s, its time limit."
            ) from None
        finally:
            self._terminate(process)
        if process.returncode:
            raise RetryLater(
                f"The command of ALERT_COMMAND failed with exit code {process.returncode}. Run it manually with a line of "
                "JSON on its standard input; its environment has PATH, LANG, HOME, USER and LOGNAME only."
            )

    def _start(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._stopped:
                raise RetryLater("The daemon is shutting down.")
            try:
                self._process = subprocess.Popen(
                    self._arguments,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=command_environment(),
                    cwd="/",
                    start_new_session=True,
                )
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                raise NeedsHuman(
                    f"The command of ALERT_COMMAND cannot be run: {reason}. Use the program's full path."
                ) from None
            return self._process

    def _terminate(self, process: subprocess.Popen[bytes]) -> None:
        """Kill the process group, unless the command has exited: processes that it left behind are left alone."""
        with self._lock:
            if process.poll() is None:
                _kill_group(process)
            self._process = None
        process.wait()
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._process is not None and self._process.poll() is None:
                _kill_group(self._process)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the process's group. The process leads its group and was not reaped, so its pid is the group's id."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def command_environment() -> Mapping[str, str]:
    """The complete environment of a command."""
    variables = {"PATH": COMMAND_PATH, "LANG": "C.UTF-8"}
    with contextlib.suppress(KeyError):  # no passwd entry, as for systemd's DynamicUser in a container
        user = pwd.getpwuid(os.getuid())
        variables |= {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name}
    return variables


def _is_address_free(record: logging.LogRecord) -> bool:
    """A log filter: whether the record cannot contain the webhook's URL, as those of its thread do."""
    return record.threadName != request_thread_name(_WEBHOOK)
