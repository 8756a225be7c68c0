import json
import math
from dataclasses import replace
from typing import Any, Optional

import matplotlib.pyplot as plt
import numpy as np
import pytest

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.figures import render
from foundry_upcycle.planning.advice.advise import Advice, advise
from foundry_upcycle.planning.advice.arms import fit_arms
from foundry_upcycle.planning.advice.as_json import advice_json
from foundry_upcycle.planning.advice.costs import Interval, Prices, ServingSpeed
from foundry_upcycle.planning.advice.crossing import find_crossing
from foundry_upcycle.planning.advice.figure import draw_advice
from foundry_upcycle.planning.advice.model import Mixture, model_of_numbers
from foundry_upcycle.planning.advice.outside import Outside, beyond
from foundry_upcycle.planning.advice.text import advice_lines
from foundry_upcycle.study.points import PAPER, paper_points

POINTS = paper_points()
ARMS = fit_arms(**POINTS)
# The mixture is served half as fast.
SPEED = ServingSpeed('a test', 50_000, Interval(2.0, 1.8, 2.2))
PRICES = Prices(
    training_hour=3,
    serving_hour=2,
    peak_flops=1e15,
    mfu=0.4,
)


def make(
    fractions: Any = (0.1, 0.4, 1.0),
    served: Optional[float] = 1e12,
    n_params: float = 436e6,
    tokens: float = 43.6e9,
    speed: ServingSpeed = SPEED,
    prices: Prices = PRICES,
) -> Advice:
    model = model_of_numbers(n_params, tokens, Mixture(8, 2), POINTS)
    return advise(model, ARMS, PAPER, fractions, speed, prices, served)


def test_the_cheaper_way_to_the_same_loss():
    advice = make()
    budget = advice.budgets[1]
    # With so many FLOPs continued pretraining has upcycling's loss.
    other = budget.same_loss.value
    same, _ = ARMS.cpt.predict(PAPER, 436e6, 43.6e9, np.array([other * 43.6e9]))
    assert same[0] == pytest.approx(budget.losses['upcycled'].value)
    # An hour of 4e14 FLOPs a second costs 3; one of 50,000 tokens a second 2,
    # and the mixture takes as much again.
    flops = 6 * 436e6 * 43.6e9
    assert budget.training_price == pytest.approx(
        0.4 * flops / 4e14 / 3600 * 3,
    )
    more = (other - 0.4) * flops / 4e14 / 3600 * 3
    assert budget.served_below.value == pytest.approx(
        more / (2 / 3600 / 50_000),
    )
    low, high = budget.served_below.low, budget.served_below.high
    assert 0 < low < budget.served_below.value < high


def test_training_and_serving_in_all():
    budget = make().budgets[1]
    serving = 1e12 / 50_000 / 3600 * 2
    longer = budget.training_price * budget.same_loss.value / 0.4
    assert budget.totals == pytest.approx({
        'cpt':
        budget.training_price + serving,
        'upcycled':
        budget.training_price + 2 * serving,
        'cpt_same_loss':
        longer + serving,
    })
    # At the break-even both ways to the loss cost the same.
    even = make(served=budget.served_below.value).budgets[1].totals
    assert even and even['upcycled'] == pytest.approx(even['cpt_same_loss'])
    assert make(served=None).budgets[1].totals is None


def test_what_a_nat_must_be_worth():
    budget = make().budgets[1]
    more = 1e12 / 50_000 / 3600 * 2
    assert budget.nat_price == Interval(
        pytest.approx(more / budget.lead.value),
        pytest.approx(more / budget.lead.high),
        pytest.approx(more / budget.lead.low),
    )
    assert make(served=None).budgets[1].nat_price is None


def test_behind_it_never_pays():
    budget = make(fractions=(0.05, )).budgets[0]
    assert budget.lead.value < 0 and budget.verdict == 'not told apart'
    assert budget.served_below.value == 0
    assert budget.nat_price and budget.nat_price.value == math.inf
    lines = '\n'.join(advice_lines(make(fractions=(0.05, ))))
    assert 'At 0.05 of the pretraining FLOPs continue pretraining' in lines


def test_a_mixture_that_is_served_as_fast_pays_at_once():
    speed = replace(SPEED, ratio=Interval(1.0, 1.0, 1.0))
    budget = make(speed=speed).budgets[2]
    assert budget.served_below.value == math.inf
    assert budget.nat_price and budget.nat_price.value == 0
    text = '\n'.join(advice_lines(make(speed=speed)))
    assert 'FLOPs upcycle if you value a nat above 0 (' in text


def test_a_loss_that_continued_pretraining_never_has():
    # So long a pretraining that the law falls no more with further tokens.
    advice = make(n_params=1e15, tokens=9e18)
    budget = advice.budgets[1]
    assert budget.lead.low < 0 < budget.lead.value
    assert budget.same_loss == Interval(math.inf, 0.4, math.inf)
    assert budget.served_below == Interval(math.inf, 0.0, math.inf)
    text = '\n'.join(advice_lines(advice))
    assert 'FLOPs upcycle, though its lead is not told apart' in text
    assert 'the cheaper way to that loss' not in text
    json.dumps(advice_json(advice), allow_nan=False)


def test_a_price_beyond_all_numbers_is_null():
    prices = replace(PRICES, peak_flops=1e-300)
    [budget] = advice_json(make(fractions=(0.4, ), prices=prices))['budgets']
    assert budget['training_price'] is None


def test_budgets_ascend_and_are_told_apart():
    advice = make(fractions=(1.0, 0.1, 0.4, 0.4))
    assert [b.fraction for b in advice.budgets] == [0.1, 0.4, 1.0]
    assert [b.verdict for b in advice.budgets] == [
        'not told apart',
        'ahead',
        'ahead',
    ]
    assert advice.crossing.kind == 'crossing'
    assert advice.crossing.told_apart is not None
    first, last = advice.crossing.told_apart
    assert 0.1 < first < 0.4 and last > 1


@pytest.mark.parametrize(
    'lead,half,kind,fraction,possible,told_apart',
    [
        ([-2, -1, 1, 3], 1.5, 'crossing', math.sqrt(0.08), 0.2, (0.8, 0.8)),
        ([1, -1, 1, 3], 0.5, 'crossing', math.sqrt(0.08), 0.1, (0.1, 0.8)),
        ([1, 2, 2, 3], 0.5, 'always', None, 0.1, (0.1, 0.8)),
        ([-4, -3, -2, -1], 0.5, 'never', None, None, None),
    ],
)
def test_crossings(lead, half, kind, fraction, possible, told_apart):
    found = find_crossing(
        np.array([0.1, 0.2, 0.4, 0.8]),
        np.array(lead, float),
        np.full(4, half),
    )
    assert found.kind == kind
    assert found.fraction == (fraction and pytest.approx(fraction))
    assert found.possible_from == possible
    assert found.told_apart == told_apart
    assert found.searched == (0.1, 0.8)


def test_within_the_data_nothing_is_outside():
    # But what continued pretraining would take is far more than it ever got.
    [outside] = make(fractions=(0.4, )).outside
    assert outside.what.startswith('fraction of pretraining FLOPs with which')
    assert outside.factor == outside.value / 1.0 > 1.5


def test_how_far_outside_the_data():
    advice = make(fractions=(0.05, 1.0), n_params=8e9, tokens=15e12)
    found = {each.what: each for each in advice.outside}
    assert found['parameters'].factor == pytest.approx(8e9 / 1.42e9)
    of_pretraining = found['tokens of pretraining']
    assert of_pretraining.factor == pytest.approx(15e12 / 354e9)
    ratio = found['tokens of pretraining a parameter']
    assert ratio.factor == pytest.approx(1875 / (200e9 / 436e6))
    # Of several budgets the farthest.
    assert found['fraction of pretraining FLOPs'].factor == pytest.approx(2)
    assert found['tokens of cpt'].value == 15e12
    assert '5.63 times above the most' in str(found['parameters'])


def test_data_are_rounded():
    assert not beyond('N', 102.9, [1.0, 100.0])
    assert beyond('N', 103.1, [1.0, 100.0]) == [
        Outside('N', 103.1, 1.0, 100.0),
    ]
    [below] = beyond('N', 0.5, [1.0, 100.0])
    assert below.factor == 2 and '2 times below the least' in str(below)


@pytest.mark.parametrize(
    'change,message',
    [
        ({'n_params': -1.0}, '--params=-1.0: it is not a number above 0'),
        ({'n_params': math.nan}, '--params=nan: it is not a number above 0'),
        ({'tokens': 0.0}, '--tokens=0.0: .*Fix: write those of its pretrain'),
        ({'fractions': (0.1, 0.0)}, '--budgets=0.0: it is not a number above 0'),
        ({'served': -5.0}, '--served=-5.0: it is not a number above 0'),
        ({'served': math.inf}, '--served=inf: it is not a number above 0'),
    ],
)  # yapf: disable
def test_bad_numbers(change: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        make(**change)


@pytest.mark.parametrize(
    'key',
    ['training_hour', 'serving_hour', 'peak_flops', 'mfu'],
)
def test_bad_prices(key: str):
    name = key.replace('_', '-')
    with pytest.raises(ConfigError, match=f'--{name}=0.0: it is not a number'):
        replace(PRICES, **{key: 0.0})
    with pytest.raises(ConfigError, match='--mfu=1.5: .* up to 1. Fix:'):
        replace(PRICES, mfu=1.5)


def test_json_says_what_was_predicted():
    advice = make(fractions=(0.05, 0.4))
    content = json.loads(json.dumps(advice_json(advice), allow_nan=False))
    assert content['format'] == 'foundry_upcycle/advice/1'
    first, second = content['budgets']
    budget = advice.budgets[1]
    assert second['losses']['cpt']['value'] == budget.losses['cpt'].value
    assert second['lead_of_upcycled']['low'] == budget.lead.low
    assert second['cheaper_if_served_below']['value'] == (
        budget.served_below.value
    )
    # No price is high enough.
    assert first['nat_price']['value'] is None
    law = content['laws']['upcycled']
    assert law['points'] == 23
    assert law['rms_error'] == ARMS.upcycled.rms
    errors = law['errors_of_starts_left_out']
    assert sum(map(len, errors.values())) == 23
    assert {each['what']
            for each in first['outside']} >= {
                'fraction of pretraining FLOPs',
            }


def test_the_printed_law_predicts_the_same():
    law = advice_json(make())['laws']['cpt']['parameters']
    n, d1, d2 = 436e6, 43.6e9, 17.44e9
    log = law['log_A'] - law['a'] * math.log(n) - law['b'] * math.log(d1)
    log += (-law['c'] + law['d'] * math.log(d1)) * math.log(d2)
    assert make().budgets[1].losses['cpt'].value == pytest.approx(
        math.exp(log) + law['E'],
    )


def test_text_has_all_budgets_and_errors():
    lines = list(advice_lines(make()))
    text = '\n'.join(lines)
    assert [line.split()[0] for line in lines[6:9]] == ['0.1', '0.4', '1']
    assert 'upcycle if you will serve fewer than' in text
    assert 'if you value a nat above' in text
    assert 'each dense start left out in turn   0.0081    0.0187' in text
    assert 'continued pretraining is the cheaper way to that loss' in text
    few = '\n'.join(advice_lines(make(served=1e9)))
    assert 'upcycling is the cheaper way to that loss' in few
    assert '--served' in '\n'.join(advice_lines(make(served=None)))


def test_figure_marks_the_break_even():
    advice = make(fractions=(0.05, 0.1, 0.4, 1.0))
    figure = draw_advice(advice)
    [axes] = figure.axes
    vertical = [
        line.get_xdata()[0]
        for line in axes.lines
        if len(set(line.get_xdata())) == 1
    ]
    assert advice.crossing.told_apart is not None
    assert vertical == [
        advice.crossing.fraction,
        advice.crossing.told_apart[0],
    ]
    assert axes.get_xlim()[0] < 0.05 and axes.get_xlim()[1] > 1.0
    # Intervals of both arms, and budgets below and above the data.
    assert len(axes.collections) == 2 and len(axes.patches) == 2
    first, second = (render(draw_advice(advice), 'svg') for _ in range(2))
    assert first == second
    assert render(draw_advice(advice), 'png').startswith(b'\x89PNG')
    assert not plt.get_fignums()
