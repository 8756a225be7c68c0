"""The K of each batch: what a YAML may say, and what follows from it."""

from collections import Counter
from fractions import Fraction
from typing import Any

import pytest

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.planning.top_k import read_top_k, refuse_varying_top_k


def sample(**shares: float) -> dict[str, Any]:
    return {'sample': {int(K[1:]): share for K, share in shares.items()}}


@pytest.mark.parametrize(
    'value,values,mean',
    [
        (2, (2, ), 2),
        (sample(K1=0.5, K2=0.5), (1, 2), 1.5),
        # As JSON has it.
        ({
            'sample': {
                '4': 0.25,
                '1': 0.75
            }
        }, (1, 4), 1.75),
        ({
            'until': {
                '0.7dur': 2,
                '1dur': 1
            }
        }, (2, 1), 1.7),
        ({
            'until': {
                '0.25dur': 1,
                '0.5dur': 2,
                '1.0dur': 1
            }
        }, (1, 2, 1), 1.25),
        ({
            'until': {
                '1dur': 3
            }
        }, (3, ), 3),
    ],
)
def test_values_and_mean(value: Any, values: tuple[int, ...], mean: float):
    top_k = read_top_k(value, 8)
    assert (top_k.values, top_k.mean) == (values, mean)
    assert top_k.largest == max(values)
    assert top_k.varies == (len(values) > 1)


@pytest.mark.parametrize(
    'shares,off',
    [
        # The largest distance from n * p of any number of batches n. Where
        # blocks divide evenly it is that of the worst order in one of them.
        ({'K1': 0.5, 'K2': 0.5}, Fraction(1, 2)),
        ({'K1': 0.25, 'K2': 0.25, 'K8': 0.5}, 1),
        ({'K1': 0.1, 'K2': 0.9}, Fraction(9, 10)),
        # Blocks of 4 and of 5 do not: 1 more.
        ({'K1': 0.3, 'K2': 0.7}, Fraction(19, 10)),
        ({'K1': 0.2, 'K2': 0.33, 'K4': 0.47}, Fraction(9, 4)),
    ],
)  # yapf: disable
def test_any_number_of_batches_costs_what_is_planned(
    shares: dict[str, float],
    off: Any,
):
    top_k = read_top_k(sample(**shares), 8)
    seen, farthest = Counter(), 0.0
    draws = [top_k.drawn(batch, seed=3) for batch in range(3000)]
    for n, K in enumerate(draws, start=1):
        seen[K] += 1
        for name, share in shares.items():
            distance = abs(seen[int(name[1:])] - n * share)
            farthest = max(farthest, distance)
    assert 0.4 < farthest <= off + 1e-9
    # At random: another seed draws others, and no K comes at fixed distances.
    assert draws != [top_k.drawn(batch, seed=4) for batch in range(3000)]
    first = [n for n, K in enumerate(draws) if K == draws[0]]
    assert len({b - a for a, b in zip(first, first[1:])}) > 1


def test_draws_are_these_for_ever():
    # A run that is resumed with a later version goes on as it was.
    top_k = read_top_k(sample(K1=0.5, K2=0.5), 8)
    drawn = [top_k.drawn(batch, seed=17) for batch in range(12)]
    assert drawn == [1, 2, 1, 2, 2, 1, 1, 2, 2, 1, 1, 2]


def test_schedule():
    top_k = read_top_k({'until': {'0.7dur': 2, '1dur': 1}}, 8)
    # 7 of 10 batches: 10 * 1.7 in all.
    assert [top_k.scheduled(n / 10) for n in range(10)] == [2] * 7 + [1] * 3
    assert top_k.scheduled(1.1) == 1  # Of a run that is made longer.


@pytest.mark.parametrize(
    'value,problem',
    [
        (0, 'there are 8 experts, and K is 0'),
        (True, 'True is no number of experts'),
        ('two', "'two' is no number"),
        (None, 'None is no number'),
        ({}, 'it is none of sample and until'),
        ({
            'sample': {
                1: 1.0
            },
            'until': {
                '1dur': 1
            }
        }, 'or both'),
        ({
            'draw': {
                1: 1.0
            }
        }, 'it is none of'),
        ({
            'sample': {}
        }, 'sample says of no K'),
        ({
            'sample': [1, 2]
        }, 'sample says of no K'),
        ({
            'sample': {
                9: 1.0
            }
        }, 'there are 8 experts, and K is 9'),
        ({
            'sample': {
                True: 1.0
            }
        }, 'True is no number of experts'),
        ({
            'sample': {
                1: 0.5,
                '1': 0.5
            }
        }, 'K = 1 stands there twice'),
        (sample(K1=0.5, K2=0.4), 'probabilities sum to 0.9, not 1'),
        (sample(K1=1.0, K2=0), '0 is no probability from 0.001 to 1'),
        (sample(K1=True), 'True is no probability'),
        (sample(K1=float('nan')), 'nan is no probability'),
        ({
            'until': {}
        }, 'until says of no K'),
        ({
            'until': {
                '100ba': 2,
                '1dur': 1
            }
        }, '100ba is no share of the run'),
        ({
            'until': {
                'half': 2,
                '1dur': 1
            }
        }, 'it is not a duration'),
        ({
            'until': {
                '0.7dur': 2
            }
        }, 'its last time is 0.7dur, not 1dur'),
        ({
            'until': {
                '0.7dur': 2,
                '0.5dur': 3,
                '1dur': 1
            }
        }, 'its times are not ascending'),
        ({
            'until': {
                '0dur': 2,
                '1dur': 1
            }
        }, 'its times are not ascending from above 0'),
        ({
            'until': {
                '1dur': 9
            }
        }, 'there are 8 experts, and K is 9'),
    ],
)
def test_refuses(value: Any, problem: str):
    with pytest.raises(ConfigError, match=problem) as caught:
        read_top_k(value, 8)
    assert str(caught.value).startswith('model.ffn_config.moe_top_k=')


def test_only_our_layer_varies_it():
    refuse_varying_top_k(2, 'torch_dmoe')
    with pytest.raises(ConfigError, match='the K of torch_dmoe cannot vary'):
        refuse_varying_top_k(sample(K1=0.5, K2=0.5), 'torch_dmoe')
