"""The command ``advise``, as a user runs it."""

import json
from pathlib import Path
from typing import Any

import pytest
import small_study
import tiny
import tiny_hf
from typer.testing import CliRunner

from foundry_upcycle.cli.app import app
from foundry_upcycle.study.plan_files import write_yamls

ROOT = Path(__file__).parent.parent
YAMLS = ROOT / 'yamls'
SERVING = ROOT / 'docs/example_serving/serving.json'
PRETRAIN = YAMLS / 'pretrain_430m.yaml'


def run(*args: object, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, ['advise', *map(str, args)])
    assert result.exit_code == code, (result.output, result.exception)
    return result.stdout, result.stderr


def advice(*args: object) -> dict[str, Any]:
    text, _ = run(*args, '--json')
    return json.loads(text)


def test_of_a_yaml_as_text_and_figure(tmp_path):
    figure = tmp_path / 'figures/advice.svg'
    text, error = run(PRETRAIN, '--served', '1e12', '--figure', figure)
    assert text.startswith('dense model: pretrain_430m, 436M parameters, 43.6B')
    assert 'Upcycling is ahead from 0.11 of the pretraining FLOPs on' in text
    assert text.endswith(f'wrote {figure}\n')
    assert figure.read_text().count('<svg') == 1
    # One thing is: what continued pretraining would take for the same loss.
    assert error.startswith('warning: outside the data: fraction of pretrain')
    assert error.count('\n') == 1


def test_of_numbers():
    content = advice('--params', '1.42e9', '--tokens', '142e9')
    assert content['model']['params'] == 1.42e9
    assert [each['tokens']['cpt'] for each in content['budgets']] == [
        14_200_000_000,
        28_400_000_000,
        56_800_000_000,
        113_600_000_000,
        142_000_000_000,
    ]
    assert content['serving']['served_tokens'] is None


def test_tokens_replace_those_of_a_yaml():
    content = advice(PRETRAIN, '--tokens', '100e9', '--budgets', '0.2')
    [budget] = content['budgets']
    assert content['model']['pretraining_tokens'] == 100e9
    # A step has 1024 sequences of 4096 tokens.
    assert budget['tokens']['cpt'] == 4768 * 1024 * 4096


@pytest.mark.parametrize('kind', ['pt', 'huggingface'])
def test_of_a_checkpoint(tmp_path, kind: str):
    if kind == 'pt':
        path = tiny.save_dense(tiny.build_dense(), tmp_path / 'dense.pt')
    else:
        tiny_hf.save_llama(tmp_path / 'llama')
        path = tmp_path / 'llama'
    content = advice(path, '--tokens', '1e9')
    _, warnings = run(path, '--tokens', '1e9')
    assert 'outside the data: parameters' in warnings
    assert 1e4 < content['model']['params'] < 1e6
    flops = content['model']['training_flops_per_token']
    assert 1 < flops['upcycled'] / flops['cpt'] < 2


def test_serving_as_it_was_measured():
    content = advice(
        PRETRAIN,
        '--serving',
        SERVING,
        '--serving-size',
        '430m',
        '--served-a-day',
        '2e9',
        '--days',
        '365',
    )
    serving = content['serving']
    assert serving['served_tokens'] == 730e9
    assert serving['cost_ratio']['value'] == pytest.approx(
        434.5548 / 130.7786,
        rel=1e-5,
    )
    assert 'CPU, dummy weights' in serving['source']


@pytest.fixture(scope='module')
def study(tmp_path_factory) -> Path:
    """Two durations and three fractions, of losses that the paper lacks."""
    folder = tmp_path_factory.mktemp('study')
    path = small_study.write_study(
        folder,
        evaluation=None,
        models={
            'm': {
                'durations': {
                    'short': '1000ba',
                    'long': '2000ba',
                },
                'fractions': [0.3, 0.4, 0.8],
                'pretrain': {
                    'yaml': str(YAMLS / 'quickstart_pretrain.yaml'),
                },
                'arms': {
                    'cpt': {
                        'yaml': str(YAMLS / 'quickstart_cpt.yaml'),
                    },
                    'upcycled': {
                        'yaml': str(YAMLS / 'quickstart_upcycle.yaml'),
                    },
                },
            },
        },
    )
    grid = small_study.plan_grid(small_study.read_study(path))
    write_yamls(grid)
    for each in grid.runs:
        place = each.place
        loss = 6.0 - (place.duration == 'long') * 0.3 - place.budget
        loss -= (place.arm == 'upcycled') * 0.5 * place.budget
        small_study.leave_training(grid, each, loss=loss)
    return path


def test_own_runs(study: Path):
    yaml = YAMLS / 'quickstart_pretrain.yaml'
    content = advice(yaml, '--runs', study, '--budgets', '0.4')
    assert content['losses_on_the_scale_of'] == 'small'
    law = content['laws']['cpt']
    assert law['points'] == 23 + 6
    assert {'small m short',
            'small m long'} <= law['errors_of_starts_left_out'].keys()
    # Far smaller models, of random losses.
    _, error = run(yaml, '--runs', study)
    assert 'warning: upcycled: your runs do not share the exponents' in error
    # On the scale of the study, not of the paper.
    [budget] = content['budgets']
    assert 4.5 < budget['losses']['cpt']['value'] < 6.5


def test_own_runs_alone(study: Path):
    yaml = YAMLS / 'quickstart_pretrain.yaml'
    own = ('--runs', study, '--without-paper')
    # 1000 steps, as the study's short one.
    content = advice(yaml, *own, '--tokens', _tokens(study), '--budgets', '0.4')
    assert content['laws']['cpt']['points'] == 6
    assert content['laws']['cpt']['parameters']['a'] is None
    [budget] = content['budgets']
    assert budget['losses']['cpt']['value'] == pytest.approx(5.6, abs=0.05)
    assert budget['lead_of_upcycled']['value'] == pytest.approx(0.2, abs=0.05)
    # Of one size, they say nothing of another.
    _, error = run(PRETRAIN, *own, code=1)
    assert error.startswith("error: model='4.363e+08 parameters, 4.36e+10 tok")


def _tokens(study: Path) -> int:
    grid = small_study.plan_grid(small_study.read_study(study))
    return grid['m_short'].tokens


def test_too_few_own_runs(tmp_path):
    path = small_study.write_study(tmp_path, evaluation=None)
    grid = small_study.plan_grid(small_study.read_study(path))
    own = ('--runs', path)
    _, error = run(PRETRAIN, *own, code=1)
    assert error.startswith("error: --runs='small': no run of continued pret")
    write_yamls(grid)
    for each in grid.runs:
        small_study.leave_training(grid, each)
    _, error = run(PRETRAIN, *own, '--without-paper', code=1)
    assert error.startswith("error: runs='1 finished of cpt': the law has 2 p")
    assert 'needs more points than that' in error
    # With the paper's, one is enough for a scale of its own.
    content = advice(PRETRAIN, *own)
    assert content['losses_on_the_scale_of'] == 'small'


def test_other_mixtures_than_the_papers_are_warned_of():
    _, error = run(PRETRAIN, '--top-k', 1)
    assert 'warning: the paper upcycled to 8 experts, top-2; its points' in error


@pytest.mark.parametrize(
    'arguments,message',
    [
        ((), "MODEL=None: no model is named. Fix: name a training YAML"),
        ((PRETRAIN, '--params', 1), 'the model is named twice'),
        (('--params', '-1', '--tokens', '1e9'), '--params=-1.0: it is not a num'),
        (('--params', '1e9', '--tokens', 0), '--tokens=0.0: it is not a number'),
        (('--params', '1e9'), '--tokens=None: only a training YAML says'),
        (('absent.yaml', ), "YAML='absent.yaml': there is no such file"),
        (('absent.pt', '--tokens', '1e9'), 'absent.pt: there is no such file'),
        ((YAMLS / 'cpt_430m.yaml', ), 'it starts from a load_path'),
        ((YAMLS / 'upcycle_430m.yaml', ), 'it is a mixture of experts already'),
        ((PRETRAIN, '--budgets', '0.1;0.2'), "--budgets='0.1;0.2': it is not a l"),
        ((PRETRAIN, '--budgets', '0.1,-1'), '--budgets=-1.0: it is not a number'),
        ((PRETRAIN, '--budgets', '1e-9'), 'half a step'),
        ((PRETRAIN, '--experts', 1), 'moe_num_experts=1: a mixture has two'),
        ((PRETRAIN, '--experts', 16), "=(16, 2): the paper served mixtures of"),
        ((PRETRAIN, '--served', '-1'), '--served=-1.0: it is not a number above'),
        ((PRETRAIN, '--days', 3), '--days=(None, None, 3.0): they do not say'),
        (
            (PRETRAIN, '--served', 1, '--served-a-day', 1, '--days', 1),
            '=(1.0, 1.0, 1.0): they do not say once how much is served',
        ),
        (
            (PRETRAIN, '--served-a-day', 1, '--days', 0),
            '--days=0.0: it is not a number above 0',
        ),
        ((PRETRAIN, '--mfu', 2), '--mfu=2.0: it is not a number above 0, up to 1'),
        ((PRETRAIN, '--serving', SERVING), '--serving-size=None: '),
        (
            (PRETRAIN, '--serving', SERVING, '--serving-size', '1b'),
            "--serving-size='1b': ",
        ),
        ((PRETRAIN, '--serving-size', '1b'), 'give --serving as well'),
        ((PRETRAIN, '--serving', PRETRAIN, '--serving-size', 'a'), 'not JSON'),
        ((PRETRAIN, '--without-paper'), 'nothing is left to fit the laws to'),
        ((PRETRAIN, '--runs', 'absent.yaml'), "study='absent.yaml': there is"),
        ((PRETRAIN, '--figure', 'a.pdf'), "--figure='a.pdf': its ending is no"),
    ],
)  # yapf: disable
def test_what_can_not_be_advised(arguments, message):
    _, error = run(*arguments, code=1)
    assert error.splitlines()[-1].startswith('error: ') and message in error


def test_a_study_that_is_given_twice(study: Path):
    _, error = run(PRETRAIN, '--runs', study, '--runs', study, code=1)
    assert 'there is another study with the name small' in error


def test_a_study_that_was_changed(tmp_path):
    path = small_study.write_study(tmp_path, evaluation=None)
    grid = small_study.plan_grid(small_study.read_study(path))
    write_yamls(grid)
    small_study.leave_training(grid, grid.runs[0])
    text = path.read_text().replace('100ba', '200ba')
    path.write_text(text)
    _, error = run(PRETRAIN, '--runs', path, code=1)
    assert 'max_duration' in error
