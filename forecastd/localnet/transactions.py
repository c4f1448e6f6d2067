"""Parses the bytes of a transaction, as far as the local chain supports it."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any

from forecastd.chain.codec import tx_hash
from forecastd.chain.networks import DENOM
from forecastd.chain.sdk import emissions, messages

_EMISSIONS = re.compile(r"/emissions\.(v9|v10)\.(InsertWorkerPayloadRequest|RegisterRequest)")


class UnreadableTx(Exception):
    """The bytes are not a transaction that this chain can parse."""


@dataclass(frozen=True)
class TxMessage:
    """One message. `kind` is payload, register or other; `version` is its emissions version."""

    kind: str
    version: str
    type_url: str
    content: Any

    @property
    def sender(self) -> str:
        return str(self.content.sender) if self.content is not None else ""

    @property
    def topic_id(self) -> int:
        if self.kind == "payload":
            return int(self.content.worker_data_bundle.topic_id) if self.content.worker_data_bundle else 0
        return int(self.content.topic_id) if self.content is not None else 0

    @property
    def nonce(self) -> int:
        bundle = self.content.worker_data_bundle if self.kind == "payload" else None
        return int(bundle.nonce.block_height) if bundle and bundle.nonce else 0


@dataclass(frozen=True)
class Tx:
    """A transaction with one signer. `fee` in uallo, or None when it is in another coin."""

    raw: bytes
    hash: str
    body_bytes: bytes
    auth_bytes: bytes
    messages: tuple[TxMessage, ...]
    public_key: bytes
    signature: bytes
    signature_count: int
    sequence: int
    gas: int
    fee: int | None
    memo: str
    timeout_height: int

    @property
    def sender(self) -> str:
        return self.messages[0].sender if self.messages else ""

    @property
    def is_payload(self) -> bool:
        return bool(self.messages) and self.messages[0].kind == "payload"


def read_tx(raw: bytes) -> Tx:
    """Parse a transaction.

    Raises:
        UnreadableTx: the bytes are not a transaction.
    """
    tx, crypto = messages("cosmos.tx.v1beta1"), messages("cosmos.crypto.secp256k1")
    outer = _parse(tx.TxRaw, raw)
    if not outer.body_bytes or not outer.auth_info_bytes:
        raise UnreadableTx("no body or no auth info")
    body, auth = _parse(tx.TxBody, outer.body_bytes), _parse(tx.AuthInfo, outer.auth_info_bytes)
    signer = auth.signer_infos[0] if auth.signer_infos else None
    key = signer.public_key if signer is not None else None
    return Tx(
        raw=raw,
        hash=tx_hash(raw),
        body_bytes=outer.body_bytes,
        auth_bytes=outer.auth_info_bytes,
        messages=tuple(_read_message(wrapped) for wrapped in body.messages),
        public_key=_parse(crypto.PubKey, key.value).key if key is not None else b"",
        signature=outer.signatures[0] if outer.signatures else b"",
        signature_count=len(outer.signatures),
        sequence=signer.sequence if signer is not None else 0,
        gas=auth.fee.gas_limit if auth.fee is not None else 0,
        fee=_read_fee(auth.fee),
        memo=body.memo,
        timeout_height=body.timeout_height,
    )


def _read_fee(fee: Any) -> int | None:
    coins = fee.amount if fee is not None else []
    if any(coin.denom != DENOM or not coin.amount.isdigit() for coin in coins):
        return None
    return sum(int(coin.amount) for coin in coins)


def _read_message(wrapped: Any) -> TxMessage:
    match = _EMISSIONS.fullmatch(wrapped.type_url)
    if match is None:
        return TxMessage("other", "", wrapped.type_url, None)
    version, name = match.groups()
    content = _parse(getattr(emissions(version), name), wrapped.value)  # type: ignore[arg-type]  # v9 or v10
    return TxMessage("register" if name == "RegisterRequest" else "payload", version, wrapped.type_url, content)


def _parse(message_class: Any, data: bytes) -> Any:
    try:
        return message_class.parse(data)
    except (ValueError, TypeError, LookupError, AttributeError, EOFError, OverflowError, struct.error) as error:
        raise UnreadableTx(f"{message_class.__name__}: {type(error).__name__}") from None
