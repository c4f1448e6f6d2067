"""The manifest of a fleet bundle is read as it was written, and refused when any of it is not valid."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.errors import BundleError
from models.fleet.manifest import FleetManifest

Document = dict[str, Any]


@pytest.fixture(scope="module")
def content(root: Path) -> bytes:
    return (root / "models" / "fleet-demo" / "manifest.json").read_bytes()


def test_manifest_round_trip_is_equal(content: bytes) -> None:
    manifest = FleetManifest.parse(content)
    assert FleetManifest.parse(manifest.to_json()) == manifest
    assert json.loads(manifest.to_json()) == json.loads(content)


def test_manifest_without_anchors_is_accepted(content: bytes) -> None:
    assert FleetManifest.parse(json.dumps(json.loads(content) | {"anchors": []}).encode()).anchors == ()


def set_fields(**fields: object) -> Callable[[Document], None]:
    return lambda document: document.update(fields)


def set_metric(**fields: object) -> Callable[[Document], None]:
    return lambda document: document["metrics"][0].update(fields)


def set_anchor(**fields: object) -> Callable[[Document], None]:
    return lambda document: document["anchors"][0].update(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_fields(schema=2), "has schema 2; this version reads schema 1"),
        (set_fields(kind="temporal-fusion-transformer"), "is of kind"),
        (set_fields(normalizer="encoder"), "another normalizer"),
        (set_fields(anchors=[{"smoothing": 1.0, "damping": 0.0}]), "an anchor for each metric, or none"),
        (set_anchor(smoothing=0.0), "an invalid anchor at anchors.0"),
        (set_anchor(smoothing=1.1), "an invalid anchor at anchors.0"),
        (set_anchor(damping=-0.1), "an invalid anchor at anchors.0"),
        (set_anchor(damping="0.5"), "anchors.0.damping"),
        (set_anchor(more=1), "anchors.0"),
        (lambda document: document.pop("anchors"), "anchors"),
        (set_fields(cycles=["day", "moon"]), "not in the calendar"),
        (set_fields(cycles=["day", "day"]), "not in the calendar"),
        (set_fields(profiles=["web"]), "distinct profiles, other first"),
        (set_fields(profiles=["other", "web", "web"]), "distinct profiles, other first"),
        (set_fields(groups=["default", "web"]), "groups named server:NAME, profile:NAME or default"),
        (set_fields(groups=["profile:web"]), "distinct groups that include default"),
        (set_fields(metrics=[]), "must have distinct metrics"),
        (set_metric(name="day_sin"), "none with the name of a calendar variable"),
        (set_metric(low=100.0, high=0.0), "an invalid metric at metrics.0"),
        (set_metric(transform="sqrt"), "an invalid metric at metrics.0"),
        (set_metric(low=-5.0, transform="log1p"), "an invalid metric at metrics.0"),
        (set_metric(name="another"), "variables, targets or profiles differ"),
        (set_fields(encoder_minimum=10**6), "encoder_minimum"),
        (set_fields(horizon=0), "horizon"),
        (set_fields(more=1), "more"),
        (lambda document: document["network"].update(attention_heads=64), "more attention heads"),
    ],
)  # fmt: skip
def test_manifest_invalid_field_is_named(content: bytes, change: Callable[[Document], object], message: str) -> None:
    document = json.loads(content)
    change(document)
    with pytest.raises(BundleError, match=message) as error_info:
        FleetManifest.parse(json.dumps(document).encode())
    assert error_info.value.check == "schema"
