"""Mistakes in a YAML stop a run before anything is loaded."""

from pathlib import Path
from typing import Any, Optional

import pytest
import tiny
import torch
from omegaconf import OmegaConf
from tiny_tasks import RECORDS, write_records

from foundry_upcycle.errors import (
    CheckpointError,
    ConfigError,
    TaskDataError,
    UpcyclingWarning,
)
from foundry_upcycle.gauntlet.preflight import check_eval, check_tasks

GAUNTLET = {
    'eval_gauntlet': {
        'categories': [
            {
                'name':
                'animals',
                'benchmarks': [
                    {
                        'name': 'dogs',
                        'num_fewshot': 2,
                        'random_baseline': 0,
                    },
                ],
            },
        ],
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With data, tasks, a gauntlet, checkpoints and ``eval.yaml``."""
    data = tmp_path / 'dogs.jsonl'
    write_records(data, [RECORDS['language_modeling']] * 4)
    tasks = [
        {
            'label': 'dogs',
            'dataset_uri': str(data),
            'num_fewshot': [2],
            'icl_task_type': 'language_modeling',
        },
    ]
    save(tmp_path / 'tasks.yaml', {'icl_tasks': tasks})
    save(tmp_path / 'gauntlet.yaml', GAUNTLET)
    for name, model in (
        ('dense', tiny.build_dense()),
        ('moe', tiny.build_moe()),
    ):
        tiny.save_dense(model, tmp_path / f'{name}.pt')
    models = [{
        'model_name': name,
        'load_path': f'${{variables.folder}}/{name}.pt',
        'tokenizer': {
            'name': '${variables.absent_here}',
        },
        'model': {
            'name': kind,
            **config,
        },
    } for name, kind, config in (
        ('dense', 'mpt_causal_lm', tiny.dense_config()),
        ('moe', 'upcycled_mpt', tiny.moe_config()),
    )]
    save(
        tmp_path / 'eval.yaml',
        {
            'variables': {
                'folder': str(tmp_path),
                'absent_here': 'tokenizer',
            },
            'icl_tasks': '${variables.folder}/tasks.yaml',
            'eval_gauntlet': '${variables.folder}/gauntlet.yaml',
            'models': models,
        },
    )
    return tmp_path


def save(path: Path, content: Any) -> None:
    OmegaConf.save(OmegaConf.create(content), path)


def check(folder: Path, *overrides: str) -> None:
    check_eval(str(folder / 'eval.yaml'), overrides)


def check_with(folder: Path, index: int, key: str, value: Any) -> None:
    """Checks with another value in one of the models."""
    config = OmegaConf.load(folder / 'eval.yaml')
    OmegaConf.update(config.models[index], key, value)
    save(folder / 'eval.yaml', config)
    check(folder)


def test_a_good_yaml_passes(folder: Path):
    check(folder)
    check_tasks(str(folder / 'eval.yaml'), [])


def test_a_yaml_without_tasks_passes(folder: Path):
    check(folder, 'icl_tasks=null', 'eval_gauntlet=null')


@pytest.mark.parametrize(
    'text, problem',
    [
        (None, 'there is no such file'),
        ('5', 'it holds neither a mapping'),
        ('- a', 'it is not a mapping of settings'),
        ('model: 5', 'model=5: it is not a mapping of settings'),
        ('models: 5', "models=5: it is not a list of models"),
        ('icl_tasks: []\ncode_paths: 5', 'code_paths=5: it is not a list'),
    ],
)
def test_what_is_no_run(tmp_path: Path, text: Optional[str], problem: str):
    path = tmp_path / 'eval.yaml'
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=problem):
        check_eval(str(path), [])


def test_what_leads_nowhere(folder: Path):
    path = folder / 'eval.yaml'
    config = OmegaConf.load(path)
    for value in ('${nowhere}', [{'label': '${nowhere}'}]):
        save(path, {**config, 'icl_tasks': value})
        with pytest.raises(ConfigError,
                           match="icl_tasks.*it can't be resolved"):
            check_tasks(str(path), [])


def test_tasks_may_stand_in_the_yaml(folder: Path):
    config = OmegaConf.load(folder / 'eval.yaml')
    config.icl_tasks = OmegaConf.load(folder / 'tasks.yaml').icl_tasks
    config.icl_tasks[0].num_fewshot = [9]
    save(folder / 'eval.yaml', config)
    match = r"^icl_tasks\[0\].num_fewshot=\[9\]: dogs has 4 records"
    with pytest.raises(ConfigError, match=match):
        check(folder)


def test_a_line_that_is_no_json(folder: Path):
    with (folder / 'dogs.jsonl').open('a') as file:
        file.write('{"context')
    with pytest.raises(TaskDataError, match='dogs.jsonl, line 5: it is not'):
        check(folder)


def test_files_in_stores_are_left_to_the_run(folder: Path):
    tasks = OmegaConf.load(folder / 'tasks.yaml')
    tasks.icl_tasks[0].dataset_uri = 's3://bucket/dogs.jsonl'
    save(folder / 'tasks.yaml', tasks)
    match = r'dense.pt is not compared with models\[0\].model beforehand'
    with pytest.warns(UpcyclingWarning, match=match):
        check_with(folder, 0, 'load_path', 's3://bucket/dense.pt')


def test_a_gauntlet_of_more_than_is_run(folder: Path):
    gauntlet = OmegaConf.create(GAUNTLET)
    gauntlet.eval_gauntlet.categories[0].benchmarks.append({
        'name': 'cats',
        'num_fewshot': 0,
        'random_baseline': 0,
    }, )
    save(folder / 'gauntlet.yaml', gauntlet)
    match = "eval_gauntlet='gauntlet': it scores cats/0-shot, which icl_tasks"
    with pytest.raises(ConfigError, match=match):
        check(folder)


def test_a_gauntlet_without_tasks(folder: Path):
    match = "eval_gauntlet='gauntlet': it scores dogs/2-shot, which icl_tasks"
    with pytest.raises(ConfigError, match=match):
        check(folder, 'icl_tasks=null')


def test_a_gauntlet_in_the_yaml(folder: Path):
    config = OmegaConf.load(folder / 'eval.yaml')
    config.eval_gauntlet = OmegaConf.create(GAUNTLET).eval_gauntlet
    save(folder / 'eval.yaml', config)
    check(folder)
    config.eval_gauntlet.categories[0].benchmarks[0].num_fewshot = 0
    save(folder / 'eval.yaml', config)
    with pytest.raises(ConfigError, match='it scores dogs/0-shot, which icl'):
        check(folder)


def test_a_checkpoint_of_another_model(folder: Path):
    match = r'^models\[1\].model.n_layers=5: .*moe.pt was trained with 3'
    with pytest.raises(ConfigError, match=match):
        check_with(folder, 1, 'model.n_layers', 5)


def test_heads_that_no_shape_shows(folder: Path):
    match = r'^models\[0\].model.n_heads=2: .*dense.pt was trained with 4'
    with pytest.raises(ConfigError, match=match):
        check_with(folder, 0, 'model.n_heads', 2)


def test_another_way_of_combining_experts(folder: Path):
    key = 'model.ffn_config.moe_normalize_expert_weights'
    with pytest.raises(ConfigError, match=rf'models\[1\].{key}=None: '):
        check_with(folder, 1, key, None)


def test_another_number_of_experts_is_warned_of(folder: Path):
    key = 'model.ffn_config.moe_top_k'
    match = rf'models\[1\].{key}=1: .*moe.pt was trained with 2'
    with pytest.warns(UpcyclingWarning, match=match):
        check_with(folder, 1, key, 1)


def test_what_is_left_out_is_said(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
):
    gauntlet = OmegaConf.create({
        **GAUNTLET,
        'left_out': ['cats/0-shot'],
        'left_out_categories': ['felines'],
    })
    save(folder / 'gauntlet.yaml', gauntlet)
    for _ in range(2):  # Once, also where the callback says so again.
        check_tasks(str(folder / 'eval.yaml'), [])
    assert capsys.readouterr().out == (
        'eval_gauntlet gauntlet: left out, as their files were missing, '
        'damaged or not as released: '
        'cats/0-shot. No task is left of felines. default_average is over the other 1 of 2 tasks.\n'
    )


def test_code_paths_may_bring_types_of_tasks(folder: Path):
    (folder / 'essays.py').write_text(
        'from llmfoundry import registry\n'
        "registry.icl_datasets.register('test_essay', func=object)\n",
    )
    tasks = OmegaConf.load(folder / 'tasks.yaml')
    tasks.icl_tasks[0].icl_task_type = 'test_essay'
    save(folder / 'tasks.yaml', tasks)
    with pytest.raises(ConfigError, match="icl_task_type='test_essay': there"):
        check(folder)
    check(folder, f'code_paths=[{folder}/essays.py]')


def test_a_dense_checkpoint_for_a_mixture(folder: Path):
    match = r"model.ffn_config.ffn_type='upcycled_dmoe': .* with 'mptglu'"
    with pytest.raises(ConfigError, match=match):
        check_with(folder, 1, 'load_path', f'{folder}/dense.pt')


def test_no_such_checkpoint(folder: Path):
    with pytest.raises(CheckpointError, match='absent.pt'):
        check_with(folder, 0, 'load_path', f'{folder}/absent.pt')


def test_one_model_as_train_yamls_have_it(folder: Path):
    config = OmegaConf.load(folder / 'eval.yaml')
    only = config.pop('models')[0]
    config.update({'model': only.model, 'load_path': only.load_path})
    save(folder / 'eval.yaml', config)
    check(folder)
    with pytest.raises(ConfigError, match='^model.d_model=32: '):
        check(folder, 'model.d_model=32')


def test_a_checkpoint_without_settings_is_warned_of(folder: Path):
    path = folder / 'bare.pt'
    torch.save({'state': {'model': tiny.build_dense().state_dict()}}, path)
    with pytest.warns(UserWarning, match='bare.pt carries no model config'):
        check_with(folder, 0, 'load_path', str(path))
