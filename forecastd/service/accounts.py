"""Who a service runs as, and what the modes of files let that account do."""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from forecastd.errors import NeedsHuman

DEFAULT_ACCOUNT = "forecastd"


@dataclass(frozen=True)
class UnixAccount:
    """Somebody on this machine."""

    name: str
    uid: int
    groups: frozenset[int]

    def can_enter(self, directory: Path) -> bool:
        """Whether its mode lets this account through."""
        return self._has_permission(directory, 0o1)

    def can_read(self, file: Path) -> bool:
        """Whether its mode lets this account read it."""
        return self._has_permission(file, 0o4)

    def _has_permission(self, path: Path, bit: int) -> bool:
        try:
            info = path.stat()
        except OSError:
            return False
        mode = stat.S_IMODE(info.st_mode)
        if info.st_uid == self.uid:
            return bool(mode & bit << 6)
        return bool(mode & (bit << 3 if info.st_gid in self.groups else bit))


def current_account() -> UnixAccount:
    """Who runs this process; where nobody gave the number a name, the number serves."""
    uid = os.getuid()
    try:
        return _from_entry(pwd.getpwuid(uid))
    except KeyError:
        return UnixAccount(str(uid), uid, frozenset(os.getgroups()))


def find_account(name: str) -> UnixAccount:
    """The account of this name.

    Raises:
        NeedsHuman: there is none, or it is root's.
    """
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise NeedsHuman(
            f"There is no account {name} on this machine. Name another with --run-as, or make it: "
            f"useradd --system --home-dir /var/lib/forecastd --shell /usr/sbin/nologin {name}"
        ) from None
    if entry.pw_uid == 0:
        raise NeedsHuman("A worker needs nothing that only root may do. Name another account with --run-as.")
    return _from_entry(entry)


def default_account(directory: Path) -> UnixAccount:
    """The owner of the working directory; where that is root, the account `forecastd`. Raises as `find` does."""
    try:
        owner = pwd.getpwuid(directory.stat().st_uid)
    except (OSError, KeyError):
        return find_account(DEFAULT_ACCOUNT)
    return _from_entry(owner) if owner.pw_uid else find_account(DEFAULT_ACCOUNT)


def _from_entry(entry: pwd.struct_passwd) -> UnixAccount:
    return UnixAccount(entry.pw_name, entry.pw_uid, frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid)))
