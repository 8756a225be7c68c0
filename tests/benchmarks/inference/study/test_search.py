"""``study/search.py``: which rates are measured."""

from typing import Optional

import pytest

from benchmarks.inference.study.search import (
    knee,
    number_of_rates,
    replay,
    search,
)
from benchmarks.inference.study.settings import Rates

RATES = Rates(step=0.1, start=0.1, stop=2.0, fine=2)


def measured_until(limit: float, rates: Rates) -> dict[float, bool]:
    """Measures as the search asks; all above the limit saturate."""
    measured: dict[float, bool] = {}
    while True:
        path, is_complete = replay(rates, measured)
        if is_complete:
            assert path == tuple(measured)
            return measured
        assert path[:-1] == tuple(measured)
        measured[path[-1]] = path[-1] > limit


def test_coarse_then_fine():
    # From 0.1 by 0.1, 0.2, 0.4, 0.8, 1.6; half of 0.9 and 1.7; ...
    assert list(measured_until(1.1, RATES)) == [
        0.1,
        0.2,
        0.3,
        0.5,
        0.9,
        1.7,
        1.3,
        1.1,
        1.2,
        1.0,
    ]


def test_nothing_keeps_up():
    assert list(measured_until(0.0, RATES)) == [0.1, 0.2]


def test_nothing_saturates():
    measured = measured_until(9.0, RATES)
    assert list(measured) == [0.1, 0.2, 0.3, 0.5, 0.9, 1.7, 2.0, 1.9]
    assert knee(RATES, measured) == (2.0, None)


def test_one_rate():
    rates = Rates(step=0.1, start=0.5, stop=0.5)
    assert rates.grid == (0.5, )
    assert list(measured_until(9.0, rates)) == [0.5]
    assert list(measured_until(0.1, rates)) == [0.5]


@pytest.mark.parametrize('limit', [0.04 + 0.1 * k for k in range(22)])
@pytest.mark.parametrize('fine', [1, 2, 3, 30])
def test_knee_and_its_neighbours_are_measured(limit: float, fine: int):
    rates = Rates(step=0.1, start=0.1, stop=2.0, fine=fine)
    measured = measured_until(limit, rates)
    below = [rate for rate in rates.grid if rate <= limit]
    above = [rate for rate in rates.grid if rate > limit]
    assert set(below[-fine:] + above[:fine]) <= set(measured)
    expected: tuple[Optional[float], ...] = (
        below[-1] if below else None,
        above[0] if above else None,
    )
    assert knee(rates, measured) == expected
    assert search(rates, lambda rate: rate > limit) == tuple(measured)


def test_a_rate_above_the_knee_that_keeps_up_by_chance():
    assert knee(RATES, {0.1: False, 0.2: True, 0.3: False}) == (0.1, 0.2)


def test_number_of_rates():
    assert number_of_rates(RATES) == (2, 10)
    assert number_of_rates(Rates(step=0.1, start=0.5, stop=0.5)) == (1, 1)


def test_a_fine_grid_of_many_rates_is_found_in_few():
    # The paper's 436M: 58,140 tokens/s are 15.3 requests/s of 3,800 tokens.
    rates = Rates(step=0.1, start=0.1, stop=20.0)
    assert len(rates.grid) == 200
    assert len(measured_until(15.3, rates)) < 25


def test_grid_has_no_rounding_errors():
    assert Rates(
        step=0.1, start=0.1, stop=0.5
    ).grid == (
        0.1,
        0.2,
        0.3,
        0.4,
        0.5,
    )
    assert Rates(step=0.4, start=0.2, stop=1.1).grid == (0.2, 0.6, 1.0)


def test_what_was_measured_otherwise_is_not_asked_again():
    measured = {rate: rate > 1.1 for rate in RATES.grid}
    path, is_complete = replay(RATES, measured)
    assert is_complete
    assert path == search(RATES, lambda rate: rate > 1.1)
    del measured[1.7]
    assert replay(RATES, measured) == ((0.1, 0.2, 0.3, 0.5, 0.9, 1.7), False)
