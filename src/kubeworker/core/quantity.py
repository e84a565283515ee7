"""Amounts of memory and processors as Kubernetes writes them. Pure."""

from __future__ import annotations

import re
from fractions import Fraction

_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d+)|(Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E))?")
_BINARY = ("Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_DECIMAL = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}


def parse(text: str | float) -> Fraction:
    """The number that a quantity such as 256Mi, 1.5G, 100m or 2e3 is, by the grammar of apimachinery's
    pkg/api/resource/quantity.go. ValueError where it is none.
    """
    match = _QUANTITY.fullmatch(str(text).strip())
    if match is None:
        raise ValueError(f"{text!r} is no quantity such as 256Mi or 100m")
    number, exponent, suffix = match.groups()
    if suffix in _BINARY:
        return Fraction(number) * (1 << 10 * (_BINARY.index(suffix) + 1))
    return Fraction(f"{number}e{exponent[1:] if exponent else _DECIMAL.get(suffix, 0)}")
