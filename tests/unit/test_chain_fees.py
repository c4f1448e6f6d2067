"""Gas and fees as pure arithmetic."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.chain.fees import DEFAULT_GAS, quote
from forecastd.errors import NeedsHuman
from forecastd.settings import FeeTier

TIERS = st.sampled_from(["eco", "standard", "priority"])


@pytest.mark.parametrize(
    ("simulated", "market", "floor", "tier", "expected"),
    [
        (100_000, Decimal(10), 10, "eco", (120_000, 3_600_000)),
        (100_000, Decimal(10), 10, "standard", (120_000, 5_400_000)),
        (100_000, Decimal(10), 10, "priority", (120_000, 9_000_000)),
        (100_000, None, 10, "eco", (120_000, 1_200_000)),
        (100_000, Decimal(1), 10, "eco", (120_000, 1_200_000)),
        (None, None, 250_000_000, "eco", (DEFAULT_GAS, 62_500_000_000_000)),
        (1, Decimal("0.1"), 0, "eco", (2, 1)),
    ],
)
def test_gas_has_a_margin_and_the_price_is_the_markets_or_the_floor(
    simulated: int | None, market: Decimal | None, floor: int, tier: FeeTier, expected: tuple[int, int]
) -> None:
    found = quote(simulated, market, floor=floor, tier=tier)
    assert (found.gas, found.fee_uallo) == expected


@given(
    st.integers(1, 10**7),
    st.decimals(0, 10**9, allow_nan=False, places=6),
    st.integers(0, 10**9),
    TIERS,
)
def test_a_fee_covers_its_gas_at_the_floor_and_at_the_market(
    simulated: int, market: Decimal, floor: int, tier: FeeTier
) -> None:
    found = quote(simulated, market, floor=floor, tier=tier)
    assert found.gas >= simulated
    assert found.fee_uallo >= found.gas * floor
    assert found.fee_uallo >= found.gas * market


def test_a_fee_above_the_users_maximum_is_refused_with_both_figures() -> None:
    with pytest.raises(NeedsHuman, match=r"3600000 uallo.*3599999 uallo"):
        quote(100_000, Decimal(10), floor=10, tier="eco", most=3_599_999)
    assert quote(100_000, Decimal(10), floor=10, tier="eco", most=3_600_000).fee_uallo == 3_600_000
