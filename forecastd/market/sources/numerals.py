"""Numbers as files spell them, where a comma may stand for the decimal mark or between thousands.

The one thing to know before changing it: a comma read the wrong way makes a price a thousand times too high without any
check noticing, so one comma has one meaning in a file, and where the file does not say which, it is refused.
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
    """A text is not a number, or it can be read as two; the message says where and what to do."""


class NumberParser:
    """Reads the numbers of one file and remembers what it showed about its commas.

    `commas_are_decimal`: another character is the file's delimiter, so a lone comma in a number is its decimal mark.
    """

    def __init__(self, *, commas_are_decimal: bool = False) -> None:
        self.commas_are_decimal = commas_are_decimal
        self._point_line = 0  # the first line that shows the point to be the decimal mark; 0: none
        self._comma_location = ""  # where a comma was taken for one, first
        self._ambiguous_location = ""  # where a comma was taken to part thousands without a proof, first

    def record_decimal_point(self, fields: Iterable[str], volume: str, line: int) -> None:
        """Take note of numbers that needed no help: a point in them is a decimal mark."""
        if not self._point_line and ("." in volume or any("." in field for field in fields)):
            self._point_line = line

    def parse(self, text: str, where: str, line: int) -> float:
        """The number of a text, not empty.

        Raises:
            NumeralError: it is none.
        """
        try:
            number = float(text)
        except ValueError:
            return self._parse_with_comma(text.strip(), where, line)
        self.record_decimal_point((text,), "", line)
        return number

    def require_consistent(self) -> None:
        """After the last number: whether all commas had one meaning.

        Raises:
            NumeralError: they had not, or it cannot be told.
        """
        if self._comma_location and self._point_line:
            raise NumberFormatError(
                f"{self._comma_location} has a comma for the decimal mark, line {self._point_line} a point. Use one of them throughout."
            )
        if self._ambiguous_location and not self._point_line:
            raise NumberFormatError(
                f"{self._ambiguous_location} may be a thousand times as much or not. Write numbers without a comma for thousands, "
                "with a point for decimals."
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
