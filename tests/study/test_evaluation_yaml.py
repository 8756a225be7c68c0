from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.study.evaluation_yaml import EvaluationYaml

GAUNTLET = {
    'categories': [{
        'name':
        'reading',
        'benchmarks': [{
            'name': 'cloze',
            'num_fewshot': 0,
            'random_baseline': '${variables.chance}',
        }],
    }],
}


def read(tmp_path: Path, variables=None, **settings) -> EvaluationYaml:
    path = tmp_path / 'eval.yaml'
    content = {
        'variables': {
            'folder': 'here',
            'chance': 0.25
        },
        'icl_tasks': '${variables.folder}/tasks.yaml',
        **settings,
    }
    path.write_text(yaml.safe_dump(content))
    return EvaluationYaml.read(path, variables or {})


def test_without_texts_and_gauntlet(tmp_path: Path):
    evaluation = read(tmp_path)
    assert evaluation.path == tmp_path / 'eval.yaml'
    assert evaluation.held_out_texts == frozenset()
    assert evaluation.gauntlet is None


def test_labels_of_held_out_texts(tmp_path: Path):
    loaders = [{'label': 'prose'}, {'label': '${variables.folder}'}]
    evaluation = read(tmp_path, eval_loaders=loaders)
    assert evaluation.held_out_texts == {'prose', 'here'}


def test_variables_are_replaced(tmp_path: Path):
    evaluation = read(
        tmp_path,
        {'folder': 'there'},
        eval_loaders=[{
            'label': '${variables.folder}'
        }],
    )
    assert evaluation.config.icl_tasks == 'there/tasks.yaml'
    assert evaluation.config.variables.chance == 0.25
    assert evaluation.held_out_texts == {'there'}
    assert evaluation.variables == {'folder', 'chance'}
    # What is written for a run still says where it is from.
    unresolved: Any = OmegaConf.to_container(evaluation.config)
    assert unresolved['icl_tasks'] == '${variables.folder}/tasks.yaml'


def test_an_inline_gauntlet(tmp_path: Path):
    gauntlet = read(tmp_path, eval_gauntlet=GAUNTLET).gauntlet
    assert gauntlet is not None
    (benchmark, ) = gauntlet.categories['reading']
    assert benchmark.label == 'cloze/0-shot'
    assert benchmark.random_baseline == 0.25
    # Named by the YAML that it stands in.
    assert gauntlet.name == 'eval'
    assert gauntlet.averages == {'default_average': ('reading', )}


def test_a_gauntlet_by_path(tmp_path: Path):
    category = {
        **GAUNTLET['categories'][0],
        'name': 'writing',
        'benchmarks': [],
    }
    path = tmp_path / 'mine.yaml'
    content = {'eval_gauntlet': {'categories': [category]}}
    path.write_text(yaml.safe_dump(content))
    evaluation = read(
        tmp_path,
        {'folder': str(tmp_path)},
        eval_gauntlet='${variables.folder}/mine.yaml',
    )
    assert evaluation.gauntlet is not None
    assert evaluation.gauntlet.name == 'mine'
    assert evaluation.gauntlet.categories == {'writing': ()}


def test_gauntlets_that_can_not_be_read(tmp_path: Path):
    # Only when it is asked for: `gauntlet prepare` may not have made it yet.
    evaluation = read(tmp_path, eval_gauntlet='absent.yaml')
    with pytest.raises(ConfigError, match="eval_gauntlet='absent.yaml': there"):
        _ = evaluation.gauntlet
    evaluation = read(tmp_path, eval_gauntlet={'categories': 5})
    with pytest.raises(
            ConfigError,
            match='eval_gauntlet=.*eval.yaml: eval_gauntlet.: it is not a gaun',
    ):
        _ = evaluation.gauntlet


@pytest.mark.parametrize(
    'gauntlet',
    ['${nowhere}', {
        'categories': '${nowhere}'
    }, True, 5],
)
def test_gauntlets_that_are_none(tmp_path: Path, gauntlet: Any):
    evaluation = read(tmp_path, eval_gauntlet=gauntlet)
    with pytest.raises(ConfigError, match='eval.yaml: (eval_gauntlet|categor)'):
        _ = evaluation.gauntlet


def test_no_tasks(tmp_path: Path):
    with pytest.raises(
            ConfigError,
            match="/eval.yaml: icl_tasks=None: Foundry's eval needs tasks. Fix: "
            'name an eval YAML with icl_tasks',
    ):
        read(tmp_path, icl_tasks=None)


@pytest.mark.parametrize(
    'content',
    [
        b'icl_tasks: [',
        b'- icl_tasks',
        b'\xff\xfe\x80',
    ],
)
def test_what_is_no_eval_yaml(tmp_path: Path, content: bytes):
    path = tmp_path / 'eval.yaml'
    path.write_bytes(content)
    with pytest.raises(
            ConfigError,
            match=
            f"(?s)evaluation='{path}': it can't be read .*Fix: name an eval",
    ):
        EvaluationYaml.read(path, {})


@pytest.mark.parametrize(
    'loaders,problem',
    [
        ({
            'label': 'prose'
        },
         "eval_loaders=.*'prose'.*: it is not a list. Fix: write a list of l"),
        ('prose', "eval_loaders='prose': it is not a list"),
        ([{
            'label': 'prose'
        }, {
            'name': 'text'
        }],
         r'eval_loaders\[1\].label=None: a study needs .* Fix: give the load'),
        ([{
            'label': None
        }], r'eval_loaders\[0\].label=None'),
        (['prose'], r'eval_loaders\[0\].label=None'),
    ],
)
def test_loaders_without_labels(tmp_path: Path, loaders: Any, problem: str):
    with pytest.raises(ConfigError, match=f'eval.yaml: {problem}'):
        read(tmp_path, eval_loaders=loaders)


def test_a_label_that_can_not_be_resolved(tmp_path: Path):
    match = r"eval_loaders\[0\].label=None: it can't be resolved .*'absent' not fo"
    with pytest.raises(ConfigError, match=match):
        read(tmp_path, eval_loaders=[{'label': '${absent}'}])


def test_tasks_that_can_not_be_resolved(tmp_path: Path):
    match = "eval.yaml: icl_tasks=None: it can't be resolved .*'variables.absent'"
    with pytest.raises(ConfigError, match=match):
        read(tmp_path, icl_tasks='${variables.absent}')


def test_a_loader_without_a_label_is_refused(tmp_path: Path):
    match = 'eval.yaml: eval_loader=.*a study needs the label of each held-out'
    with pytest.raises(ConfigError, match=match):
        read(tmp_path, eval_loader={'name': 'text'})
