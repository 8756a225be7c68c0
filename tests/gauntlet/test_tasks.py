"""Tasks that a YAML lists."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_tasks import RECORDS, write_records

from foundry_upcycle.errors import ConfigError, TaskDataError
from foundry_upcycle.gauntlet import tasks
from foundry_upcycle.gauntlet.tasks import (
    check_data,
    parse_tasks,
    read_tasks,
    remove_links,
)

TASK: dict[str, Any] = {
    'label': 'copa',
    'dataset_uri': 'copa.jsonl',
    'num_fewshot': [0, 3],
    'icl_task_type': 'multiple_choice',
}


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in TASK.items() if name != key}


def test_a_task_is_read(tmp_path: Path):
    path = tmp_path / 'tasks.yaml'
    path.write_text(yaml.safe_dump({'icl_tasks': [TASK]}))
    (task, ) = read_tasks(path)
    assert task.key == f'{path}: icl_tasks[0]'
    assert task.benchmarks == ('copa/0-shot', 'copa/3-shot')


@pytest.mark.parametrize('content', ['- a', 'tasks: []', '5', ''])
def test_a_file_without_tasks(tmp_path: Path, content: str):
    path = tmp_path / 'tasks.yaml'
    path.write_text(content)
    with pytest.raises(ConfigError, match='it holds no list icl_tasks'):
        read_tasks(path)


def test_a_folder_is_no_file_of_tasks(tmp_path: Path):
    with pytest.raises(ConfigError, match="can't be read .Is a directory"):
        read_tasks(tmp_path)


def test_no_such_file(tmp_path: Path):
    with pytest.raises(ConfigError, match='tasks.yaml.: there is no such file'):
        read_tasks(tmp_path / 'tasks.yaml')


@pytest.mark.parametrize(
    'given,problem',
    [
        ('copa', "icl_tasks='copa': it is not a list"),
        (['copa'], r"icl_tasks\[0\]='copa': it is not a task"),
        *(([without(key)], rf'icl_tasks\[0\].{key}=None') for key in TASK),
        ([{
            **TASK, 'num_fewshot': 3
        }], r'\[0\].num_fewshot=3: it is not a list'),
        ([{
            **TASK, 'num_fewshot': [-1]
        }], r'num_fewshot=\[-1\]'),
        ([{
            **TASK, 'num_fewshot': []
        }], r'num_fewshot=\[\]'),
        ([{
            **TASK, 'num_fewshot': [True]
        }], r'num_fewshot=\[True\]'),
        ([{
            **TASK, 'has_categories': 'no'
        }], r"\[0\].has_categories='no': it is neither"),
        # Foundry would look for a folder, or make a name that no disk takes.
        ([{
            **TASK, 'label': 'a/b'
        }], r"\[0\].label='a/b': Foundry names a file after it"),
        ([{
            **TASK, 'label': 'a\ud800'
        }], 'no control characters'),
        ([{
            **TASK, 'label': 61 * 'é'
        }], 'at most 120 bytes'),
        ([{
            **TASK, 'icl_task_type': 'essay'
        }], "icl_task_type='essay': there"),
        *(([{
            **TASK, key: ['m']
        }], rf"\[0\].{key}=\['m'\]: it is not a text") for key in (
            'label',
            'dataset_uri',
            'icl_task_type',
            'context_key',
            'answer_key',
            'choices_key',
        )),
        ([{
            **TASK,
            'icl_task_type': 'language_modeling',
            'context_key': 'prompt',
        }], r"\[0\].context_key='prompt': Foundry takes context of every"),
        ([{
            **TASK,
            'icl_task_type': 'generation_task_with_answers',
            'answer_key': 'solution',
        }], r"\[0\].answer_key='solution': Foundry takes answer of every"),
        ([TASK, TASK], "icl_tasks='copa/0-shot': 2 tasks are called so"),
    ],
)
def test_a_list_that_is_no_list_of_tasks(given: Any, problem: str):
    with pytest.raises(ConfigError, match=problem):
        parse_tasks(given)


def check(tmp_path: Path, n_records: int, **changes: Any) -> int:
    (task, ) = parse_tasks([{**TASK, **changes}])
    record = {**RECORDS['multiple_choice'], 'category': 'a'}
    other = {**record, 'category': 'b'}
    path = tmp_path / 'copa.jsonl'
    write_records(path, [record] * n_records + [other] * 9)
    return check_data(task, path)


def test_data_are_checked(tmp_path: Path):
    assert check(tmp_path, 4) == 13


def test_more_examples_than_the_file_has(tmp_path: Path):
    match = r'icl_tasks\[0\].num_fewshot=\[12\]: copa has 12 records .*most 11'
    with pytest.raises(ConfigError, match=match):
        check(tmp_path, 3, num_fewshot=[12])
    assert check(tmp_path, 3, num_fewshot=[11]) == 12


def test_each_category_must_have_enough(tmp_path: Path):
    # Foundry draws a prompt's examples from the category of its question.
    with pytest.raises(ConfigError, match="3 records in category 'a' of"):
        check(tmp_path, 3, num_fewshot=[3], has_categories=True)
    assert check(tmp_path, 4, num_fewshot=[3], has_categories=True) == 13


def test_a_task_of_another_plugin_is_left_to_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(tasks, '_is_registered', lambda name: name == 'essay')
    assert check(tmp_path, 1, icl_task_type='essay') == 0


def test_damaged_data(tmp_path: Path):
    (task, ) = parse_tasks([TASK])
    with pytest.raises(TaskDataError, match='line 1: it is not JSON'):
        path = tmp_path / 'copa.jsonl'
        path.write_text('{')
        check_data(task, path)


def test_foundrys_links_are_removed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / 'copa.jsonl'
    data.touch()
    kept = ['copa.jsonl', 'copa-0.jsonl', 'mine.jsonl', 'mine_tmp']
    for name in ('copa-0.jsonl', 'copa-0_of_a.jsonl_tmp'):
        Path(name).symlink_to(data)
    for name in ('copa-3.jsonl', 'mine.jsonl', 'mine_tmp'):
        Path(name).symlink_to(tmp_path / 'moved.jsonl')
    remove_links()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
