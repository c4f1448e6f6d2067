"""The wallet: derived as by cosmpy, read only from safe places, never shown."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mnemonic import Mnemonic

from forecastd.chain.keys import address_from_public_key, is_address, verify_signature
from forecastd.chain.wallet import Wallet, open_wallet
from forecastd.errors import NeedsHuman
from forecastd.settings import Settings, load_settings

ENGLISH = Mnemonic("english")
PHRASE = ENGLISH.to_mnemonic(bytes(range(32)))
WORDS = PHRASE.split()


def load_configured_settings(tmp_path: Path, **more: Any) -> Settings:
    return load_settings(**{"state_dir": tmp_path / "state", **more})


def write_private_file(path: Path, text: str = PHRASE, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def leaked_words(text: str) -> list[str]:
    """The words of the phrase in a text."""
    return [word for word in set(WORDS) if word in text.lower().split()]


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([16, 20, 24, 28, 32]).flatmap(lambda size: st.binary(min_size=size, max_size=size)), st.binary())
def test_wallet_equals_cosmpys(entropy: bytes, message: bytes) -> None:
    from cosmpy.aerial.wallet import LocalWallet

    phrase = ENGLISH.to_mnemonic(entropy)
    mine, theirs = Wallet.from_mnemonic(phrase), LocalWallet.from_mnemonic(phrase, prefix="allo")
    assert mine.address == str(theirs.address())
    assert mine.public_key == theirs.public_key().public_key_bytes
    assert mine.sign(message) == theirs.signer().sign(message)


def test_address_without_openssls_ripemd160_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    address = address_from_public_key(b"\2" * 33)

    def refuse(name: str, data: bytes = b"") -> Any:
        raise ValueError(f"unsupported hash type {name}")

    monkeypatch.setattr("hashlib.new", refuse)
    assert address_from_public_key(b"\2" * 33) == address


@given(st.binary(min_size=1), st.integers(0, 63), st.integers(1, 255))
def test_signature_verifies_only_its_message_and_key(message: bytes, place: int, change: int) -> None:
    wallet, other_wallet = Wallet(b"\1" * 32), Wallet(b"\2" * 32)
    signature = wallet.sign(message)
    assert verify_signature(wallet.public_key, message, signature)
    assert not verify_signature(other_wallet.public_key, message, signature)
    assert not verify_signature(wallet.public_key, message + b"x", signature)
    altered = bytearray(signature)
    altered[place] ^= change
    assert not verify_signature(wallet.public_key, message, bytes(altered))


def test_verify_high_s_signature_is_refused() -> None:
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    wallet = Wallet(b"\1" * 32)
    signature = wallet.sign(b"x")
    s = int.from_bytes(signature[32:], "big")
    assert s <= order // 2
    assert not verify_signature(wallet.public_key, b"x", signature[:32] + (order - s).to_bytes(32, "big"))


@pytest.mark.parametrize("bad", [b"", b"\0" * 33, b"\2" + b"\xff" * 32])
def test_verify_bad_key_or_short_signature_is_false(bad: bytes) -> None:
    wallet = Wallet(b"\1" * 32)
    assert not verify_signature(bad, b"x", wallet.sign(b"x"))
    assert not verify_signature(wallet.public_key, b"x", bad)


def test_is_address_checks_prefix_checksum_and_length() -> None:
    address = address_from_public_key(Wallet(b"\1" * 32).public_key)
    assert is_address(address)
    for malformed in ("", "allo1", address[:-1], address[:-1] + ("q" if address[-1] != "q" else "p"), address.upper(),
                  "cosmos1" + address[5:], address + "q"):  # fmt: skip
        assert not is_address(malformed)


@given(st.integers(0, len(WORDS) - 1), st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=12))
def test_mnemonic_typo_is_located_without_showing_words(place: int, typed: str) -> None:
    words = list(WORDS)
    words[place] = typed + "qqq"  # no BIP-39 word ends like this
    with pytest.raises(NeedsHuman, match=rf"word {place + 1} is not in the BIP-39 English list") as caught:
        Wallet.from_mnemonic(" ".join(words), origin="MNEMONIC")
    assert not leaked_words(str(caught.value))
    assert typed + "qqq" not in str(caught.value)


@pytest.mark.parametrize(
    ("phrase", "message"),
    [
        ("", "has 0 words"),
        (" ".join(WORDS[:23]), "has 23 words"),
        (" ".join([*WORDS[:22], WORDS[23], WORDS[22]]), "checksum is wrong"),
        (" ".join(["zzz", *WORDS[1:22], "zzz", "zzz"]), "words 1, 23, 24 are not in"),
    ],
)
def test_mnemonic_invalid_phrase_names_the_cause(phrase: str, message: str) -> None:
    with pytest.raises(NeedsHuman, match=message) as caught:
        Wallet.from_mnemonic(phrase)
    assert not leaked_words(str(caught.value))


@pytest.mark.parametrize("text", [f"  {PHRASE}\n", PHRASE.upper(), f'"{PHRASE}"', PHRASE.replace(" ", "\n")])
def test_mnemonic_loose_formatting_is_accepted(text: str) -> None:
    assert Wallet.from_mnemonic(text).address == Wallet.from_mnemonic(PHRASE).address


def test_wallet_repr_shows_only_the_address() -> None:
    wallet = Wallet.from_mnemonic(PHRASE)
    key = wallet._key.secret
    for text in (repr(wallet), str(wallet), f"{wallet!r}"):
        assert wallet.address in text
        assert key.hex() not in text
        assert not leaked_words(text)
    with pytest.raises(TypeError):
        pickle.dumps(wallet)


def test_open_wallet_prefers_the_environment(tmp_path: Path) -> None:
    other_file = write_private_file(tmp_path / "other", ENGLISH.to_mnemonic(b"\7" * 32))
    wallet = open_wallet(load_configured_settings(tmp_path, mnemonic=PHRASE, mnemonic_file=other_file))
    assert wallet.address == Wallet.from_mnemonic(PHRASE).address


@pytest.mark.parametrize("network", ["local", "testnet", "mainnet"])
def test_open_wallet_reads_a_private_file(tmp_path: Path, network: str) -> None:
    file = write_private_file(tmp_path / "phrase", PHRASE + "\n")
    wallet = open_wallet(load_configured_settings(tmp_path, mnemonic_file=file, allora_network=network))
    assert wallet.address == Wallet.from_mnemonic(PHRASE).address


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o700, 0o666])
def test_open_wallet_readable_by_others_is_refused_with_fix(tmp_path: Path, mode: int) -> None:
    file = write_private_file(tmp_path / "phrase", mode=mode)
    with pytest.raises(NeedsHuman, match="chmod 600"):
        open_wallet(load_configured_settings(tmp_path, mnemonic_file=file))


@pytest.mark.parametrize("kind", ["missing", "directory", "pipe", "binary", "huge"])
def test_open_wallet_unusable_file_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "phrase"
    if kind == "directory":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file, 0o600)
    elif kind == "binary":
        file.write_bytes(b"\xff\xfe" * 50)
        file.chmod(0o600)
    elif kind == "huge":
        write_private_file(file, "abandon " * 1000)
    with pytest.raises(NeedsHuman, match=str(file)):
        open_wallet(load_configured_settings(tmp_path, mnemonic_file=file))


def test_open_wallet_reads_a_systemd_credential(tmp_path: Path) -> None:
    write_private_file(tmp_path / "mnemonic", mode=0o440)  # as mounted by systemd
    wallet = open_wallet(load_configured_settings(tmp_path, credentials_directory=tmp_path, allora_network="mainnet"))
    assert wallet.address == Wallet.from_mnemonic(PHRASE).address


def test_open_wallet_missing_names_the_settings(tmp_path: Path) -> None:
    with pytest.raises(NeedsHuman, match="MNEMONIC_FILE"):
        open_wallet(load_configured_settings(tmp_path, allora_network="testnet"))
    assert not (tmp_path / "state").exists()


def test_open_wallet_address_mismatch_shows_both(tmp_path: Path) -> None:
    other_address = Wallet(b"\1" * 32).address
    with pytest.raises(NeedsHuman) as caught:
        open_wallet(load_configured_settings(tmp_path, mnemonic=PHRASE, allora_wallet_addr=other_address))
    assert other_address in str(caught.value)
    assert Wallet.from_mnemonic(PHRASE).address in str(caught.value)
    mine = Wallet.from_mnemonic(PHRASE).address
    assert open_wallet(load_configured_settings(tmp_path, mnemonic=PHRASE, allora_wallet_addr=mine)).address == mine


def test_open_wallet_local_wallet_is_created_once(tmp_path: Path) -> None:
    first, second = open_wallet(load_configured_settings(tmp_path)), open_wallet(load_configured_settings(tmp_path))
    assert first.address == second.address
    folder = tmp_path / "state" / "localnet"
    assert [(path.name, path.stat().st_mode & 0o777) for path in folder.iterdir()] == [("wallet", 0o600)]


def test_open_wallet_unwritable_state_needs_human(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where a directory should be")
    with pytest.raises(NeedsHuman, match="STATE_DIR"):
        open_wallet(load_configured_settings(tmp_path))
