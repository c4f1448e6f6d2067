"""Signed transactions: their bytes, and the data that is never signed."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.chain.codec import TxParameters, build_tx, canonical_value, register_message, sign_submission, tx_hash
from forecastd.chain.keys import verify_signature
from forecastd.chain.methods import EmissionsVersion
from forecastd.chain.proto.cosmos_pb2 import AuthInfo, SignDoc, TxBody, TxRaw
from forecastd.chain.proto.emissions_pb2 import InsertWorkerPayloadRequest, RegisterRequest
from forecastd.chain.wallet import Wallet
from forecastd.errors import NeedsHuman
from forecastd.ledger.ledger import Submission

WALLET = Wallet(b"\5" * 32)
PARAMETERS = TxParameters(account_number=7, sequence=3, gas=250_000, fee_uallo=5_000)
VERSIONS = pytest.mark.parametrize("version", ["v9", "v10"])


def sign_forecast(**more: Any) -> Submission:
    fields = {
        "version": "v10", "chain_id": "allora-testnet-1", "topic_id": 67, "nonce": 1000, "value": 0.0123,
        "synthetic": False, "parameters": PARAMETERS, "timeout_height": 1719,
    }  # fmt: skip
    return sign_submission(WALLET, **{**fields, **more})


def parse_tx(submission: Submission) -> tuple[Any, Any, Any]:
    """The raw transaction, its body and its auth info."""
    raw = TxRaw.FromString(submission.tx_bytes)
    return raw, TxBody.FromString(raw.body_bytes), AuthInfo.FromString(raw.auth_info_bytes)


@VERSIONS
def test_payload_fields_follow_the_version(version: EmissionsVersion) -> None:
    _, body, _ = parse_tx(sign_forecast(version=version, value=1e-7))
    assert [message.type_url for message in body.messages] == [f"/emissions.{version}.InsertWorkerPayloadRequest"]
    request = InsertWorkerPayloadRequest.FromString(body.messages[0].value)
    bundle = request.worker_data_bundle
    inference = bundle.inference_forecasts_bundle.inference
    assert (request.sender, bundle.worker, inference.inferer) == (WALLET.address,) * 3
    assert (bundle.topic_id, inference.topic_id) == (67, 67)
    assert (bundle.nonce.block_height, inference.block_height) == (1000, 1000)
    assert bundle.pubkey == WALLET.public_key.hex()
    if version == "v10":
        assert (
            inference.value,
            [(labeled_value.label, labeled_value.value) for labeled_value in inference.values],
        ) == ("0", [("y", "1E-7")])
    else:
        assert inference.value == "1E-7"


@VERSIONS
def test_signatures_verify_over_the_chains_bytes(version: EmissionsVersion) -> None:
    submission = sign_forecast(version=version)
    raw, body, _ = parse_tx(submission)
    bundle = InsertWorkerPayloadRequest.FromString(body.messages[0].value).worker_data_bundle
    inner, signature = (
        bundle.inference_forecasts_bundle.SerializeToString(),
        bundle.inferences_forecasts_bundle_signature,
    )
    assert verify_signature(WALLET.public_key, inner, signature)
    document = SignDoc(
        body_bytes=raw.body_bytes, auth_info_bytes=raw.auth_info_bytes, chain_id="allora-testnet-1", account_number=7
    )
    assert verify_signature(WALLET.public_key, document.SerializeToString(), raw.signatures[0])


def test_tx_carries_sequence_fee_gas_and_timeout() -> None:
    submission = sign_forecast()
    _, body, auth = parse_tx(submission)
    assert body.timeout_height == submission.timeout_height == 1719
    assert [signer.sequence for signer in auth.signer_infos] == [submission.sequence] == [3]
    assert (auth.fee.gas_limit, [(coin.denom, coin.amount) for coin in auth.fee.amount]) == (
        250_000,
        [("uallo", "5000")],
    )
    assert submission.tx_hash == tx_hash(submission.tx_bytes) == hashlib.sha256(submission.tx_bytes).hexdigest().upper()


def test_tx_bytes_equal_cosmpys() -> None:
    from cosmpy.aerial.coins import Coin
    from cosmpy.aerial.tx import SigningCfg, Transaction, TxFee
    from cosmpy.crypto.keypairs import PrivateKey
    from cosmpy.protos.cosmos.bank.v1beta1.tx_pb2 import MsgSend

    key = PrivateKey(b"\5" * 32)
    message = MsgSend(from_address=WALLET.address, to_address=WALLET.address)
    theirs = Transaction()
    theirs.add_message(message)
    fee = TxFee(amount=[Coin(5000, "uallo")], gas_limit=250_000)
    theirs.seal(SigningCfg.direct(key.public_key, 3), fee)
    theirs.sign(key, "localnet", 7, deterministic=True).complete()
    mine = build_tx(
        WALLET, ("/cosmos.bank.v1beta1.MsgSend", message.SerializeToString()), PARAMETERS, chain_id="localnet"
    )  # fmt: skip
    assert mine == theirs.tx.SerializeToString()


@pytest.mark.parametrize("chain_id", ["allora-testnet-1", "allora-mainnet-1", "localnetwork", ""])
def test_sign_submission_synthetic_on_real_chain_is_refused(chain_id: str) -> None:
    with pytest.raises(NeedsHuman, match="synthetic"):
        sign_forecast(chain_id=chain_id, synthetic=True)


@pytest.mark.parametrize("chain_id", ["localnet", "localnet-20191017T090000Z"])
def test_sign_submission_synthetic_on_local_chain_is_signed(chain_id: str) -> None:
    assert sign_forecast(chain_id=chain_id, synthetic=True).chain_id == chain_id


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "NaN", "Infinity", "price", ""])
def test_sign_submission_non_finite_value_is_refused(value: float | str) -> None:
    with pytest.raises(ValueError, match=r"decimal|float|NaN|Infinity"):
        sign_forecast(value=value)


def test_sign_submission_timeout_before_nonce_is_refused() -> None:
    with pytest.raises(ValueError, match="before the nonce"):
        sign_forecast(timeout_height=999)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_canonical_value_keeps_the_value(value: float) -> None:
    text = canonical_value(value)
    assert float(text) == value
    assert canonical_value(text) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-7, "1E-7"),
        (0.0, "0.0"),
        (-0.0123, "-0.0123"),
        (1e22, "1E+22"),
        (np.float64(0.5), "0.5"),
        (np.float32(0.25), "0.25"),
    ],
)
def test_canonical_value_equals_the_chains_form(value: float, text: str) -> None:
    assert canonical_value(value) == text


def test_sign_submission_is_deterministic() -> None:
    assert sign_forecast() == sign_forecast()
    assert sign_forecast(parameters=replace(PARAMETERS, sequence=4)).tx_hash != sign_forecast().tx_hash


@VERSIONS
def test_register_message_owner_is_the_wallet(version: EmissionsVersion) -> None:
    url, content = register_message(WALLET, version=version, topic_id=42)
    request = RegisterRequest.FromString(content)
    assert url == f"/emissions.{version}.RegisterRequest"
    assert (request.sender, request.owner, request.topic_id, request.is_reputer) == (
        WALLET.address, WALLET.address, 42, False,
    )  # fmt: skip
