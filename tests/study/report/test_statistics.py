import numpy as np
import pytest
from scipy import stats

from foundry_upcycle.study.report.statistics import pool_spread


def test_spread_is_pooled_over_points():
    # Around means 2 and 12: 1 + 1 and 4 + 0 + 4; a single seed says nothing.
    spread = pool_spread([(1, 3), (10, 12, 14), (5, )])
    assert spread is not None
    assert spread.dof == 3
    assert spread.variance == pytest.approx(10 / 3)


def test_interval_is_students_of_the_pooled_spread():
    spread = pool_spread([(1, 3), (10, 12, 14)])
    assert spread is not None
    quantile = stats.t.ppf(0.975, 3)
    for values, mean in (((1, 3), 2), ((10, 12, 14), 12), ((5, ), 5)):
        half = quantile * np.sqrt(10 / 3 / len(values))
        assert spread.interval(values) == pytest.approx(
            (mean - half, mean + half),
        )


def test_of_one_point_it_is_the_usual_interval():
    values = (1.0, 2.0, 4.0, 4.5)
    spread = pool_spread([values])
    assert spread is not None
    assert spread.interval(values) == pytest.approx(
        stats.t.interval(0.95, 3, np.mean(values), stats.sem(values)),
    )


def test_no_spread_without_a_second_seed():
    assert pool_spread([(1.0, ), (2.0, ), ()]) is None
    assert pool_spread([]) is None


def test_interval_covers_as_often_as_it_says():
    # 5 points of 2 seeds, each point with a mean of its own.
    rng = np.random.default_rng(0)
    n_studies, covered = 2000, 0
    for _ in range(n_studies):
        points = rng.normal(np.arange(5)[:, None], 0.3, (5, 2))
        spread = pool_spread(points.tolist())
        assert spread is not None
        low, high = spread.interval(points[4].tolist())
        covered += low <= 4 <= high
    # Its own spread is sqrt(0.95 * 0.05 / 2000) = 0.005.
    assert covered / n_studies == pytest.approx(0.95, abs=0.015)
