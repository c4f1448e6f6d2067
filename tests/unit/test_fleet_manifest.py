"""The manifest of a fleet's bundle reads back as it was written, and is not used when any of it makes no sense."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.errors import BundleError
from models.fleet.manifest import parse, to_json

Document = dict[str, Any]


@pytest.fixture(scope="module")
def content(root: Path) -> bytes:
    return (root / "models" / "fleet-demo" / "manifest.json").read_bytes()


def test_a_manifest_reads_back_as_it_was_written(content: bytes) -> None:
    manifest = parse(content, "f" * 64)
    assert parse(to_json(manifest), "f" * 64) == manifest
    assert json.loads(to_json(manifest)) == json.loads(content)


def test_a_model_without_anchors_is_one_too(content: bytes) -> None:
    assert parse(json.dumps(json.loads(content) | {"anchors": []}).encode(), "").anchors == ()


def put(**fields: object) -> Callable[[Document], None]:
    return lambda document: document.update(fields)


def metric(**fields: object) -> Callable[[Document], None]:
    return lambda document: document["metrics"][0].update(fields)


def anchor(**fields: object) -> Callable[[Document], None]:
    return lambda document: document["anchors"][0].update(fields)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (put(schema=2), "has schema 2; this version reads schema 1"),
        (put(kind="temporal-fusion-transformer"), "is of kind"),
        (put(normalizer="encoder"), "another normalizer"),
        (put(anchors=[{"smoothing": 1.0, "damping": 0.0}]), "an anchor for each metric, or none"),
        (anchor(smoothing=0.0), "an anchor without sense at anchors.0"),
        (anchor(smoothing=1.1), "an anchor without sense at anchors.0"),
        (anchor(damping=-0.1), "an anchor without sense at anchors.0"),
        (anchor(damping="0.5"), "anchors.0.damping"),
        (anchor(more=1), "anchors.0"),
        (lambda document: document.pop("anchors"), "anchors"),
        (put(cycles=["day", "moon"]), "not of the calendar"),
        (put(cycles=["day", "day"]), "not of the calendar"),
        (put(profiles=["web"]), "distinct profiles, other first"),
        (put(profiles=["other", "web", "web"]), "distinct profiles, other first"),
        (put(groups=["default", "web"]), "groups named server:NAME, profile:NAME or default"),
        (put(groups=["profile:web"]), "distinct groups, default among them"),
        (put(metrics=[]), "must have metrics, each once"),
        (metric(name="day_sin"), "none like a variable of the calendar"),
        (metric(low=100.0, high=0.0), "a metric without sense at metrics.0"),
        (metric(transform="sqrt"), "a metric without sense at metrics.0"),
        (metric(low=-5.0, transform="log1p"), "a metric without sense at metrics.0"),
        (metric(name="another"), "variables, targets or profiles differ"),
        (put(encoder_minimum=10**6), "encoder_minimum"),
        (put(horizon=0), "horizon"),
        (put(more=1), "more"),
        (lambda document: document["network"].update(attention_heads=64), "more attention heads"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_named(content: bytes, change: Callable[[Document], object], told: str) -> None:
    document = json.loads(content)
    change(document)
    with pytest.raises(BundleError, match=told) as refused:
        parse(json.dumps(document).encode(), "")
    assert refused.value.check == "schema"
