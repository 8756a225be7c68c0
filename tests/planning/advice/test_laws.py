import dataclasses
import math
from typing import Callable, Mapping, Sequence

import numpy as np
import pytest

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.planning.advice.arms import ARMS, Arms, fit_arms
from foundry_upcycle.planning.advice.crossing import find_crossing
from foundry_upcycle.planning.advice.laws import Point, cross_validate, fit_law
from foundry_upcycle.study.points import PAPER, paper_points

# A law of each arm on the scale of each study: A, a, b, c, d; E.
KNOWN = {'cpt': (300.0, 0.15, 0.07, 0.05, 1e-3), 'upcycled': (400.0, 0.14, 0.07, 0.09, 1.6e-3)}  # yapf: disable
SCALES = {'own': (1.0, 1.1), 'other': (1.3, 0.6)}
# FLOPs of a token, mixture : dense, by the paper's tokens.
RATIOS = {436e6: 1.334, 1.42e9: 1.468}


def known_loss(
    arm: str,
    study: str,
    n_params: float,
    pretraining_tokens: float,
    tokens: float,
) -> float:
    """The law as it is printed."""
    A, a, b, c, d = KNOWN[arm]
    factor, E = SCALES[study]
    exponent = -c + d * math.log(pretraining_tokens)
    return (
        factor * A * n_params**-a * pretraining_tokens**-b * tokens**exponent +
        E
    )


def points(
    arm: str,
    studies: Sequence[str] = ('own', ),
    sizes: Sequence[float] = (1e8, 1e9),
    durations: Sequence[float] = (100, 230, 460),
    fractions: Sequence[float] = (0.1, 0.2, 0.4, 0.8, 1.0),
    noise: Callable[[], float] = lambda: 0.0,
) -> tuple[Point, ...]:
    """Runs of a known law; durations are in tokens a parameter."""
    found = []
    for study in studies:
        for n in sizes:
            for duration in durations:
                for fraction in fractions:
                    tokens = fraction * duration * n
                    loss = known_loss(arm, study, n, duration * n, tokens)
                    found.append(
                        Point(
                            study,
                            f'{n:g} {duration:g}',
                            fraction,
                            n,
                            duration * n,
                            tokens,
                            loss + noise(),
                        ),
                    )
    return tuple(found)


def left_out(start: str) -> Arms:
    """The paper's laws, without the runs of a dense model of its."""
    kept = {
        arm: [point
              for point in of
              if point.start != start]
        for arm, of in paper_points().items()
    }
    return fit_arms(kept['cpt'], kept['upcycled'])


def dense_start(start: str) -> tuple[float, float, Mapping[str, np.ndarray]]:
    """N, D1, and arm -> tokens of fractions from 0.01 to 10."""
    point = next(p for p in paper_points()['cpt'] if p.start == start)
    cpt = np.geomspace(0.01, 10, 601) * point.pretraining_tokens
    tokens = {'cpt': cpt, 'upcycled': cpt / RATIOS[point.n_params]}
    return point.n_params, point.pretraining_tokens, tokens


@pytest.mark.parametrize('arm', ARMS)
def test_a_known_law_is_recovered(arm: str):
    law = fit_law(points(arm, studies=('own', 'other')))
    _, a, b, c, d = KNOWN[arm]
    for study, (factor, E) in SCALES.items():
        assert law.as_printed(study) == pytest.approx(
            {
                'log_A': math.log(factor * KNOWN[arm][0]),
                'a': a,
                'b': b,
                'c': c,
                'd': d,
                'E': E,
            },
            rel=1e-3,
        )
    # Far from all points.
    found, _ = law.predict('other', 7e9, 2e12, np.array([3e11]))
    expected = known_loss(arm, 'other', 7e9, 2e12, 3e11)
    assert found[0] == pytest.approx(expected, abs=1e-5)
    assert law.rms < 1e-6


def test_tokens_for_a_loss():
    law = fit_law(points('cpt'))
    loss = known_loss('cpt', 'own', 1e9, 2e11, 5e10)
    model = 'own', 1e9, 2e11
    assert law.tokens_for(loss, *model) == pytest.approx(5e10, rel=1e-3)
    assert law.tokens_for(SCALES['own'][1] - 0.1, *model) == math.inf


@pytest.mark.parametrize('correlation', [0.0, 0.9])
def test_intervals_cover_what_they_say(correlation: float):
    # 200 studies of a known truth; each predicts a further run of both arms.
    generator = np.random.default_rng(6)
    sd = {'cpt': 0.007, 'upcycled': 0.015}
    new = 'own', 5e8, 1.5e11
    tokens = {'cpt': 3e10, 'upcycled': 2.2e10}
    truth = {arm: known_loss(arm, *new, tokens[arm]) for arm in ARMS}
    covered, lead_covered = [], []
    for _ in range(200):
        noise = _paired_noise(generator, correlation, 31)
        measured = {}
        for arm in ARMS:
            of_arm = iter(noise[arm][1:] * sd[arm])
            measured[arm] = points(arm, noise=lambda each=of_arm: next(each))
        run = {arm: truth[arm] + noise[arm][0] * sd[arm] for arm in ARMS}
        curves = fit_arms(**measured).predict(
            *new,
            {
                arm: np.array([of])
                for arm, of in tokens.items()
            },
        )
        for arm in ARMS:
            error = abs(curves.losses[arm][0] - run[arm])
            covered.append(error < curves.half_widths[arm][0])
        error = abs(curves.lead[0] - (run['cpt'] - run['upcycled']))
        lead_covered.append(error < curves.lead_half_width[0])
    # Of 400 and 200: 95 % within two or three standard errors.
    assert 0.92 < np.mean(covered) < 0.98
    # Unpaired, 0.9 would have 99.9 %.
    assert 0.91 < np.mean(lead_covered) < 0.99


def _paired_noise(
    generator: np.random.Generator,
    correlation: float,
    n: int,
) -> Mapping[str, np.ndarray]:
    first, second = generator.standard_normal((2, n))
    other = correlation * first + math.sqrt(1 - correlation**2) * second
    return {'cpt': first, 'upcycled': other}


@pytest.mark.parametrize(
    'arm,rms,left_out',
    # A fit by hand of the issue: 0.006 and 0.013, 0.009 and 0.023.
    [('cpt', 0.0065, 0.0085), ('upcycled', 0.0135, 0.019)],
)
def test_the_papers_runs_are_fitted(arm: str, rms: float, left_out: float):
    of_arm = paper_points()[arm]
    assert len(of_arm) == 23
    assert fit_law(of_arm).rms < rms
    errors = cross_validate(of_arm)
    assert list(errors) == [
        f'{PAPER} {start}' for start in (
            '436M medium',
            '436M long',
            '436M extra_long',
            '1.4B medium',
            '1.4B long',
        )
    ]
    every = np.concatenate(list(errors.values()))
    assert math.sqrt(np.square(every).mean()) < left_out


def test_runs_that_were_left_out_lie_in_their_intervals():
    covered = []
    for start in dict.fromkeys(p.start for p in paper_points()['cpt']):
        arms = left_out(start)
        own = {
            arm: [p
                  for p in of
                  if p.start == start]
            for arm, of in paper_points().items()
        }
        first = own['cpt'][0]
        curves = arms.predict(
            PAPER,
            first.n_params,
            first.pretraining_tokens,
            {
                arm: np.array([p.tokens
                               for p in of])
                for arm, of in own.items()
            },
        )
        for arm in ARMS:
            errors = curves.losses[arm] - [p.loss for p in own[arm]]
            covered += list(np.abs(errors) < curves.half_widths[arm])
    # 44 or more of 46 are expected three times in five.
    assert sum(covered) >= 44


@pytest.mark.parametrize(
    'start,low,high',
    [
        pytest.param(
            '436M medium',
            0.1,
            0.2,
            # Its interval is from 0.01 on: the nearest duration is 2.3 times
            # as long, and so all budgets are smaller than any of the others'.
            marks=pytest.mark.xfail(reason='it is 0.096', strict=True),
        ),
        ('436M long', 0.0, 0.1),
        ('436M extra_long', 0.0, 0.1),
    ],
)
def test_where_the_paper_crosses_is_told_by_the_other_durations(
    start: str,
    low: float,
    high: float,
):
    n_params, pretraining_tokens, tokens = dense_start(start)
    arms = left_out(start)
    curves = arms.predict(PAPER, n_params, pretraining_tokens, tokens)
    crossing = find_crossing(
        tokens['cpt'] / pretraining_tokens,
        curves.lead,
        curves.lead_half_width,
    )
    assert crossing.fraction is not None
    assert low < crossing.fraction < high


def test_where_the_paper_crosses_is_told_with_its_runs():
    n_params, pretraining_tokens, tokens = dense_start('436M medium')
    arms = fit_arms(**paper_points())
    curves = arms.predict(PAPER, n_params, pretraining_tokens, tokens)
    crossing = find_crossing(
        tokens['cpt'] / pretraining_tokens,
        curves.lead,
        curves.lead_half_width,
    )
    assert crossing.fraction is not None and 0.1 < crossing.fraction < 0.2


def test_own_runs_are_on_their_own_scale():
    own = points('cpt', ('own', ), sizes=(1e9, ), durations=(100, ))
    law = fit_law([*paper_points()['cpt'], *own])
    at = 1e9, 1e11, np.array([4e10])
    expected = known_loss('cpt', 'own', 1e9, 1e11, 4e10)
    assert law.predict('own', *at)[0][0] == pytest.approx(expected, abs=0.01)
    paper = fit_law(paper_points()['cpt']).predict(PAPER, *at)[0][0]
    found = law.predict(PAPER, *at)[0][0]
    assert found == pytest.approx(paper, abs=0.01)
    assert abs(paper - expected) > 0.3


def test_one_size_says_nothing_of_others():
    law = fit_law(points('cpt', sizes=(1e9, )))
    assert law.as_printed('own')['a'] is None
    found, _ = law.predict('own', 1e9, 3e11, np.array([5e10]))
    expected = known_loss('cpt', 'own', 1e9, 3e11, 5e10)
    assert found[0] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ConfigError, match="model='2e.09 par.*do not tell what"):
        law.predict('own', 2e9, 3e11, np.array([5e10]))


def test_size_and_duration_that_are_not_told_apart():
    own = [
        *points('cpt', sizes=(1e8, ), durations=(100, )),
        *points('cpt', sizes=(1e9, ), durations=(100, )),
    ]
    law = fit_law(own)
    # At 100 tokens a parameter it may be asked.
    found, _ = law.predict('own', 3e8, 3e10, np.array([1e10]))
    expected = known_loss('cpt', 'own', 3e8, 3e10, 1e10)
    assert found[0] == pytest.approx(expected, abs=1e-3)
    with pytest.raises(ConfigError, match='nothing is known of it'):
        law.predict('own', 3e8, 9e10, np.array([1e10]))


def test_a_start_that_others_say_nothing_of_has_no_error():
    own = points('cpt', sizes=(1e9, ), durations=(100, 200))
    assert cross_validate(own) == {}
    assert len(cross_validate([*own, *paper_points()['cpt']])) == 7


def test_too_few_runs():
    some = points('cpt', durations=(100, 460), fractions=(0.1, 1.0))[:6]
    with pytest.raises(
            ConfigError,
            match='runs=.6 finished of cpt.: the law has 6 parameters, and '
            'needs more',
    ):
        fit_law(some, 'cpt')


def test_few_pairs_tell_no_correlation():
    own = paper_points()
    moved = [
        dataclasses.replace(point, fraction=point.fraction + 1)
        for point in own['upcycled']
    ]
    assert fit_arms(own['cpt'], moved).correlation == 0
    assert abs(fit_arms(**own).correlation) < 0.3
