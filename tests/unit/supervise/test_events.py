"""The counters of supervision as JSON."""

from __future__ import annotations

from forecastd.supervise.events import SupervisionCounts


def test_counts_serialize_to_one_json_object() -> None:
    counts = SupervisionCounts(launches=3)
    counts.hangs["predicting", "abc"] += 2
    counts.jobs["result"] += 1
    document = counts.as_json()
    assert document["launches"] == 3
    assert document["hangs"] == [{"phase": "predicting", "bundle": "abc", "count": 2}]
    assert document["jobs"] == {"result": 1}
