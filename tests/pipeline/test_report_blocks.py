from typing import Any

import pytest

from pipeline.report_blocks import Form, percent, seconds, share, size, written


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0 %"),
        (0.004, "< 0.01 %"),
        (0.043, "0.04 %"),
        (0.94, "0.94 %"),
        (12.345, "12.3 %"),
        (99.5, "99.50 %"),
        (99.996, "> 99.99 %"),
        (100.0, "100 %"),
    ],
)
def test_a_percentage_is_never_rounded_to_none_or_all(value: float, shown: str) -> None:
    assert percent(value) == shown


@pytest.mark.parametrize(
    ("value", "form", "shown"),
    [
        (None, "usd", "\u2013"),
        (1234567, "count", "1,234,567"),
        (16150.4, "usd", "$16,150"),
        (14.92, "points", "14.9"),
        ("x" * 300, "text", "x" * 200 + "..."),
    ],
)
def test_a_value_is_written_in_its_form(value: Any, form: Form, shown: str) -> None:
    assert written(value, form) == shown


def test_times_and_sizes_have_the_unit_that_fits() -> None:
    assert [seconds(value) for value in (0.0061, 47.12, 754.0, 7322.0)] == [
        "6.1 ms",
        "47.1 s",
        "12 min 34 s",
        "2 h 2 min",
    ]
    assert [size(value) for value in (512, 16_845, 1_568_659, 3e12)] == ["512 B", "16.8 kB", "1.6 MB", "3.0 TB"]


def test_a_share_of_nothing_is_unknown() -> None:
    assert share(0, 0) is None
    assert share(1, 8) == 12.5
