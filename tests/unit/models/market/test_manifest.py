"""A manifest is either completely valid or refused, and the error names what is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from models.bundle.records import CANARY, WEIGHTS, FileRecord, Interval, TrainingRecord
from models.errors import BundleError
from models.market.manifest import MarketManifest, Scaler, network_reals
from models.tft.config import TftConfig

PAST, KNOWN = ("ret_1h", "vol_24h"), ("hour_sin",)
PARTS = {
    "train": Interval(1_600_000_000, 1_600_200_000, 30),
    "validation": Interval(1_600_210_000, 1_600_280_000, 9),
    "test": Interval(1_600_290_000, 1_600_360_000, 9),
}
Document = dict[str, Any]


@pytest.fixture
def manifest() -> MarketManifest:
    encoder, decoder = network_reals(PAST, KNOWN)
    return MarketManifest(
        name="small",
        past=PAST,
        known=KNOWN,
        scalers={name: Scaler(0.25, 2.0) for name in (*PAST, *KNOWN)},
        step=3600,
        encoder_length=24,
        horizon=6,
        levels=(0.1, 0.5, 0.9),
        network=TftConfig(8, 4, 2, 1, encoder, decoder, 3),
        training=TrainingRecord(
            1_600_000_000, 1_600_360_000, 100, "a" * 64, "sample", True, 1_700_000_000, PARTS, {"y": 2}
        ),
        versions={"python": "3.11"},
        scores={"test": {"model": {"pinball": 0.5}}},
        files={name: FileRecord("b" * 64, 1000) for name in (WEIGHTS, CANARY)},
    )


def test_manifest_round_trip_is_equal(manifest: MarketManifest) -> None:
    assert replace(MarketManifest.parse(manifest.to_json()), sha256="") == manifest


def test_trained_until_is_end_of_train_part(manifest: MarketManifest) -> None:
    assert MarketManifest.parse(manifest.to_json()).training.trained_until == 1_600_200_000


def set_value(path: str, value: object) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        *above, last = path.split(".")
        for name in above:
            document = document[name]
        document[last] = value

    return change


def remove_value(path: str) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        *above, last = path.split(".")
        for name in above:
            document = document[name]
        del document[last]

    return change


def swap_values(path: str, first: str, second: str) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        for name in path.split("."):
            document = document[name]
        document[first], document[second] = document[second], document[first]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_value("schema", 2), "schema 2"),
        (set_value("schema", True), "schema"),
        (set_value("kind", "deepar"), "deepar"),
        (set_value("surprise", 1), "unknown fields: surprise"),
        (remove_value("step"), "lacks step"),
        (set_value("step", "3600"), "step"),
        (set_value("step", 0), "step"),
        (set_value("horizon", 10**9), "horizon"),
        (set_value("name", "../evil"), "name"),
        (set_value("levels", [0.1, 0.9]), "0.5"),
        (set_value("levels", [0.5, 0.1, 0.9]), "increasing"),
        (set_value("levels", [0.1, 0.5, 1.0]), "probabilities"),
        (set_value("features.past", ["ret_1h", "ret_1h"]), "twice"),
        (set_value("features.past", ["log_close", "vol_24h"]), "target"),
        (set_value("features.past", ["vol_24h", "ret_1h"]), "variables"),
        (set_value("features.past", ["a.b", "vol_24h"]), "a.b"),
        (remove_value("scalers.hour_sin"), "lacks scalers.hour_sin"),
        (set_value("scalers.more", {"center": 0.0, "scale": 1.0}), "scalers.more"),
        (set_value("scalers.ret_1h.scale", 0), "scalers.ret_1h"),
        (set_value("scalers.ret_1h.center", "0"), "scalers.ret_1h.center"),
        (set_value("encoders", {"weekday": ["Mon"]}), "encoders.weekday"),
        (set_value("target.name", "close"), "target"),
        (set_value("network.outputs", 7), "network"),
        (set_value("network.hidden_size", 10**7), "network.hidden_size"),
        (set_value("network.attention_heads", 9), "heads"),
        (set_value("training.end_iso", "2020-01-01T00:00:00Z"), "interval"),
        (set_value("training.end", 1), "interval"),
        (set_value("training.data_sha256", "xyz"), "data_sha256"),
        (set_value("training.synthetic", 1), "synthetic"),
        (set_value("training.parts", {}), "lacks training.parts.train"),
        (remove_value("training.parts.test"), "lacks training.parts.test"),
        (set_value("training.parts.more", {}), "training.parts.more"),
        (set_value("training.parts.train.end", 1_600_200_001), "training.parts.train"),
        (swap_values("training.parts", "train", "validation"), "overlap"),
        (set_value("training.parts.train.windows", 0), "training.parts.train.windows"),
        (set_value("files", {}), "files"),
        (set_value("metrics", []), "metrics"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_refused_by_name(
    manifest: MarketManifest, change: Callable[[Document], None], message: str
) -> None:
    document = json.loads(manifest.to_json())
    change(document)
    with pytest.raises(BundleError, match=message) as error_info:
        MarketManifest.parse(json.dumps(document).encode())
    assert error_info.value.check == "schema"
    assert re.search(r"(Restore|Use) [^.]+\. \(check: schema\)$", str(error_info.value)), "the message says what to do"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 200_000, b'{"schema": NaN}', b'{"schema": 1, "schema": 1}'],
)
def test_what_is_not_a_json_object_is_refused(content: bytes) -> None:
    with pytest.raises(BundleError) as error_info:
        MarketManifest.parse(content)
    assert error_info.value.check == "schema"
    assert "Restore the bundle" in str(error_info.value)


def test_a_number_too_large_for_a_float_is_refused(manifest: MarketManifest) -> None:
    text = manifest.to_json().decode().replace('"center": 0.25', '"center": 1e999', 1)
    with pytest.raises(BundleError, match="finite"):
        MarketManifest.parse(text.encode())
