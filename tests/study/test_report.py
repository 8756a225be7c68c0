import numpy as np
import pytest

from foundry_upcycle.study.report import Arm, Comparison, render_report
from foundry_upcycle.study.results import RunResult


def _arm(label: str, loss: float, accuracy: float, core: float) -> Arm:
    result = RunResult(
        train_loss=np.full(60, loss),
        eval_loss={
            'domain': loss,
            'prose': 2 * loss
        },
        accuracy={
            'last_word': accuracy,
            'brackets': accuracy + 0.1
        },
        gauntlet={'core_average': core},
    )
    return Arm(label, 2000, 1000, 60, 6000, 10**9, result)


@pytest.fixture
def comparison() -> Comparison:
    return Comparison(
        dense=_arm('dense start', 5.0, 0.2, 0.1),
        cpt=_arm('continued pretraining', 4.0, 0.3, 0.2),
        upcycled=_arm('upcycled', 3.0, 0.4, 0.15),
        n_examples=100,
    )


def _render(comparison: Comparison) -> str:
    return render_report(
        comparison,
        {'The loss.': 'figures/loss.png'},
        {
            'prepare': 10.0,
            'pretrain': 20.0
        },
        'make quickstart',
    )


def test_main_table(comparison: Comparison):
    report = _render(comparison)
    rows = (
        '|  | dense start | continued pretraining | upcycled |',
        '| training FLOPs | 1e+09 | 1e+09 | 1e+09 |',
        '| training loss, last 50 steps | 5.000 | 4.000 | 3.000 |',
        '| loss, held-out domain | 5.000 | 4.000 | 3.000 |',
        '| ... relative to the dense start | +0.0% | -20.0% | -40.0% |',
        '| loss, held-out prose | 10.000 | 8.000 | 6.000 |',
        # Means of two tasks: 0.25, 0.35, 0.45; 0.35 / 0.25 = 1.4.
        '| ... relative to the dense start | +0.0% | +40.0% | +80.0% |',
        '| gauntlet core average | 0.100 | 0.200 | 0.150 |',
        '| ... relative to the dense start | +0.0% | +100.0% | +50.0% |',
    )
    for row in rows:
        assert row in report.splitlines()


def test_accuracies_come_with_intervals(comparison: Comparison):
    report = _render(comparison)
    # Wilson's interval for 40 of 100.
    assert '40.0% (30.9% to 49.8%)' in report
    assert 'accuracy (100 examples each)' in report


def test_verdict_says_what_the_numbers_say(comparison: Comparison):
    report = _render(comparison)
    assert 'ended with a lower loss on held-out domain text' in report
    assert '3.000 against 4.000 nats per token (-25.0%)' in report
    # 1.96 sqrt((0.35 x 0.65 + 0.45 x 0.55) / 200) = 0.0955
    assert '+10.0 percentage points, more than the 9.6 points' in report


def test_verdict_claims_nothing_within_the_noise(comparison: Comparison):
    close = Comparison(
        comparison.dense,
        comparison.cpt,
        _arm('upcycled', 4.4, 0.28, 0.1),
        n_examples=100,
    )
    report = _render(close)
    assert 'ended with a higher loss' in report
    assert '-2.0 percentage points, no more than the' in report


def test_facts(comparison: Comparison):
    report = _render(comparison)
    assert 'llm-foundry 0.22' in report
    assert '`make quickstart`' in report
    assert '| total | 30 |' in report
    assert '![The loss.](figures/loss.png)' in report
