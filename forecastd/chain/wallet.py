"""The wallet that signs. The mnemonic is read, turned into one key and discarded.

Invariant: the mnemonic appears in no message, log or repr. It comes from `MNEMONIC`, from `MNEMONIC_FILE` (a regular
file that only its owner can read), or from systemd's credential `mnemonic`. On the local network, a missing wallet is
created on first use and stored under the state directory.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from coincurve import PrivateKey
from mnemonic import Mnemonic

from forecastd.chain.keys import address_from_public_key, derive_private_key
from forecastd.errors import NeedsHuman
from forecastd.logs import hide
from forecastd.runtime.files import STATE_DIR_FIX, write_atomic
from forecastd.settings import Settings

_WORD_COUNTS = (12, 15, 18, 21, 24)
_MAX_FILE_BYTES = 4096  # bytes; 24 words of at most 8 letters need 216


class Wallet:
    """One key. `address` is `allo1...`; `public_key` has 33 bytes, compressed."""

    __slots__ = ("_key", "address", "public_key")

    def __init__(self, private_key: bytes) -> None:
        """Raises ValueError when the 32 bytes are not a secp256k1 private key."""
        self._key = PrivateKey(private_key)
        self.public_key: bytes = self._key.public_key.format(compressed=True)
        self.address: str = address_from_public_key(self.public_key)

    @classmethod
    def from_mnemonic(cls, phrase: str, *, origin: str = "The mnemonic") -> Wallet:
        """The wallet of a BIP-39 phrase without a passphrase, with the derivation of cosmpy and allorad.

        Raises:
            NeedsHuman: the phrase is not valid. The error names `origin` and the positions of wrong words, but no word.
        """
        return cls(derive_private_key(_seed(phrase, origin)))

    def sign(self, message: bytes) -> bytes:
        """64 bytes r||s, s in the lower half, over sha256 of `message`."""
        return self._key.sign_recoverable(message)[:64]

    def __repr__(self) -> str:
        return f"Wallet({self.address})"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("A wallet is never pickled or sent to another process.")


def open_wallet(settings: Settings) -> Wallet:
    """Open the wallet that the settings name.

    Raises:
        NeedsHuman: there is none, it cannot be read safely, its phrase is wrong, or it is not the wallet of
            `ALLORA_WALLET_ADDR`.
    """
    wallet = _load_wallet(settings)
    expected_address = settings.wallet.address
    if expected_address is not None and expected_address.strip() != wallet.address:
        raise NeedsHuman(
            f"ALLORA_WALLET_ADDR is {expected_address.strip()}, but the mnemonic's address is {wallet.address}. "
            "Correct the wrong one; nothing was signed."
        )
    return wallet


def _load_wallet(settings: Settings) -> Wallet:
    mnemonic, file = settings.wallet.mnemonic, settings.wallet.mnemonic_file
    if mnemonic is not None:
        return Wallet.from_mnemonic(mnemonic.get_secret_value(), origin="MNEMONIC")
    if file is not None:
        return Wallet.from_mnemonic(_read(file, private=True), origin=f"The file {file}")
    if settings.systemd.credentials_directory is not None:
        credential = settings.systemd.credentials_directory / "mnemonic"
        if credential.exists():
            return Wallet.from_mnemonic(_read(credential, private=False), origin="The systemd credential mnemonic")
    if settings.chain.network == "local":
        return _local_wallet(settings.state_path / "localnet" / "wallet")
    raise NeedsHuman(
        f"No wallet is set for {settings.chain.network}. Set MNEMONIC_FILE to a file with the phrase (chmod 600), "
        "or MNEMONIC, or give systemd the credential mnemonic."
    )


def _local_wallet(path: Path) -> Wallet:
    """The wallet of the local network, created if missing.

    Two processes that create it at once end with the same one.
    """
    if not path.exists():
        phrase = Mnemonic("english").to_mnemonic(secrets.token_bytes(32))
        write_atomic(path, f"{phrase}\n".encode("ascii"), overwrite=False, fix=STATE_DIR_FIX)
    return Wallet.from_mnemonic(_read(path, private=True), origin=f"The local wallet {path}")


def _read(path: Path, *, private: bool) -> str:
    """The text of a file; `private`: one that only its owner can read.

    Raises:
        NeedsHuman: it is missing, not a regular file, readable by others, or not a text file of the size of a phrase.
    """
    try:
        # Non-blocking, so that a named pipe is refused instead of blocking here.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise NeedsHuman(f"Cannot read the mnemonic file {path}: {error.strerror}.") from error
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise NeedsHuman(f"{path} is not a regular file. Put the phrase into a regular file with mode 0600.")
        mode = stat.S_IMODE(info.st_mode)
        if private and mode & 0o177:
            raise NeedsHuman(f"{path} has mode {mode:04o}, so others may read the phrase. Run: chmod 600 {path}")
        data = os.read(descriptor, _MAX_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > _MAX_FILE_BYTES or not data.isascii():
        raise NeedsHuman(f"{path} does not hold a mnemonic: it must contain 12 to 24 English words and nothing else.")
    return data.decode("ascii")


def _seed(phrase: str, origin: str) -> bytes:
    language = Mnemonic("english")
    words = phrase.strip().strip("\"'").lower().split()
    hide(" ".join(words))  # redacted wherever it came from: even a wrong phrase may be almost right
    if len(words) not in _WORD_COUNTS:
        raise NeedsHuman(f"{origin} has {len(words)} words; a mnemonic has 12, 15, 18, 21 or 24.")
    wordlist = set(language.wordlist)
    wrong_positions = [str(position) for position, word in enumerate(words, start=1) if word not in wordlist]
    if wrong_positions:
        subject, verb = ("words", "are") if len(wrong_positions) > 1 else ("word", "is")
        subject = f"{subject} {', '.join(wrong_positions)} {verb}"
        raise NeedsHuman(f"{origin}: {subject} not in the BIP-39 English list. Check for a typing error there.")
    if not language.check(" ".join(words)):
        raise NeedsHuman(
            f"{origin}: all words are BIP-39 words, but the checksum is wrong: "
            "two words are swapped, or one word is wrong."
        )
    return bytes(Mnemonic.to_seed(" ".join(words)))
