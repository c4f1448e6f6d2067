"""Parse numbers in files, where a comma may be the decimal mark or a thousands separator.

Invariant: a comma has one meaning in a file, and a file that does not show which one is refused. A comma read the wrong
way makes a price a thousand times too high, and no other check would notice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from forecastd.market.sources.table import INVALID_NUMBER

_COMMA_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+\.\d+|[+-]?\d{1,3}(,\d{3}){2,}")  # 12,345.67 and 1,234,567
_POINT_THOUSANDS = re.compile(r"[+-]?\d{1,3}(\.\d{3})+,\d+")  # 12.345,67
_DECIMAL_COMMA = re.compile(r"[+-]?(\d+,\d*|,\d+)")
_AMBIGUOUS_COMMA = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")  # 10,500


class NumberFormatError(ValueError):
    """A text is not a number, or is ambiguous; the message gives its location and the fix."""


class NumberParser:
    """Parses the numbers of one file and records what they show about the meaning of commas.

    `commas_are_decimal`: the file's delimiter is another character, so a single comma in a number is a decimal mark.
    """

    def __init__(self, *, commas_are_decimal: bool = False) -> None:
        self.commas_are_decimal = commas_are_decimal
        self._point_line = 0  # first line that shows that the point is the decimal mark; 0: none
        self._comma_location = ""  # first number whose comma was read as the decimal mark
        self._ambiguous_location = ""  # first number whose comma was read as a thousands separator without proof

    def record_decimal_point(self, fields: Iterable[str], volume: str, line: int) -> None:
        """Record plain numbers: a point in them is a decimal mark."""
        if not self._point_line and ("." in volume or any("." in field for field in fields)):
            self._point_line = line

    def parse(self, text: str, where: str, line: int) -> float:
        """Parse a non-empty text.

        Raises:
            NumberFormatError: it is not a number.
        """
        try:
            number = float(text)
        except ValueError:
            return self._parse_with_comma(text.strip(), where, line)
        self.record_decimal_point((text,), "", line)
        return number

    def require_consistent(self) -> None:
        """After the last number: require that all commas had one meaning.

        Raises:
            NumberFormatError: they differ, or the meaning is unknown.
        """
        if self._comma_location and self._point_line:
            raise NumberFormatError(
                f"{self._comma_location} has a comma as decimal mark, but line {self._point_line} has a point. "
                "Use one of them throughout."
            )
        if self._ambiguous_location and not self._point_line:
            raise NumberFormatError(
                f"{self._ambiguous_location} is ambiguous: the comma may separate thousands or decimals. Write "
                "numbers without a thousands separator and with a point for decimals."
            )

    def _parse_with_comma(self, text: str, where: str, line: int) -> float:
        location = f"{where}: {text[:40]!r}"
        if _COMMA_THOUSANDS.fullmatch(text) and not (self.commas_are_decimal and "." not in text):
            self._point_line = self._point_line or line
            return float(text.replace(",", ""))
        if self.commas_are_decimal and (_DECIMAL_COMMA.fullmatch(text) or _POINT_THOUSANDS.fullmatch(text)):
            self._comma_location = self._comma_location or location
            return float(text.replace(".", "").replace(",", "."))
        if not self.commas_are_decimal and _AMBIGUOUS_COMMA.fullmatch(text):
            self._ambiguous_location = self._ambiguous_location or location
            return float(text.replace(",", ""))
        hint = " Write decimals with a point." if "," in text else ""
        raise NumberFormatError(f"{location} {INVALID_NUMBER}{hint}")
