"""Parses the bytes of a transaction, as far as the local chain supports it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from forecastd.chain.codec import tx_hash
from forecastd.chain.networks import DENOM
from forecastd.chain.proto.cosmos_pb2 import AuthInfo, Coin, PubKey, SignerInfo, TxBody, TxRaw
from forecastd.chain.proto.emissions_pb2 import InsertWorkerPayloadRequest, RegisterRequest

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
            return int(self.content.worker_data_bundle.topic_id)
        return int(self.content.topic_id) if self.content is not None else 0

    @property
    def nonce(self) -> int:
        return int(self.content.worker_data_bundle.nonce.block_height) if self.kind == "payload" else 0


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
    outer = _parse(TxRaw, raw)
    if not outer.body_bytes or not outer.auth_info_bytes:
        raise UnreadableTx("no body or no auth info")
    body, auth = _parse(TxBody, outer.body_bytes), _parse(AuthInfo, outer.auth_info_bytes)
    signer = auth.signer_infos[0] if auth.signer_infos else SignerInfo()
    return Tx(
        raw=raw,
        hash=tx_hash(raw),
        body_bytes=outer.body_bytes,
        auth_bytes=outer.auth_info_bytes,
        messages=tuple(_read_message(wrapped) for wrapped in body.messages),
        public_key=_parse(PubKey, signer.public_key.value).key,
        signature=outer.signatures[0] if outer.signatures else b"",
        signature_count=len(outer.signatures),
        sequence=signer.sequence,
        gas=auth.fee.gas_limit,
        fee=_read_fee(auth.fee.amount),
        memo=body.memo,
        timeout_height=body.timeout_height,
    )


def _read_fee(coins: Iterable[Coin]) -> int | None:
    if any(coin.denom != DENOM or not coin.amount.isdigit() for coin in coins):
        return None
    return sum(int(coin.amount) for coin in coins)


def _read_message(wrapped: Any) -> TxMessage:
    match = _EMISSIONS.fullmatch(wrapped.type_url)
    if match is None:
        return TxMessage("other", "", wrapped.type_url, None)
    version, name = match.groups()
    if name == "RegisterRequest":
        return TxMessage("register", version, wrapped.type_url, _parse(RegisterRequest, wrapped.value))
    return TxMessage("payload", version, wrapped.type_url, _parse(InsertWorkerPayloadRequest, wrapped.value))


def _parse(message_class: Any, data: bytes) -> Any:
    try:
        return message_class.FromString(data)
    except DecodeError as error:
        raise UnreadableTx(f"{message_class.__name__}: {type(error).__name__}") from None
