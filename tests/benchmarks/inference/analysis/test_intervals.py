"""``analysis/intervals.py``: intervals over few runs."""

import math

import numpy as np
import pytest

from benchmarks.inference.analysis.intervals import (
    mean_interval,
    paired_drop,
    t_quantile,
)


@pytest.mark.parametrize(
    ('probability', 'df', 'quantile'),
    [
        # Printed tables of Student's t.
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 3, 3.182),
        (0.975, 4, 2.776),
        (0.975, 9, 2.262),
        (0.975, 30, 2.042),
        (0.99, 6, 3.143),
        (0.995, 5, 4.032),
    ],
)
def test_t_quantiles_are_those_of_the_tables(
    probability: float,
    df: int,
    quantile: float,
):
    assert t_quantile(probability, df) == pytest.approx(quantile, abs=5e-4)


def test_mean_interval_by_hand():
    # Mean 3, s = 1, error 1 / sqrt(3) = 0.57735, times 4.30265 is 2.48414.
    assert mean_interval([2.0, 3.0, 4.0]) == pytest.approx(
        (3.0, 0.51586, 5.48414),
        abs=1e-4,
    )


def test_runs_that_agree_have_an_interval_of_no_width():
    assert mean_interval([5.0, 5.0]) == (5.0, 5.0, 5.0)
    drop, low, high = paired_drop([10.0, 10.0, 10.0], [6.0, 6.0, 6.0], 0)
    assert (drop, low, high) == pytest.approx((0.4, 0.4, 0.4))


def test_what_pairs_share_cancels_out():
    # Each run is another load of the machine; moe is 0.6 of dense in each.
    dense = [100.0, 50.0, 200.0]
    drop, low, high = paired_drop(dense, [0.6 * x for x in dense], 0)
    assert (drop, low, high) == pytest.approx((0.4, 0.4, 0.4))
    # Not so if the pairs are torn apart.
    drop, low, high = paired_drop(dense, [120.0, 60.0, 30.0], 0)
    assert drop == pytest.approx(0.4)
    assert high - low > 0.5


def test_drop_is_that_of_the_means():
    # 1 - (6 + 10) / (10 + 20), not the mean of 0.4 and 0.5.
    drop, low, high = paired_drop([10.0, 20.0], [6.0, 10.0], 0)
    assert drop == pytest.approx(1 - 16 / 30)
    assert low < drop < high


def test_drop_depends_on_nothing_but_the_seed():
    dense, moe = [10.0, 11.0, 12.0], [6.0, 7.0, 7.0]
    assert paired_drop(dense, moe, 3) == paired_drop(dense, moe, 3)
    again = paired_drop(dense, moe, 4)
    assert again == pytest.approx(paired_drop(dense, moe, 3), abs=0.01)


@pytest.mark.parametrize(
    ('n_runs', 'lowest', 'highest'),
    [
        # 3 runs: a resample of one run thrice has no spread of its own.
        (3, 0.93, 0.97),
        (5, 0.93, 0.97),
    ],
)
def test_coverage_of_the_drop(n_runs: int, lowest: float, highest: float):
    """19 of 20 intervals have the true drop, a share of 0.4."""
    rng = np.random.default_rng(17)
    n_studies, covered = 1000, 0
    for _ in range(n_studies):
        # What both of a pair share, and 3 % of each one's own.
        shared = rng.normal(0, 0.1, n_runs)
        dense = 1000 * np.exp(shared + rng.normal(0, 0.03, n_runs))
        moe = 600 * np.exp(shared + rng.normal(0, 0.03, n_runs))
        _, low, high = paired_drop(list(dense), list(moe), 0)
        covered += low <= 0.4 <= high
    assert lowest <= covered / n_studies <= highest


def test_coverage_of_the_mean():
    rng = np.random.default_rng(17)
    studies = rng.normal(7, 2, (2000, 3))
    ends = [mean_interval(list(values))[1:] for values in studies]
    covered = sum(low <= 7 <= high for low, high in ends) / len(ends)
    # Its own error is sqrt(0.95 * 0.05 / 2000) = 0.005.
    assert covered == pytest.approx(0.95, abs=0.015)


def test_interval_of_the_drop_is_that_of_the_logarithms():
    # Of values that differ little, the bootstrap's error is the textbook's.
    dense, moe = [100.0, 101.0, 99.0, 100.5], [60.0, 60.2, 59.9, 60.6]
    logs = np.log(np.array(moe) / np.array(dense))
    half = 3.182 * np.std(logs, ddof=1) / math.sqrt(4)
    drop, low, high = paired_drop(dense, moe, 0)
    assert low == pytest.approx(1 - (1 - drop) * math.exp(half), abs=2e-4)
    assert high == pytest.approx(1 - (1 - drop) * math.exp(-half), abs=2e-4)


def test_one_run_has_no_interval():
    with pytest.raises(ValueError, match='1 runs have no interval'):
        mean_interval([3.0])
    with pytest.raises(ValueError, match='1 runs have no interval'):
        paired_drop([3.0], [2.0], 0)


def test_pairs_are_positive_and_complete():
    with pytest.raises(ValueError, match='2 runs of dense, 3 of moe'):
        paired_drop([3.0, 3.0], [2.0, 2.0, 2.0], 0)
    with pytest.raises(ValueError, match='values must be above 0'):
        paired_drop([3.0, 3.0], [2.0, 0.0], 0)
