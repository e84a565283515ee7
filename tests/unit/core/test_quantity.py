from __future__ import annotations

from fractions import Fraction

import pytest

from kubeworker.core import quantity


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("256Mi", 256 << 20),
        ("1.5Gi", 3 << 29),
        ("1Ei", 1 << 60),
        ("100m", Fraction(1, 10)),
        ("500u", Fraction(1, 2000)),
        ("2", 2),
        (".5", Fraction(1, 2)),
        ("1.5G", 1_500_000_000),
        ("2e3", 2000),
        ("2E3", 2000),
        ("5e-1", Fraction(1, 2)),
        ("1E", 10**18),
        (3, 3),
        (0.5, Fraction(1, 2)),
    ],
)
def test_a_quantity_is_read_as_kubernetes_does(text: str | float, number: Fraction | int) -> None:
    assert quantity.parse(text) == number


@pytest.mark.parametrize("text", ["", "Mi", "1 Gi", "1mi", "5%", "1e", "one"])
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no quantity"):
        quantity.parse(text)
