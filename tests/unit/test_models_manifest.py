"""A manifest is either fully understood or refused by the name of what is wrong with it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from models.errors import BundleError
from models.manifest import Manifest, Network, Scaler, network_reals, parse, to_json
from models.records import CANARY, WEIGHTS, FileRecord, Interval, Training

PAST, KNOWN = ("ret_1h", "vol_24h"), ("hour_sin",)
PARTS = {
    "train": Interval(1_600_000_000, 1_600_200_000, 30),
    "validation": Interval(1_600_210_000, 1_600_280_000, 9),
    "test": Interval(1_600_290_000, 1_600_360_000, 9),
}
Document = dict[str, Any]


@pytest.fixture
def manifest() -> Manifest:
    encoder, decoder = network_reals(PAST, KNOWN)
    return Manifest(
        name="small",
        past=PAST,
        known=KNOWN,
        scalers={name: Scaler(0.25, 2.0) for name in (*PAST, *KNOWN)},
        step=3600,
        encoder_length=24,
        horizon=6,
        levels=(0.1, 0.5, 0.9),
        network=Network(8, 4, 2, 1, encoder, decoder, 3),
        training=Training(1_600_000_000, 1_600_360_000, 100, "a" * 64, "sample", True, 1_700_000_000, PARTS, {"y": 2}),
        versions={"python": "3.11"},
        metrics={"test": {"model": {"pinball": 0.5}}},
        files={name: FileRecord("b" * 64, 1000) for name in (WEIGHTS, CANARY)},
    )


def test_what_is_written_is_what_is_read(manifest: Manifest) -> None:
    assert parse(to_json(manifest), "") == manifest


def test_what_was_learnt_ends_where_the_train_part_does(manifest: Manifest) -> None:
    assert parse(to_json(manifest), "").training.learnt_until == 1_600_200_000


def put(path: str, value: object) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        *above, last = path.split(".")
        for name in above:
            document = document[name]
        document[last] = value

    return change


def drop(path: str) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        *above, last = path.split(".")
        for name in above:
            document = document[name]
        del document[last]

    return change


def swap(path: str, one: str, other: str) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        for name in path.split("."):
            document = document[name]
        document[one], document[other] = document[other], document[one]

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (put("schema", 2), "schema 2"),
        (put("schema", True), "schema"),
        (put("kind", "deepar"), "deepar"),
        (put("surprise", 1), "unknown fields: surprise"),
        (drop("step"), "lacks step"),
        (put("step", "3600"), "step"),
        (put("step", 0), "step"),
        (put("horizon", 10**9), "horizon"),
        (put("name", "../evil"), "name"),
        (put("levels", [0.1, 0.9]), "0.5"),
        (put("levels", [0.5, 0.1, 0.9]), "increasing"),
        (put("levels", [0.1, 0.5, 1.0]), "probabilities"),
        (put("features.past", ["ret_1h", "ret_1h"]), "twice"),
        (put("features.past", ["log_close", "vol_24h"]), "target"),
        (put("features.past", ["vol_24h", "ret_1h"]), "variables"),
        (put("features.past", ["a.b", "vol_24h"]), "a.b"),
        (drop("scalers.hour_sin"), "lacks scalers.hour_sin"),
        (put("scalers.more", {"center": 0.0, "scale": 1.0}), "scalers.more"),
        (put("scalers.ret_1h.scale", 0), "scalers.ret_1h"),
        (put("scalers.ret_1h.center", "0"), "scalers.ret_1h.center"),
        (put("encoders", {"weekday": ["Mon"]}), "encoders.weekday"),
        (put("target.name", "close"), "target"),
        (put("network.outputs", 7), "network"),
        (put("network.hidden_size", 10**7), "network.hidden_size"),
        (put("network.attention_heads", 9), "heads"),
        (put("training.end_iso", "2020-01-01T00:00:00Z"), "interval"),
        (put("training.end", 1), "interval"),
        (put("training.data_sha256", "xyz"), "data_sha256"),
        (put("training.synthetic", 1), "synthetic"),
        (put("training.parts", {}), "lacks training.parts.train"),
        (drop("training.parts.test"), "lacks training.parts.test"),
        (put("training.parts.more", {}), "training.parts.more"),
        (put("training.parts.train.end", 1_600_200_001), "training.parts.train"),
        (swap("training.parts", "train", "validation"), "overlap"),
        (put("training.parts.train.windows", 0), "training.parts.train.windows"),
        (put("files", {}), "files"),
        (put("metrics", []), "metrics"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_refused_by_name(manifest: Manifest, change: Callable[[Document], None], told: str) -> None:
    document = json.loads(to_json(manifest))
    change(document)
    with pytest.raises(BundleError, match=told) as refused:
        parse(json.dumps(document).encode(), "")
    assert refused.value.check == "schema"
    assert re.search(r"(Restore|Use) [^.]+\. \(check: schema\)$", str(refused.value)), "the message says what to do"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 200_000, b'{"schema": NaN}', b'{"schema": 1, "schema": 1}'],
)
def test_what_is_not_a_json_object_is_refused(content: bytes) -> None:
    with pytest.raises(BundleError) as refused:
        parse(content, "")
    assert refused.value.check == "schema"
    assert "Restore the bundle" in str(refused.value)


def test_a_number_too_large_for_a_float_is_refused(manifest: Manifest) -> None:
    text = to_json(manifest).decode().replace('"center": 0.25', '"center": 1e999', 1)
    with pytest.raises(BundleError, match="finite"):
        parse(text.encode(), "")
