"""Checks a worker's payload on its own: its fields, its identities, and the signature over its bundle.

The chain parses the bundle, writes it again with its own decimals and verifies the signature over the result. A decimal
that is not canonical therefore fails as a bad signature; here too. Source: allora-chain `x/emissions/types`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from forecastd.chain.codec import VALUE_LABEL, canonical_value
from forecastd.chain.keys import address_from_public_key, verify_signature
from forecastd.chain.proto.emissions_pb2 import InputInferenceForecastBundle
from forecastd.localnet.transactions import TxMessage


@dataclass(frozen=True)
class TxRefusal:
    """The reason for the refusal of a transaction, in the chain's own words."""

    codespace: str
    code: int
    log: str


INVALID_TOPIC = TxRefusal("emissions", 6, "invalid topic ID")


def check_bundle(message: TxMessage) -> TxRefusal | None:
    """The first defect of a payload that can be found without the chain's state, or None."""
    bundle = message.content.worker_data_bundle
    if not (bundle.HasField("nonce") and bundle.HasField("inference_forecasts_bundle")):
        return _invalid("worker data bundle, nonce and inference forecasts bundle cannot be nil")
    try:
        public_key = bytes.fromhex(bundle.pubkey)
    except ValueError:
        public_key = b""
    if len(public_key) != 33:
        return _invalid("invalid pubkey")
    inner = bundle.inference_forecasts_bundle
    if not inner.HasField("inference"):
        return _invalid("inference cannot be nil: this node takes no forecasts of other workers' inferences")
    refusal = _check_identity(bundle, address_from_public_key(public_key)) or _check_values(
        inner.inference, message.version
    )
    if refusal is not None:
        return refusal
    if not verify_signature(
        public_key, _canonical_bytes(inner, message.version), bundle.inferences_forecasts_bundle_signature
    ):
        return _unauthorized("signature verification failed")
    return None


def _check_identity(bundle: Any, owner: str) -> TxRefusal | None:
    """Check that key, worker, topic and nonce are the same everywhere in the payload."""
    inference = bundle.inference_forecasts_bundle.inference
    if inference.inferer != owner:
        return _unauthorized(f"Inference.Inferer {inference.inferer} does not match pubkey {owner}")
    if bundle.worker != inference.inferer:
        return _unauthorized(f"Inference.Inferer {inference.inferer} does not match worker address {bundle.worker}")
    if inference.topic_id != bundle.topic_id:
        return TxRefusal("emissions", 6, "inferer not using the same topic as bundle: invalid topic ID")
    if inference.block_height != bundle.nonce.block_height:
        return _invalid("inference and bundle have different nonces")
    return None


def payload_value(message: TxMessage) -> str:
    """The forecast of a payload that passed `check_bundle`, as a canonical decimal."""
    inference = message.content.worker_data_bundle.inference_forecasts_bundle.inference
    return canonical_value(str(inference.values[0].value if message.version == "v10" else inference.value))


def _check_values(inference: Any, version: str) -> TxRefusal | None:
    texts = [inference.value]
    if version == "v10":
        if len(inference.values) != 1:
            return _invalid(f"a topic with a single output takes exactly one value, got {len(inference.values)}")
        if inference.values[0].label != VALUE_LABEL:
            return _invalid(f"the label of a single output is {VALUE_LABEL}, got {inference.values[0].label[:32]!r}")
        texts.append(inference.values[0].value)
    for text in texts:
        try:
            canonical_value(text)
        except ValueError:
            return _invalid("a value is not a finite decimal")
    return None


def _canonical_bytes(inner: Any, version: str) -> bytes:
    """The bytes of the bundle with canonical decimals."""
    canonical = InputInferenceForecastBundle()
    canonical.CopyFrom(inner)
    canonical.inference.value = canonical_value(canonical.inference.value)
    if version == "v10":
        for labeled in canonical.inference.values:
            labeled.value = canonical_value(labeled.value)
    return bytes(canonical.SerializeToString())


def _invalid(reason: str) -> TxRefusal:
    return TxRefusal("sdk", 18, f"Error validating worker data bundle: {reason}: invalid request")


def _unauthorized(reason: str) -> TxRefusal:
    return TxRefusal("sdk", 4, f"Error validating worker data bundle: {reason}: unauthorized")
