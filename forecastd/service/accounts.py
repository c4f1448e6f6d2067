"""Who a service runs as, and what the modes of files let that account do."""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from forecastd.errors import NeedsHuman

USUAL = "forecastd"


@dataclass(frozen=True)
class Account:
    """Somebody on this machine."""

    name: str
    uid: int
    groups: frozenset[int]

    def may_enter(self, directory: Path) -> bool:
        """Whether its mode lets this account through."""
        return self._may(directory, 0o1)

    def may_read(self, file: Path) -> bool:
        """Whether its mode lets this account read it."""
        return self._may(file, 0o4)

    def _may(self, path: Path, bit: int) -> bool:
        try:
            info = path.stat()
        except OSError:
            return False
        mode = stat.S_IMODE(info.st_mode)
        if info.st_uid == self.uid:
            return bool(mode & bit << 6)
        return bool(mode & (bit << 3 if info.st_gid in self.groups else bit))


def myself() -> Account:
    """Who runs this process; where nobody gave the number a name, the number serves."""
    number = os.getuid()
    try:
        return _account(pwd.getpwuid(number))
    except KeyError:
        return Account(str(number), number, frozenset(os.getgroups()))


def find(name: str) -> Account:
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
    return _account(entry)


def usual(directory: Path) -> Account:
    """The owner of the working directory; where that is root, the account `forecastd`. Raises as `find` does."""
    try:
        owner = pwd.getpwuid(directory.stat().st_uid)
    except (OSError, KeyError):
        return find(USUAL)
    return _account(owner) if owner.pw_uid else find(USUAL)


def _account(entry: pwd.struct_passwd) -> Account:
    return Account(entry.pw_name, entry.pw_uid, frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid)))
