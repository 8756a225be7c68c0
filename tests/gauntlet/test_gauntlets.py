"""The gauntlets of ``eval_gauntlet/``, and how they are read."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from llmfoundry.callbacks.eval_gauntlet_callback import EvalGauntlet

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.gauntlet.gauntlets import FOLDER, read_gauntlet
from foundry_upcycle.gauntlet.tasks import read_tasks

CATEGORIES = {
    'world_knowledge',
    'commonsense_reasoning',
    'language_understanding',
    'symbolic_problem_solving',
    'reading_comprehension',
}
# SHA-256 of json.dumps(content, sort_keys=True) of the two files that LLM Foundry
# released, `eval/local_data/` taken off the paths. To see for yourself, run it on
# scripts/eval/yamls/{tasks,eval_gauntlet}_v0.3.yaml of LLM Foundry.
RELEASED = {
    'v0.3_tasks':
    'e170c133e759bcc7f66c9d75ebc641b5366d19e191d4d4fc964a6c5f0801d47e',
    'v0.3': '5f5639529fdb69910eb6ef983844f38288b784d687bbc8f3ebc9b69deb6070e1',
}


@pytest.mark.parametrize('name', RELEASED)
def test_v03_is_as_released(name: str):
    content = yaml.safe_load((FOLDER / f'{name}.yaml').read_text())
    text = json.dumps(content, sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == RELEASED[name]


@pytest.mark.parametrize('name', ['paper', 'v0.3', 'quickstart'])
def test_every_task_that_counts_is_run(name: str):
    tasks = read_tasks(FOLDER / f'{name}_tasks.yaml')
    run = {benchmark for task in tasks for benchmark in task.benchmarks}
    scored = {b.label for b in read_gauntlet(name).benchmarks}
    assert scored <= run
    assert name == 'v0.3' or scored == run


def test_papers_gauntlet():
    paper, released = read_gauntlet('paper'), read_gauntlet('v0.3')
    assert set(paper.categories) == CATEGORIES | {'all_tasks'}
    assert set(released.categories) == CATEGORIES
    assert len(released.benchmarks) == len(paper.benchmarks) == 31
    # Every task weighs the same: the average is over one category of them all.
    assert paper.averages == {'core_average': ('all_tasks', )}
    assert len(paper.categories['all_tasks']) == 31
    assert sum(len(paper.categories[c]) for c in CATEGORIES) == 31
    assert set(paper.categories['all_tasks']) == set(paper.benchmarks)
    names = {b.name for b in paper.benchmarks}
    others = {b.name for b in released.benchmarks}
    assert names - others == {'logi_qa', 'math_qa', 'agi_eval_sat_math'}
    assert others - names == {
        'triviaqa_sm_sub',
        'simple_arithmetic_withspaces',
        'simple_arithmetic_nospaces',
    }
    # What both have they score alike, and ask alike.
    assert len(set(paper.benchmarks) & set(released.benchmarks)) == 28
    asked = {t.label: t for t in read_tasks(FOLDER / 'v0.3_tasks.yaml')}
    for task in read_tasks(FOLDER / 'paper_tasks.yaml'):
        if task.label in asked:
            own = {**task.settings, 'num_fewshot': None}
            assert own == {**asked[task.label].settings, 'num_fewshot': None}


def test_every_file_has_a_digest():
    digests = (FOLDER / 'data_digests.txt').read_text()
    recorded = set(re.findall(r'^(?:SHA256|GIT) \((.+)\) = ', digests, re.M))
    files = {
        task.dataset_uri
        for name in ('paper', 'v0.3')
        for task in read_tasks(FOLDER / f'{name}_tasks.yaml')
    }
    assert recorded == files


def test_restricting_says_what_is_left_out(tmp_path: Path):
    gauntlet = read_gauntlet('v0.3')
    symbolic = {
        b.label
        for b in gauntlet.categories['symbolic_problem_solving']
    }
    labels = {b.label for b in gauntlet.benchmarks} - symbolic - {'copa/0-shot'}
    rest = gauntlet.restricted(labels)
    assert set(rest.left_out) == symbolic | {'copa/0-shot'}
    assert set(rest.categories) == CATEGORIES - {'symbolic_problem_solving'}
    assert set(rest.averages['core_average']) == set(rest.categories)
    assert len(rest.categories['commonsense_reasoning']) == 6
    assert rest.left_out_categories == ('symbolic_problem_solving', )
    gone = ' No task is left of symbolic_problem_solving.'
    assert rest.say_left_out() == f"{', '.join(rest.left_out)}.{gone}"
    # Written and read again; Foundry takes it as well.
    path = tmp_path / 'v0.3.yaml'
    path.write_text(yaml.safe_dump(rest.to_yaml()))
    assert read_gauntlet(path) == rest
    settings = rest.to_yaml()['eval_gauntlet']
    # Foundry wants the sizes for any weighting.
    EvalGauntlet(logger_keys=[], benchmark_sizes={}, **settings)


def read(tmp_path: Path, content: Any) -> Any:
    path = tmp_path / 'gauntlet.yaml'
    path.write_text(
        content if isinstance(content, str) else json.dumps(content)
    )
    return read_gauntlet(path)


def test_no_such_gauntlet():
    match = "eval_gauntlet='v9': .* name one of paper, quickstart, v0.3"
    with pytest.raises(ConfigError, match=match):
        read_gauntlet('v9')


@pytest.mark.parametrize(
    'content,problem',
    [
        ('a: b: c', 'it can.t be read as YAML'),
        ('[]', 'it is not a gauntlet: TypeError'),
        ('5', 'it is not a gauntlet: TypeError'),
        ({
            'eval_gauntlet': {}
        }, "it is not a gauntlet: KeyError 'categories'"),
        (
            {
                'eval_gauntlet': {
                    'categories': [],
                    'averages': {
                        'mean': ['a'],
                    },
                },
            },
            "eval_gauntlet.averages.mean='a': there is no such category",
        ),
    ],
)
def test_a_file_that_is_no_gauntlet(tmp_path: Path, content: Any, problem: str):
    with pytest.raises(ConfigError, match=problem):
        read(tmp_path, content)


@pytest.mark.parametrize('baselines', [(0.5, 0.25), (1, ), (-0.1, )])
def test_baselines_that_cant_be_meant(tmp_path: Path, baselines: tuple):
    categories = [{
        'name':
        f'category {index}',
        'benchmarks': [
            {
                'name': 'copa',
                'num_fewshot': 0,
                'random_baseline': baseline,
            },
        ],
    } for index, baseline in enumerate(baselines)]
    with pytest.raises(ConfigError, match='copa/0-shot.random_baseline='):
        read(tmp_path, {'eval_gauntlet': {'categories': categories}})


@pytest.mark.parametrize(
    'changes,problem',
    [
        ({
            'averages': ['a']
        }, 'AttributeError'),
        ({
            'averages': {
                'mean': None
            }
        }, 'TypeError None is not a list'),
        ({
            'averages': {
                'mean': 'a'
            }
        }, "TypeError 'a' is not a list"),
        ({
            'categories': [{
                'name': 'a',
                'benchmarks': []
            }] * 2
        }, 'two have the'),
        (
            {
                'categories': [{
                    'name': 2024,
                    'benchmarks': []
                }],
            },
            '2024 is not a text; write it in quotes',
        ),
        *((
            {
                'categories': [{
                    'name':
                    'a',
                    'benchmarks': [{
                        'name': 'copa',
                        'num_fewshot': count,
                        'random_baseline': 0.5,
                    }],
                }],
            },
            f'num_fewshot: {count!r} is no whole number',
        ) for count in ('.inf', 0.5, None)),
    ],
)
def test_parts_that_cant_be_meant(tmp_path: Path, changes: Any, problem: str):
    with pytest.raises(ConfigError, match=problem):
        read(tmp_path, {'eval_gauntlet': {'categories': [], **changes}})


def test_other_weights_are_read_and_not_scored(tmp_path: Path):
    settings = {'categories': [], 'weighting': 'SAMPLE_SZ'}
    gauntlet = read(tmp_path, {'eval_gauntlet': settings})
    assert gauntlet.to_yaml()['eval_gauntlet']['weighting'] == 'SAMPLE_SZ'
    match = "gauntlet: eval_gauntlet.weighting='SAMPLE_SZ': scores are computed"
    with pytest.raises(ConfigError, match=match):
        gauntlet.require_scoring()
    read_gauntlet('v0.3').require_scoring()


def test_a_folder_or_a_binary_file_is_no_gauntlet(tmp_path: Path):
    with pytest.raises(ConfigError, match='can.t be read .*Is a directory'):
        read_gauntlet(tmp_path)
    (tmp_path / 'a.yaml').write_bytes(b'\xff\xfe\xfd')
    with pytest.raises(ConfigError, match='can.t be read as YAML'):
        read_gauntlet(tmp_path / 'a.yaml')


def test_left_out_may_be_empty(tmp_path: Path):
    content = {'eval_gauntlet': {'categories': []}, 'left_out': None}
    assert read(tmp_path, content).left_out == ()


def test_without_averages_all_categories_are_averaged(tmp_path: Path):
    gauntlet = read(tmp_path, {'eval_gauntlet': {'categories': []}})
    assert gauntlet.averages == {'default_average': ()}
