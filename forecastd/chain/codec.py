"""Builds and signs transactions: a worker payload or a registration, in sign mode DIRECT.

Invariant: `sign_submission` is the only place that signs a forecast. It refuses data marked synthetic for every chain
that is not local. Payload layout: emissions v9 carries the value in `value`; v10 carries it in `values` under the label
`y` and leaves `value` at "0".
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from google.protobuf.any_pb2 import Any

from forecastd.chain.methods import EmissionsVersion
from forecastd.chain.networks import DENOM, is_local
from forecastd.chain.proto import cosmos_pb2 as cosmos
from forecastd.chain.proto import emissions_pb2 as emissions
from forecastd.chain.wallet import Wallet
from forecastd.errors import NeedsHuman
from forecastd.ledger.ledger import Submission

VALUE_LABEL = "y"  # the label of a topic with a single output
MAX_ZERO_DECIMALS = 2000  # the chain writes a zero with more of them with an exponent
SECP256K1_KEY = "/cosmos.crypto.secp256k1.PubKey"


@dataclass(frozen=True)
class TxParameters:
    """What a signature needs: the account's number and next sequence, the gas limit, and the fee in uallo."""

    account_number: int
    sequence: int
    gas: int
    fee_uallo: int


def canonical_value(value: float | str) -> str:
    """The decimal exactly as the chain writes it to verify a signature: `1e-07` becomes `1E-7`. Accepts numpy floats too.

    The chain's form is that of Python's `str`, but for a zero with decimals, which has no exponent (cockroachdb/apd,
    format `G`).

    Raises:
        ValueError: `value` is not a finite number.
    """
    try:
        number = Decimal(value if isinstance(value, str) else str(float(value)))
    except InvalidOperation:
        raise ValueError(f"not a decimal: {value!r}") from None
    if not number.is_finite():
        raise ValueError(f"not a finite decimal: {value!r}")
    plain_zero = number.is_zero() and -MAX_ZERO_DECIMALS <= int(number.as_tuple().exponent) < 0
    return format(number, "f") if plain_zero else str(number)


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
    inference = emissions.InputInference(topic_id=topic_id, block_height=nonce, inferer=wallet.address, value=value)
    if version == "v10":
        inference.value = "0"
        inference.values.append(emissions.InputLabeledValue(label=VALUE_LABEL, value=value))
    bundle = emissions.InputInferenceForecastBundle(inference=inference)
    data = emissions.InputWorkerDataBundle(
        worker=wallet.address,
        nonce=emissions.Nonce(block_height=nonce),
        topic_id=topic_id,
        inference_forecasts_bundle=bundle,
        inferences_forecasts_bundle_signature=wallet.sign(bundle.SerializeToString()),
        pubkey=wallet.public_key.hex(),
    )
    request = emissions.InsertWorkerPayloadRequest(sender=wallet.address, worker_data_bundle=data)
    return f"/emissions.{version}.InsertWorkerPayloadRequest", request.SerializeToString()


def register_message(wallet: Wallet, *, version: EmissionsVersion, topic_id: int) -> tuple[str, bytes]:
    """Type URL and bytes of the request that registers the wallet as a worker of a topic.

    The wallet is its own owner.
    """
    request = emissions.RegisterRequest(sender=wallet.address, topic_id=topic_id, owner=wallet.address)
    return f"/emissions.{version}.RegisterRequest", request.SerializeToString()


def build_tx(
    wallet: Wallet, message: tuple[str, bytes], parameters: TxParameters, *, chain_id: str, timeout_height: int = 0
) -> bytes:
    """The signed transaction's bytes. A `timeout_height` of 0 means none."""
    body, auth = _body_and_auth(wallet, message, parameters, timeout_height)
    sign_doc = cosmos.SignDoc(
        body_bytes=body, auth_info_bytes=auth, chain_id=chain_id, account_number=parameters.account_number
    )
    signature = wallet.sign(sign_doc.SerializeToString())
    return bytes(cosmos.TxRaw(body_bytes=body, auth_info_bytes=auth, signatures=[signature]).SerializeToString())


def unsigned_tx(wallet: Wallet, message: tuple[str, bytes], *, sequence: int) -> bytes:
    """The transaction with an empty signature, for a node to simulate its gas."""
    body, auth = _body_and_auth(wallet, message, TxParameters(0, sequence, gas=0, fee_uallo=0), timeout_height=0)
    return bytes(cosmos.TxRaw(body_bytes=body, auth_info_bytes=auth, signatures=[b""]).SerializeToString())


def sign_submission(
    wallet: Wallet,
    *,
    version: EmissionsVersion,
    chain_id: str,
    topic_id: int,
    nonce: int,
    value: float | str,
    synthetic: bool,
    parameters: TxParameters,
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
    tx_bytes = build_tx(wallet, message, parameters, chain_id=chain_id, timeout_height=timeout_height)
    return Submission(
        chain_id=chain_id, topic_id=topic_id, nonce=nonce, wallet=wallet.address, value=decimal,
        sequence=parameters.sequence, tx_bytes=tx_bytes, tx_hash=tx_hash(tx_bytes), timeout_height=timeout_height,
        gas=parameters.gas, fee_uallo=parameters.fee_uallo,
    )  # fmt: skip


def _body_and_auth(
    wallet: Wallet, message: tuple[str, bytes], parameters: TxParameters, timeout_height: int
) -> tuple[bytes, bytes]:
    """The body and the auth info of a transaction, serialized."""
    key = cosmos.PubKey(key=wallet.public_key)
    signer = cosmos.SignerInfo(
        public_key=Any(type_url=SECP256K1_KEY, value=key.SerializeToString()),
        mode_info=cosmos.ModeInfo(single=cosmos.ModeInfo.Single(mode=cosmos.SIGN_MODE_DIRECT)),
        sequence=parameters.sequence,
    )
    coins = [cosmos.Coin(denom=DENOM, amount=str(parameters.fee_uallo))] if parameters.fee_uallo else []
    auth = cosmos.AuthInfo(signer_infos=[signer], fee=cosmos.Fee(amount=coins, gas_limit=parameters.gas))
    body = cosmos.TxBody(messages=[Any(type_url=message[0], value=message[1])], timeout_height=timeout_height)
    return body.SerializeToString(), auth.SerializeToString()
