"""Gas and fees. Gas is 1.2 x what the node simulates; a price is 3 x the fee market's, times the tier, above a floor.

Multipliers as in allora_sdk's transaction manager. Prices are Decimals in uallo a gas, fees whole uallo.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

from forecastd.errors import NeedsHuman
from forecastd.settings import FeeTier

DEFAULT_GAS = 250_000  # where a node cannot simulate
_GAS_MARGIN = Decimal("1.2")
_MARKET_MARGIN = 3
_TIERS: dict[FeeTier, Decimal] = {"eco": Decimal(1), "standard": Decimal("1.5"), "priority": Decimal("2.5")}


@dataclass(frozen=True)
class FeeQuote:
    """What one transaction may cost: a gas limit in units, a fee in uallo."""

    gas: int
    fee_uallo: int


def quote_fee(
    simulated_gas: int | None,
    market_price: Decimal | None,
    *,
    floor: int,
    tier: FeeTier,
    max_fee: int | None = None,
    gas_factor: float = 1.0,
    message_fee: int = 0,
) -> FeeQuote:
    """Gas and fee of a transaction.

    Args:
        simulated: gas the node measured; None takes the default.
        market_price: the fee market's price in uallo a gas; None where the chain has no fee market.
        floor: the network's lowest price in uallo a gas.
        tier: how eager to be.
        most: the user's maximum fee in uallo.
        factor: how much more gas than usual, after an attempt that ran out of it.
        besides: what the chain charges for the message itself, in uallo; it counts towards the maximum.

    Raises:
        NeedsHuman: the fee is above the user's maximum.
    """
    base_gas = Decimal(DEFAULT_GAS) if simulated_gas is None else simulated_gas * _GAS_MARGIN
    gas = _round_up(base_gas * Decimal(str(gas_factor)))
    gas_price = max(Decimal(floor), (market_price or Decimal(0)) * _MARKET_MARGIN)
    fee = _round_up(gas * gas_price * _TIERS[tier])
    if max_fee is not None and fee + message_fee > max_fee:
        raise NeedsHuman(
            f"The fee would be {fee + message_fee} uallo, above your maximum of {max_fee} uallo (MAX_FEE_UALLO). "
            "Raise the maximum or choose a lower FEE_TIER."
        )
    return FeeQuote(gas, fee)


def _round_up(amount: Decimal) -> int:
    return int(amount.to_integral_value(ROUND_CEILING))
