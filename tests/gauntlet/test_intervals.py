import math
from typing import Optional

import numpy as np
import pytest
from scipy.stats import binom

from foundry_upcycle.gauntlet.intervals import (
    N_REPLICATES,
    Estimate,
    binomial_interval,
    draw,
    draw_difference,
    generator,
    interval,
    relative_interval,
)
from foundry_upcycle.gauntlet.results import Part

ONE = np.ones(1)


def part_of(right: np.ndarray, kept: bool = True) -> Part:
    right = right.astype(bool)
    return Part('M', right.mean(), len(right), right if kept else None)


def pair(
    both: int,
    gained: int,
    lost: int,
    neither: int,
    kept: bool = True,
) -> tuple[Part, Part]:
    """Two models by how many examples which of them got right."""
    counts = (both, gained, lost, neither)
    return (
        part_of(np.repeat([1, 1, 0, 0], counts), kept),
        part_of(np.repeat([1, 0, 1, 0], counts), kept),
    )


def interval_of(
    part: Part,
    n_replicates: int = N_REPLICATES,
) -> tuple[float, float]:
    draws = draw(part, n_replicates, generator(1, 'copa/0-shot'))
    result = interval(part.accuracy, ONE, [draws])
    assert result is not None
    return result


def difference_of(part: Part, base: Part) -> tuple[float, float]:
    rng = generator(1, 'copa/0-shot')
    draws = draw_difference(part, base, N_REPLICATES, rng)
    result = interval(part.accuracy - base.accuracy, ONE, [draws])
    assert result is not None
    return result


def width(ends: tuple[float, float]) -> float:
    return ends[1] - ends[0]


def test_binomial_interval():
    # Wilson's interval for 50 of 100, 1.96 standard deviations: center 0.5,
    # half width 1.96 sqrt(0.25/100 + 1.96^2/(4 100^2)) / (1 + 1.96^2/100)
    # = 1.96 x 0.0509513 / 1.038416 = 0.09617.
    low, high = binomial_interval(0.5, 100)
    assert (low, high) == pytest.approx((0.40383, 0.59617), abs=1e-5)


def test_interval_stays_within_probabilities():
    assert binomial_interval(0.0, 10)[0] == pytest.approx(0)
    assert binomial_interval(1.0, 10)[1] == pytest.approx(1)


@pytest.mark.parametrize('accuracy', [0.0, 1.0])
def test_the_accuracy_itself_is_within(accuracy: float):
    for n in range(1, 2000):
        low, high = binomial_interval(accuracy, n)
        assert 0 <= low <= accuracy <= high <= 1


def test_a_sum_is_the_bootstrap_over_examples():
    rng = np.random.default_rng(0)
    right_2E = rng.random((2, 150)) < np.array([[0.3], [0.9]])
    weights = np.array([0.5, 1.5])
    means = sum(
        weight * rng.choice(right, (N_REPLICATES, 150)).mean(axis=1)
        for weight, right in zip(weights, right_2E)
    )
    brute_force = np.quantile(means, (0.025, 0.975))
    draws = [
        draw(part_of(right), N_REPLICATES, generator(1, str(index)))
        for index, right in enumerate(right_2E)
    ]
    found = interval(weights @ right_2E.mean(axis=1), weights, draws)
    # Sums are 1/300 apart.
    assert found == pytest.approx(brute_force, abs=0.004)


@pytest.mark.parametrize('n_right', [0, 1, 17, 49, 50])
def test_one_part_is_wilsons(n_right: int):
    part = Part('M', n_right / 50, 50)
    found = interval_of(part)
    assert found == pytest.approx(binomial_interval(part.accuracy, 50))
    assert found[0] == pytest.approx(0) or found[0] > 0
    assert found[1] == pytest.approx(1) or found[1] < 1
    # Of a score above a chance of 0.2, other parts without a weight.
    draws = draw(part, 10, generator(1, 'copa'))
    low, high = interval(
        (part.accuracy - 0.2) / 0.8,
        np.array([0, 1 / 0.8, 0]),
        [None, draws, draws],
    ) or (0, 0)
    assert 0.8 * low + 0.2 == pytest.approx(found[0])
    assert 0.8 * high + 0.2 == pytest.approx(found[1])


@pytest.mark.parametrize('n', [1, 10, 50, 200])
def test_more_right_is_never_lower(n: int):
    ends = np.array([interval_of(Part('M', k / n, n)) for k in range(n + 1)])
    assert (np.diff(ends, axis=0) > 0).all()


# Coverage swings with n. Wilson's falls below 0.93 at 50, 51 and 78 examples of
# a rate of 0.02, at 110 of 0.05 and 0.95, and at 85 of 0.065.
@pytest.mark.parametrize(
    ('rate', 'lowest'),
    [(0.02, 0.917), (0.05, 0.926), (0.065, 0.928), (0.5, 0.93), (0.95, 0.926)],
)
def test_coverage_of_one_task(rate: float, lowest: float):
    coverages = []
    for n in range(50, 201):
        counts = np.arange(n + 1)
        ends = np.array([interval_of(Part('M', k / n, n), 1) for k in counts])
        covers = (ends[:, 0] <= rate) & (rate <= ends[:, 1])
        coverages.append(binom.pmf(counts, n, rate)[covers].sum())
    assert min(coverages) > lowest
    assert np.mean(coverages) > 0.945


def test_is_the_paired_bootstrap_over_examples():
    rng = np.random.default_rng(0)
    easy = rng.random(150)
    right = easy < 0.5
    base = np.where(rng.random(150) < 0.2, ~right, right) & (easy > 0.05)
    indices = rng.integers(150, size=(N_REPLICATES, 150))
    means = right[indices].mean(axis=1) - base[indices].mean(axis=1)
    brute_force = np.quantile(means, (0.025, 0.975))
    found = difference_of(part_of(right), part_of(base))
    assert found == pytest.approx(brute_force, abs=0.007)


def test_a_weighted_sum():
    # Variances add: 1.96 sqrt(0.5^2 0.25/1000 + 0.25^2 0.16/500) = 0.0178.
    parts = (Part('M', 0.5, 1000), Part('M', 0.2, 500))
    draws = [
        draw(part, 40_000, generator(1, str(index)))
        for index, part in enumerate(parts)
    ]
    ends = interval(0.3, np.array([0.5, 0.25]), draws)
    assert ends == pytest.approx((0.2822, 0.3178), abs=0.0005)


def test_none_right_widens_a_mean():
    # Half of: the interval of 0.5 at n=100 is 0.098 to each side; of 0 at
    # n=50 Wilson's, 0 to 1.96^2 / (50 + 1.96^2) = 0.0713.
    draws = [
        draw(Part('M', accuracy, n), 40_000, generator(1, 'copa'))
        for accuracy, n in ((0.5, 100), (0.0, 50))
    ]
    low, high = interval(0.25, np.array([0.5, 0.5]), draws) or (0, 0)
    assert 0.25 - low == pytest.approx(0.049, abs=0.002)
    assert high - 0.25 == pytest.approx(math.hypot(0.049, 0.0357), abs=0.002)


def test_pairs_tell_more_apart():
    correlated = difference_of(*pair(500, 60, 40, 400))
    alone = difference_of(*pair(500, 60, 40, 400, kept=False))
    # Standard deviations of the difference at n = 1000, apart from 0.02^2:
    # paired sqrt(100) / 1000, else sqrt((0.56 x 0.44 + 0.54 x 0.46) / 1000).
    assert width(correlated) == pytest.approx(2 * 1.96 * 0.0100, rel=0.05)
    assert width(alone) == pytest.approx(2 * 1.96 * 0.0222, rel=0.05)


def test_other_examples_are_not_paired():
    rng = generator(1, 'copa')
    part, other = part_of(np.ones(10)), part_of(np.ones(11))
    draws = draw_difference(part, other, 10, rng)
    assert draws is not None and not draws.paired
    draws = draw_difference(part, part, 10, rng)
    assert draws is not None and draws.paired


@pytest.mark.parametrize('n', range(1, 11))
def test_few_examples_tell_what_the_exact_test_tells(n: int):
    # McNemar's exact test for n of n one way: p = 2 x 0.5^n.
    low, _ = difference_of(*pair(500, n, 0, 500 - n))
    assert (low > 0) == (2 * 0.5**n < 0.05)


def test_equal_models():
    # On 1000 examples, with none that only one got right: up to
    # 1.96^2 / (1000 + 1.96^2) = 0.0038 may be.
    low, high = difference_of(*pair(500, 0, 0, 500))
    assert (low, high) == pytest.approx((-0.0038, 0.0038), abs=1e-4)


@pytest.mark.parametrize('kept', [True, False])
def test_none_against_all(kept: bool):
    # One example tells nothing, many do.
    assert difference_of(*pair(0, 1, 0, 0, kept))[0] < 0
    assert difference_of(*pair(0, 50, 0, 0, kept))[0] > 0.85


@pytest.mark.parametrize('base_n', [None, 10])
def test_no_interval_without_a_number_of_examples(base_n: Optional[int]):
    rng = generator(1, 'copa')
    part, base = Part('M', 0.5), Part('M', 0.5, base_n)
    assert draw(part, 10, rng) is None
    assert draw_difference(part, base, 10, rng) is None
    assert draw_difference(base, part, 10, rng) is None
    draws = [draw(Part('M', 0.5, 10), 10, rng), None]
    assert interval(0.5, np.array([0.5, 0.5]), draws) is None
    # What does not count may lack.
    assert interval(0.5, np.array([1.0, 0.0]), draws) is not None


def test_a_part_is_drawn_alike_everywhere():
    first = generator(1, 'copa/0-shot').random()
    assert first == generator(1, 'copa/0-shot').random()
    assert first != generator(1, 'piqa/0-shot').random()
    assert first != generator(2, 'copa/0-shot').random()


def relative_of(part: Part, base: Part) -> Optional[tuple[float, float]]:
    return relative_interval(
        Estimate(part.accuracy, interval_of(part)),
        Estimate(base.accuracy, interval_of(base)),
        difference_of(part, base),
    )


@pytest.mark.parametrize('kept', [True, False])
def test_a_relative_change_is_the_bootstrap_of_the_ratio(kept: bool):
    part, base = pair(150, 60, 30, 160, kept)
    assert part.correct is None or base.correct is not None
    right, base_right = (
        np.repeat(of, (150, 60, 30, 160)) for of in ([1, 1, 0, 0], [1, 0, 1, 0])
    )
    rng = np.random.default_rng(0)
    indices = rng.integers(400, size=(2, N_REPLICATES, 400))
    # The same examples of both, or others of each.
    drawn = right[indices[0]].mean(axis=1)
    base_drawn = base_right[indices[0 if kept else 1]].mean(axis=1)
    brute_force = np.quantile(drawn / base_drawn - 1, (0.025, 0.975))
    assert relative_of(part, base) == pytest.approx(brute_force, abs=0.015)


@pytest.mark.parametrize('lost', range(40, 80, 2))
def test_a_relative_change_is_told_apart_where_the_difference_is(lost: int):
    part, base = pair(100, 80, lost, 150)
    found, difference = relative_of(part, base), difference_of(part, base)
    assert found is not None
    assert found[0] < (80 - lost) / (100 + lost) < found[1]
    assert (found[0] > 1e-12) == (difference[0] > 1e-12)


def test_relative_to_what_is_known_only_the_value_varies():
    known = Estimate(0.2, (0.2, 0.2))
    exact = Estimate(0.3, (0.3, 0.3))
    # (0.3 -+ 0.04) / 0.2 - 1
    found = relative_interval(exact, known, (0.1, 0.1), spread=0.04)
    assert found == pytest.approx((0.3, 0.7))
    # 0.25 / 0.2 - 1 and 0.36 / 0.2 - 1
    other = Estimate(0.3, (0.25, 0.36))
    found = relative_interval(other, known, (0.05, 0.16))
    assert found == pytest.approx((0.25, 0.8))


@pytest.mark.parametrize(
    ('own', 'base', 'difference'),
    [
        ((0.1, 0.3), (0.0, 0.2), (0.0, 0.2)),  # May be no more than 0.
        ((0.1, 0.3), (-0.01, 0.21), (0.0, 0.2)),
        (None, (0.05, 0.15), (0.0, 0.2)),
        ((0.1, 0.3), None, (0.0, 0.2)),
        ((0.1, 0.3), (0.05, 0.15), None),
    ],
)
def test_no_interval_relative_to_what_may_be_0(
    own: Optional[tuple[float, float]],
    base: Optional[tuple[float, float]],
    difference: Optional[tuple[float, float]],
):
    value, start = Estimate(0.2, own), Estimate(0.1, base)
    assert relative_interval(value, start, difference) is None
