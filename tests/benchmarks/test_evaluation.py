"""``benchmarks/evaluation``: how it scores, without lm-eval."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional, Sequence

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / 'benchmarks/evaluation'
SCORING = SimpleNamespace(**runpy.run_path(str(FOLDER / 'scoring.py')))


def line(
    doc_id: int,
    log_likelihoods: Sequence[float],
    lengths: Sequence[int],
    gold: Optional[int] = 0,
    acc: float = 1.0,
    is_greedy: bool = False,
    **metrics: float,
) -> str:
    """What ask_lm_eval.py writes; the k-th continuation is of tokens k."""
    return json.dumps({
        'doc_id':
        doc_id,
        'doc': {} if gold is None else {
            'gold': gold,
        },
        'target':
        'unused',
        'filtered_resps': [[x, is_greedy] for x in log_likelihoods],
        'tokens': [[[7, 8], [k] * n] for k, n in enumerate(lengths)],
        'acc':
        acc,
        **metrics,
    })


def samples(*lines: str) -> list[Any]:
    return SCORING.read_samples(lines)


def test_samples_are_put_in_order():
    first, second = samples(
        line(1, [-3.0, -2.0], [2, 1], gold=1, acc_norm=0.0),
        line(0, [-5.0], [2], gold=None, is_greedy=True),
    )
    assert first.gold is None
    assert first.is_greedy == (True, )
    assert first.acc_norm is None
    assert second.gold == 1
    assert second.log_likelihoods == (-3.0, -2.0)
    assert second.requests == (((7, 8), (0, 0)), ((7, 8), (1, )))
    assert second.acc is True
    assert second.acc_norm is False


@pytest.mark.parametrize('ids', [(0, 2), (0, 0)])
def test_missing_samples_are_refused(ids: tuple[int, int]):
    lines = [line(doc_id, [-1.0, -2.0], [1, 1]) for doc_id in ids]
    with pytest.raises(ValueError, match="2 samples don't have the ids 0 to 1"):
        samples(*lines)


@pytest.mark.parametrize(
    ('log_likelihoods', 'lengths', 'choice'),
    [
        ([-4.0, -6.0], [1, 2], 1),  # 4.0 and 3.0 a token.
        ([-4.0, -6.0], [2, 2], 0),  # 2.0 and 3.0: as the sums have it.
        ([-4.0, -8.0], [1, 2], 0),  # 4.0 twice: the first.
    ],
)
def test_choice_of_lowest_mean_loss(
    log_likelihoods: list[float],
    lengths: list[int],
    choice: int,
):
    for gold in range(2):
        (sample, ) = samples(line(0, log_likelihoods, lengths, gold=gold))
        assert SCORING.foundry_verdict(sample) == (choice == gold)


@pytest.mark.parametrize('is_greedy', [True, False])
def test_one_continuation_must_be_greedy(is_greedy: bool):
    (sample, ) = samples(line(0, [-1.0], [3], None, is_greedy=is_greedy))
    assert SCORING.foundry_verdict(sample) == is_greedy


def test_closest_call():
    choices = samples(
        line(0, [-4.0, -6.0, -9.0], [1, 2, 3]),  # 4.0, 3.0, 3.0 a token.
        line(1, [-4.0, -9.0], [2, 3]),
    )
    assert SCORING.closest_call(choices) == 0.0
    assert SCORING.closest_call(choices[1:]) == 1.0
    assert SCORING.closest_call(samples(line(0, [-1.0], [1], None))) is None


def test_short_choices():
    counts = SCORING.short_choices(
        samples(
            # The first choice is shorter: 4 < 6 in sum, 4 > 3 a token.
            line(0, [-4.0, -6.0], [1, 2]),
            # So is the second: 5 > 4 in sum, 2.5 > 1.3 a token.
            line(1, [-4.0, -5.0], [3, 2]),
            line(2, [-4.0, -6.0], [2, 2]),  # Neither is.
            line(3, [-4.0], [2], None),
        )
    )
    assert counts == {'records': 2, 'gold': 1, 'acc': 1, 'foundry': 0}


def test_row():
    asked = samples(
        line(0, [-4.0, -6.0], [1, 2], acc=1.0, acc_norm=1.0),
        line(1, [-1.0, -9.0], [2, 2], acc=1.0, acc_norm=1.0),
        line(2, [-9.0, -1.0], [2, 2], acc=0.0, acc_norm=1.0),
    )
    requests = [sample.requests for sample in asked]
    # Of the third record, Foundry starts the second choice one token later.
    requests[2] = (requests[2][0], ((7, 8, 1), (1, )))
    comparison = SCORING.Comparison(
        'piqa',
        asked,
        [False, True, True],
        requests,
    )
    # By Foundry's rule lm-eval has 0, 1, 0; by acc 1, 1, 0; by acc_norm 1, 1, 1.
    assert comparison.row() == \
        '| piqa | 3 | 0.6667 | 0.6667 | 1 | 1.0000 | 2 | 0.3333 | 2 | 2 |'
    assert comparison.other_tokens() == [2]
    assert comparison.other_verdicts() == [2]


def test_row_without_acc_norm():
    (sample, ) = samples(line(0, [-1.0], [1], None, is_greedy=True))
    comparison = SCORING.Comparison(
        'lambada_openai',
        [sample],
        [True],
        [sample.requests],
    )
    assert comparison.row() == \
        '| lambada_openai | 1 | 1.0000 | 1.0000 | 1 |  |  | 1.0000 | 1 | 1 |'


def test_both_read_the_same_files():
    foundry = yaml.safe_load((FOLDER / 'foundry.yaml').read_text())
    theirs = {
        path.stem: yaml.safe_load(path.read_text())
        for path in (FOLDER / 'lm_eval_tasks').glob('*.yaml')
    }
    assert {task['label'] for task in foundry['icl_tasks']} == set(theirs)
    for task in foundry['icl_tasks']:
        name, uri = task['label'], task['dataset_uri']
        files = theirs[name]['dataset_kwargs']['data_files']
        assert uri == f"${{variables.data}}/{files['test']}"
        assert theirs[name]['task'] == f'foundry_{name}'
        assert task['num_fewshot'] == [0]
