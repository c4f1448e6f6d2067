"""secp256k1 keys, addresses and signatures as the Cosmos SDK defines them.

A signature is 64 bytes r||s over sha256 of the bytes, with s in the lower half of its range. An address is bech32 over
ripemd160(sha256(compressed public key)). Signing is deterministic (RFC 6979): the same bytes give the same signature.
"""

from __future__ import annotations

import hashlib
import hmac

import bech32
from coincurve import PrivateKey, PublicKey
from coincurve.ecdsa import cdata_to_der, deserialize_compact

from forecastd.chain.networks import ADDRESS_PREFIX

HD_PATH = "m/44'/118'/0'/0/0"
_HARDENED = 0x80000000


def derive_private_key(seed: bytes) -> bytes:
    """The 32-byte private key at m/44'/118'/0'/0/0 of a BIP-39 seed (BIP-32, private derivation)."""
    digest = hmac.new(b"Bitcoin seed", seed, hashlib.sha512).digest()
    key, chain = PrivateKey(digest[:32]), digest[32:]
    for step in HD_PATH.split("/")[1:]:
        index = int(step.rstrip("'")) + (_HARDENED if step.endswith("'") else 0)
        parent = b"\0" + key.secret if index >= _HARDENED else key.public_key.format(compressed=True)
        digest = hmac.new(chain, parent + index.to_bytes(4, "big"), hashlib.sha512).digest()
        key, chain = key.add(digest[:32]), digest[32:]
    return key.secret


def address_from_public_key(public_key: bytes) -> str:
    """The `allo1...` address of a compressed public key."""
    words = bech32.convertbits(_ripemd160(hashlib.sha256(public_key).digest()), 8, 5) or []
    return str(bech32.bech32_encode(ADDRESS_PREFIX, words))


def is_address(text: str) -> bool:
    """Whether `text` is a valid account address of this network, checksum included."""
    prefix, words = bech32.bech32_decode(text)
    if prefix != ADDRESS_PREFIX or words is None or text != text.lower():
        return False
    payload = bech32.convertbits(words, 5, 8, False)
    return payload is not None and len(payload) in (20, 32)


def verify_signature(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` is this key's over sha256 of `message`. False for a high s, a wrong length or a bad key."""
    if len(public_key) != 33 or len(signature) != 64:
        return False
    try:
        return PublicKey(public_key).verify(cdata_to_der(deserialize_compact(signature)), message)
    except ValueError:
        return False


def _ripemd160(data: bytes) -> bytes:
    try:
        return hashlib.new("ripemd160", data).digest()
    except ValueError:  # OpenSSL was built without it
        from Crypto.Hash import RIPEMD160

        return RIPEMD160.new(data).digest()
