"""Gas and fees. Gas is 1.2 x the simulated gas; the price is 3 x the fee market's price, times the tier, above a floor.

Multipliers are those of allora_sdk's transaction manager. Prices are Decimals in uallo per gas, fees whole uallo.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

from forecastd.errors import NeedsHuman
from forecastd.settings import FeeTier

DEFAULT_GAS = 250_000  # when a node cannot simulate
_GAS_MARGIN = Decimal("1.2")
_MARKET_MARGIN = 3
_TIERS: dict[FeeTier, Decimal] = {"eco": Decimal(1), "standard": Decimal("1.5"), "priority": Decimal("2.5")}


@dataclass(frozen=True)
class FeeQuote:
    """The cost of one transaction: a gas limit in gas units and a fee in uallo."""

    gas: int
    fee_uallo: int


@dataclass(frozen=True)
class FeePolicy:
    """Limits for fees: the network's minimum price in uallo per gas, the tier (a multiplier for faster inclusion), and the
    user's maximum fee in uallo.
    """

    gas_price_floor: int
    tier: FeeTier
    max_fee: int | None = None

    def quote(
        self,
        simulated_gas: int | None,
        market_price: Decimal | None,
        *,
        gas_factor: float = 1.0,
        message_fee: int = 0,
    ) -> FeeQuote:
        """Calculate the gas limit and the fee of a transaction.

        Args:
            simulated_gas: gas measured by the node; None uses the default.
            market_price: price of the fee market in uallo per gas; None when the chain has no fee market.
            gas_factor: extra multiplier for the gas, after an attempt ran out of gas.
            message_fee: what the chain charges for the message itself, in uallo; it counts towards the maximum.

        Raises:
            NeedsHuman: the fee is above the user's maximum.
        """
        base_gas = Decimal(DEFAULT_GAS) if simulated_gas is None else simulated_gas * _GAS_MARGIN
        gas = _round_up(base_gas * Decimal(str(gas_factor)))
        gas_price = max(Decimal(self.gas_price_floor), (market_price or Decimal(0)) * _MARKET_MARGIN)
        fee = _round_up(gas * gas_price * _TIERS[self.tier])
        if self.max_fee is not None and fee + message_fee > self.max_fee:
            raise NeedsHuman(
                f"The fee would be {fee + message_fee} uallo, above your maximum of {self.max_fee} uallo (MAX_FEE_UALLO). "
                "Raise the maximum or choose a lower FEE_TIER."
            )
        return FeeQuote(gas, fee)


def _round_up(amount: Decimal) -> int:
    return int(amount.to_integral_value(ROUND_CEILING))
