"""Numbers as people read them."""

import pytest

from bench.report.text import counted, rounded, with_error


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.324667, 0.0118, "0.325 ± 0.01"),
        (134.2, 12.3, "134 ± 10"),
        (-1234.5, 96.0, "-1234 ± 100"),
        (99.96, 8.6, "100 ± 9"),
        (-1.07e-06, 7.4e-06, "-1.07e-06 ± 7e-06"),
    ],
)
def test_a_number_has_three_digits_and_its_error_one(value: float, error: float, text: str) -> None:
    assert with_error(value, error) == text
    assert text.endswith(rounded(error))


def test_one_is_singular() -> None:
    assert [counted(n, "thread") for n in (0, 1, 1.0, 2)] == ["0 threads", "1 thread", "1 thread", "2 threads"]
