"""The account that runs a service, and the file permissions of that account."""

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
    """An account on this machine."""

    name: str
    uid: int
    groups: frozenset[int]

    def can_enter(self, directory: Path) -> bool:
        """Whether the directory's mode lets this account enter it."""
        return self._has_permission(directory, 0o1)

    def can_read(self, file: Path) -> bool:
        """Whether the file's mode lets this account read it."""
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
    """The account of this process; without an entry in the user database, the uid is its name."""
    uid = os.getuid()
    try:
        return _from_entry(pwd.getpwuid(uid))
    except KeyError:
        return UnixAccount(str(uid), uid, frozenset(os.getgroups()))


def find_account(name: str) -> UnixAccount:
    """Find an account by name.

    Raises:
        NeedsHuman: there is no such account, or it is root.
    """
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise NeedsHuman(
            f"There is no account {name} on this machine. Choose another with --run-as, or create it: "
            f"useradd --system --home-dir /var/lib/forecastd --shell /usr/sbin/nologin {name}"
        ) from None
    if entry.pw_uid == 0:
        raise NeedsHuman("A worker does not need root. Choose another account with --run-as.")
    return _from_entry(entry)


def default_account(directory: Path) -> UnixAccount:
    """The owner of the working directory, or the account `forecastd` if that is root. Raises as `find_account`."""
    try:
        owner = pwd.getpwuid(directory.stat().st_uid)
    except (OSError, KeyError):
        return find_account(DEFAULT_ACCOUNT)
    return _from_entry(owner) if owner.pw_uid else find_account(DEFAULT_ACCOUNT)


def _from_entry(entry: pwd.struct_passwd) -> UnixAccount:
    return UnixAccount(entry.pw_name, entry.pw_uid, frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid)))
