"""Gas and fees."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.chain.fees import DEFAULT_GAS, FeePolicy
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
def test_quote_fee_applies_margin_market_price_and_floor(
    simulated: int | None, market: Decimal | None, floor: int, tier: FeeTier, expected: tuple[int, int]
) -> None:
    fee_quote = FeePolicy(floor, tier).quote(simulated, market)
    assert (fee_quote.gas, fee_quote.fee_uallo) == expected


@given(
    st.integers(1, 10**7),
    st.decimals(0, 10**9, allow_nan=False, places=6),
    st.integers(0, 10**9),
    TIERS,
)
def test_quote_fee_covers_gas_at_floor_and_market(simulated: int, market: Decimal, floor: int, tier: FeeTier) -> None:
    fee_quote = FeePolicy(floor, tier).quote(simulated, market)
    assert fee_quote.gas >= simulated
    assert fee_quote.fee_uallo >= fee_quote.gas * floor
    assert fee_quote.fee_uallo >= fee_quote.gas * market


def test_quote_fee_above_the_maximum_shows_both_amounts() -> None:
    with pytest.raises(NeedsHuman, match=r"3600000 uallo.*3599999 uallo"):
        FeePolicy(10, "eco", 3_599_999).quote(100_000, Decimal(10))
    assert FeePolicy(10, "eco", 3_600_000).quote(100_000, Decimal(10)).fee_uallo == 3_600_000
