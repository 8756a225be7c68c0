from typing import Optional, Sequence

import pytest

from foundry_upcycle.study.report.break_even import (
    BreakEven,
    Lead,
    find_break_even,
)

FRACTIONS = (0.1, 0.2, 0.4, 0.8)


def leads(
    values: Sequence[float],
    told_apart: Sequence[Optional[bool]] = (True, ) * 4,
) -> list[Lead]:
    return [Lead(*each) for each in zip(FRACTIONS, values, told_apart)]


def test_always_ahead():
    assert find_break_even(leads((1, 2, 1, 3))
                          ) == BreakEven('always', 0.1, True)


def test_never_ahead():
    assert find_break_even(leads((-1, -2, -1, -3))) == BreakEven(
        'never',
        0.8,
        True,
    )


def test_ahead_only_earlier_is_never():
    assert find_break_even(leads((1, -2, 1, -3))) == BreakEven(
        'never',
        0.8,
        True,
        (0.1, 0.4),
    )


def test_crossing_is_interpolated():
    # From -1 at 0.2 to 3 at 0.4: a quarter of the way.
    found = find_break_even(leads((-2, -1, 3, 1)))
    assert found is not None and found.kind == 'crossing'
    assert found.budget == pytest.approx(0.25)


def test_of_several_crossings_the_last_counts():
    # Ahead at 0.1, behind at 0.2, ahead at 0.4, behind, ahead for good.
    found = find_break_even([*leads((1, -1, 1, -1)), Lead(1.0, 3.0, True)])
    assert found is not None and found.kind == 'crossing'
    assert found.budget == pytest.approx(0.85)


def test_crossing_at_a_point():
    found = find_break_even(leads((-1, 0, 1, 1)))
    assert found is not None and found.kind == 'crossing'
    assert found.budget == 0.2


def test_equal_at_the_end_is_not_ahead():
    found = find_break_even(leads((-1, 1, 1, 0)))
    assert found == BreakEven('never', 0.8, True, (0.2, 0.4))


@pytest.mark.parametrize(
    ('before', 'after', 'expected'),
    [
        (False, False, False),
        (True, False, True),
        (False, True, True),
        (None, None, None),
        (None, False, False),
    ],
)
def test_noise_is_that_of_both_sides(
    before: Optional[bool],
    after: Optional[bool],
    expected: Optional[bool],
):
    told_apart = (True, before, after, True)
    found = find_break_even(leads((-1, -1, 1, 1), told_apart))
    assert found is not None
    assert found.told_apart is expected


def test_noise_without_a_crossing_is_that_of_the_end_it_names():
    always = find_break_even(leads((1, 1, 1, 1), (False, True, True, True)))
    never = find_break_even(leads((-1, -1, -1, -1), (True, True, True, False)))
    assert always == BreakEven('always', 0.1, False)
    assert never == BreakEven('never', 0.8, False)


def test_one_point_is_enough():
    assert find_break_even([Lead(0.4, 1.0, None)]) == BreakEven(
        'always',
        0.4,
        None,
    )


def test_nothing_of_nothing():
    assert find_break_even([]) is None
