"""Builds and signs transactions: a worker payload or a registration, in sign mode DIRECT.

Invariant: `sign_submission` is the only place that signs a forecast. It refuses data marked synthetic for every chain
that is not local. Payload layout: emissions v9 carries the value in `value`; v10 carries it in `values` under the label
`y` and leaves `value` at "0".
"""

from __future__ import annotations

import hashlib
from typing import Any

from forecastd.chain.networks import DENOM, is_local
from forecastd.chain.sdk import EmissionsVersion, canonical_decimal, emissions, messages
from forecastd.chain.wallet import Wallet
from forecastd.errors import NeedsHuman
from forecastd.ledger.ledger import Submission

VALUE_LABEL = "y"  # the label of a topic with a single output
_SECP256K1 = "/cosmos.crypto.secp256k1.PubKey"


def canonical_value(value: float | str) -> str:
    """The decimal exactly as the chain writes it. Accepts numpy floats too.

    Raises:
        ValueError: `value` is not a finite number.
    """
    return canonical_decimal(value if isinstance(value, str) else float(value))


def tx_hash(tx_bytes: bytes) -> str:
    """The hash that identifies a transaction: the upper-case hex sha256 of its bytes."""
    return hashlib.sha256(tx_bytes).hexdigest().upper()


def payload_message(
    wallet: Wallet, *, version: EmissionsVersion, topic_id: int, nonce: int, value: str
) -> tuple[str, bytes]:
    """Type URL and bytes of an `InsertWorkerPayloadRequest` whose inner bundle is signed.

    The signature of the bundle covers the sha256 of the serialized `InputInferenceForecastBundle`. The chain serializes
    the bundle again to verify it, so `value` must be canonical.
    """
    em, v3 = emissions(version), messages("emissions.v3")
    value_fields: dict[str, Any] = {"value": value}
    if version == "v10":
        value_fields = {"value": "0", "values": [em.InputLabeledValue(label=VALUE_LABEL, value=value)]}
    inference = em.InputInference(topic_id=topic_id, block_height=nonce, inferer=wallet.address, **value_fields)
    bundle = em.InputInferenceForecastBundle(inference=inference)
    data = em.InputWorkerDataBundle(
        worker=wallet.address,
        nonce=v3.Nonce(block_height=nonce),
        topic_id=topic_id,
        inference_forecasts_bundle=bundle,
        inferences_forecasts_bundle_signature=wallet.sign(bytes(bundle)),
        pubkey=wallet.public_key.hex(),
    )
    request = em.InsertWorkerPayloadRequest(sender=wallet.address, worker_data_bundle=data)
    return f"/emissions.{version}.InsertWorkerPayloadRequest", bytes(request)


def register_message(wallet: Wallet, *, version: EmissionsVersion, topic_id: int) -> tuple[str, bytes]:
    """Type URL and bytes of the request that registers the wallet as a worker of a topic.

    The wallet is its own owner.
    """
    request = emissions(version).RegisterRequest(
        sender=wallet.address, topic_id=topic_id, owner=wallet.address, is_reputer=False
    )
    return f"/emissions.{version}.RegisterRequest", bytes(request)


def build_tx(
    wallet: Wallet,
    message: tuple[str, bytes],
    *,
    chain_id: str,
    account_number: int,
    sequence: int,
    gas: int,
    fee_uallo: int,
    timeout_height: int = 0,
) -> bytes:
    """The signed transaction's bytes. A `timeout_height` of 0 means none."""
    body, auth = _body_and_auth(
        wallet, message, sequence=sequence, gas=gas, fee_uallo=fee_uallo, timeout_height=timeout_height
    )
    tx = messages("cosmos.tx.v1beta1")
    sign_doc = tx.SignDoc(body_bytes=body, auth_info_bytes=auth, chain_id=chain_id, account_number=account_number)
    return bytes(tx.TxRaw(body_bytes=body, auth_info_bytes=auth, signatures=[wallet.sign(bytes(sign_doc))]))


def unsigned_tx(wallet: Wallet, message: tuple[str, bytes], *, sequence: int) -> bytes:
    """The transaction with an empty signature, for a node to simulate its gas."""
    body, auth = _body_and_auth(wallet, message, sequence=sequence, gas=0, fee_uallo=0, timeout_height=0)
    tx = messages("cosmos.tx.v1beta1")
    return bytes(tx.TxRaw(body_bytes=body, auth_info_bytes=auth, signatures=[b""]))


def sign_submission(
    wallet: Wallet,
    *,
    version: EmissionsVersion,
    chain_id: str,
    topic_id: int,
    nonce: int,
    value: float | str,
    synthetic: bool,
    account_number: int,
    sequence: int,
    gas: int,
    fee_uallo: int,
    timeout_height: int,
) -> Submission:
    """Sign one forecast. No other function does that.

    `synthetic` is the flag of the candles' provenance. `timeout_height` is the last block of the submission window.

    Raises:
        NeedsHuman: the forecast was made from synthetic data and the chain is not a local one.
        ValueError: the value is not finite, or `timeout_height` is before the nonce.
    """
    if synthetic and not is_local(chain_id):
        raise NeedsHuman(
            f"The forecast uses synthetic data, which is never signed for {chain_id}. "
            "Choose a real source with --source or DATA_SOURCE."
        )
    if timeout_height < nonce:
        raise ValueError(f"timeout height {timeout_height} is before the nonce {nonce}")
    decimal = canonical_value(value)
    message = payload_message(wallet, version=version, topic_id=topic_id, nonce=nonce, value=decimal)
    tx_bytes = build_tx(
        wallet, message, chain_id=chain_id, account_number=account_number, sequence=sequence, gas=gas,
        fee_uallo=fee_uallo, timeout_height=timeout_height,
    )  # fmt: skip
    return Submission(
        chain_id=chain_id, topic_id=topic_id, nonce=nonce, wallet=wallet.address, value=decimal, sequence=sequence,
        tx_bytes=tx_bytes, tx_hash=tx_hash(tx_bytes), timeout_height=timeout_height, gas=gas, fee_uallo=fee_uallo,
    )  # fmt: skip


def _body_and_auth(
    wallet: Wallet, message: tuple[str, bytes], *, sequence: int, gas: int, fee_uallo: int, timeout_height: int
) -> tuple[bytes, bytes]:
    """The body and the auth info of a transaction, serialized."""
    tx, base = messages("cosmos.tx.v1beta1"), messages("cosmos.base.v1beta1")
    signing = messages("cosmos.tx.signing.v1beta1")
    any_message = messages("google.protobuf").Any
    key = messages("cosmos.crypto.secp256k1").PubKey(key=wallet.public_key)
    signer = tx.SignerInfo(
        public_key=any_message(type_url=_SECP256K1, value=bytes(key)),
        mode_info=tx.ModeInfo(single=tx.ModeInfoSingle(mode=signing.SignMode.DIRECT)),
        sequence=sequence,
    )
    coins = [base.Coin(denom=DENOM, amount=str(fee_uallo))] if fee_uallo else []
    auth = tx.AuthInfo(signer_infos=[signer], fee=tx.Fee(amount=coins, gas_limit=gas))
    body = tx.TxBody(messages=[any_message(type_url=message[0], value=message[1])], timeout_height=timeout_height)
    return bytes(body), bytes(auth)
