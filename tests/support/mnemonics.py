"""Mnemonics of throw-away wallets."""

from __future__ import annotations

from mnemonic import Mnemonic


def new_mnemonic() -> str:
    """A random BIP-39 phrase of 12 words."""
    return str(Mnemonic("english").generate(128))
