"""The JSON of quantiles holds every number with the documented decimals."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from forecastd.inference.quantile_json import QuantileJsonWriter


@dataclass(frozen=True)
class MetricStub:
    name: str
    unit: str


METRICS = (MetricStub("cpu_percent", "%"), MetricStub("latency", "ms"), MetricStub("odd", 'a "µ" \\ of \n all'))
LEVELS = (0.05, 0.5, 0.95)
NUMBERS = st.one_of(
    st.floats(0, 1e9, width=32),
    st.floats(width=32),
    st.sampled_from([0.0, -0.0, 0.0005, 99.9995, 99.9994, 100.0, 9999.95, 9999.949, 1e4, 9_999_999.0, 1e7, 3.4e38]),
)


def tolerance(number: float) -> float:
    """The maximum difference between a number and its text."""
    size = abs(number)
    if number < 0 or size >= 9_999_990:
        return max(0.5, 0.06 * size) if number >= 0 else max(0.5, 0.6 * size)
    return 0.000502 if size < 99.999 else 0.0507 if size < 9_999.9 else 0.501


@given(arrays.arrays(np.float32, (2, 3, 3, 4), elements=NUMBERS))
def test_quantile_json_holds_each_number_or_null(quantiles: np.ndarray) -> None:
    texts = QuantileJsonWriter(METRICS, LEVELS, LEVELS)(quantiles)
    for server, text in enumerate(texts):
        document = json.loads(text)
        assert list(document) == [metric.name for metric in METRICS]
        for row, metric in enumerate(METRICS):
            assert document[metric.name].pop("unit") == metric.unit
            assert list(document[metric.name]) == ["0.05", "0.5", "0.95"]
            for level, key in enumerate(document[metric.name]):
                for value, number in zip(
                    document[metric.name][key], quantiles[server, row, level].astype(float).tolist(), strict=True
                ):
                    if np.isfinite(number):
                        assert abs(value - number) <= tolerance(number)
                    else:
                        assert value is None


def test_quantile_json_table_numbers_are_exact() -> None:
    for decimals, top in ((3, 99.999), (1, 9_999.9)):
        numbers = np.arange(1 if decimals == 3 else 1000, 100_000, dtype=np.float64) / 10**decimals
        assert numbers[-1] == pytest.approx(top)
        text = QuantileJsonWriter(METRICS[:1], (0.5,), (0.5,))(numbers.astype(np.float32)[None, None, None])[0]
        np.testing.assert_allclose(json.loads(text)["cpu_percent"]["0.5"], numbers, rtol=0, atol=1e-9)


def test_quantile_json_intermediate_levels_are_interpolated() -> None:
    quantiles = np.array([10.0, 20.0, 40.0], dtype=np.float32)[None, None, :, None]
    document = json.loads(QuantileJsonWriter(METRICS[:1], LEVELS, (0.05, 0.275, 0.725, 0.99))(quantiles)[0])[
        "cpu_percent"
    ]
    assert [document[key] for key in ("0.05", "0.275", "0.725", "0.99")] == [[10.0], [15.0], [30.0], [40.0]]


def test_quantile_json_without_servers_is_empty() -> None:
    assert QuantileJsonWriter(METRICS, LEVELS, LEVELS)(np.zeros((0, 3, 3, 4), np.float32)) == []
