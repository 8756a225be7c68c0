"""Every mistake in a file of records is named by file, line and key."""

from pathlib import Path
from typing import Any

import pytest
from llmfoundry import registry
from llmfoundry.eval.datasets import (
    InContextLearningGenerationTaskWithAnswersDataset,
    InContextLearningLMTaskDataset,
    InContextLearningMultipleChoiceTaskDataset,
    InContextLearningSchemaTaskDataset,
)
from tiny_tasks import RECORDS as EXAMPLES
from tiny_tasks import write_records

from foundry_upcycle.errors import TaskDataError
from foundry_upcycle.gauntlet.records import RECORDS, check_records


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / 'task.jsonl'


def check(path: Path, task_type: str = 'multiple_choice', **keys: str) -> Any:
    return check_records(path, task_type, keys, has_categories=False)


@pytest.mark.parametrize('task_type', RECORDS)
def test_records_are_counted(path: Path, task_type: str):
    write_records(path, [EXAMPLES[task_type]] * 3)
    assert check(path, task_type) == {'': 3}


def test_records_are_counted_by_category(path: Path):
    record = EXAMPLES['language_modeling']
    write_records(path, [{**record, 'category': c} for c in 'aba'])
    sizes = check_records(path, 'language_modeling', {}, has_categories=True)
    assert sizes == {'a': 2, 'b': 1}


def test_blank_lines_are_no_records(path: Path):
    path.write_text('\n{"context": "a", "continuation": "b"}\n\n')
    assert check(path, 'language_modeling') == {'': 1}


def test_every_type_of_foundrys_has_a_schema():
    # Another test registers one more.
    known = set(registry.icl_datasets.get_all()) - {'test_essay'}
    assert known == set(RECORDS)


@pytest.mark.parametrize(
    'task_type,dataset',
    [
        ('language_modeling', InContextLearningLMTaskDataset),
        ('multiple_choice', InContextLearningMultipleChoiceTaskDataset),
        ('schema', InContextLearningSchemaTaskDataset),
        (
            'generation_task_with_answers',
            InContextLearningGenerationTaskWithAnswersDataset,
        ),
    ],
)
def test_required_keys_are_what_foundry_documents(
    task_type: str,
    dataset: type,
):
    documented = dataset.__doc__ or ''
    # Its schema task says context_options in words only.
    for key in set(RECORDS[task_type]) - {'context_options'}:
        assert f'- {key}:' in documented


def test_a_missing_file(path: Path):
    with pytest.raises(TaskDataError, match='jsonl: it can.t be read .No such'):
        check(path)


@pytest.mark.parametrize('content', ['', '\n\n'])
def test_an_empty_file(path: Path, content: str):
    path.write_text(content)
    with pytest.raises(TaskDataError, match='task.jsonl: it holds no records'):
        check(path)


@pytest.mark.parametrize(
    'line,problem',
    [
        (b'{"query": "a", "choi', 'it is not JSON'),
        (b'\xff\xfe{}', 'it is not JSON'),
        (b'[1, 2]', 'it is not a JSON object: .1, 2.'),
        (b'{"query": "a", "choices": ["b", "c"]}', "key 'gold' is missing"),
    ],
)
def test_a_line_that_is_no_record(path: Path, line: bytes, problem: str):
    write_records(path, [EXAMPLES['multiple_choice']])
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(TaskDataError, match=f'task.jsonl, line 2: {problem}'):
        check(path)


@pytest.mark.parametrize(
    'task_type,changes,problem',
    [
        ('multiple_choice', {
            'query': 3
        }, 'query=3: it is not a text'),
        ('multiple_choice', {
            'choices': ['a']
        }, 'choices=.* a list of two'),
        ('multiple_choice', {
            'gold': '0'
        }, "gold='0': it is not a number"),
        ('multiple_choice', {
            'gold': True
        }, 'gold=True: it is not a number'),
        ('multiple_choice', {
            'gold': -1
        }, 'gold=-1: it is not a number'),
        ('multiple_choice', {
            'gold': 2
        }, 'gold=2: there are 2 choices'),
        ('schema', {
            'gold': 2
        }, 'gold=2: there are 2 context_options'),
        ('schema', {
            'context_options': 'ab'
        }, 'context_options=.ab.: '),
        ('language_modeling', {
            'continuation': ' '
        }, "continuation=' ': "),
        ('generation_task_with_answers', {
            'answer': 4
        }, 'answer=4: '),
        ('generation_task_with_answers', {
            'aliases': 'a'
        }, "aliases='a': "),
    ],
)
def test_a_wrong_value(
    path: Path,
    task_type: str,
    changes: dict[str, Any],
    problem: str,
):
    good = EXAMPLES[task_type]
    write_records(path, [good, {**good, **changes}])
    with pytest.raises(TaskDataError, match=f'task.jsonl, line 2: {problem}'):
        check(path, task_type)


def test_a_task_may_name_its_keys(path: Path):
    write_records(path, [{'question': 'a', 'choices': ['b', 'c'], 'gold': 1}])
    assert check(path, context_key='question') == {'': 1}
    with pytest.raises(TaskDataError, match="key 'query' is missing"):
        check(path)


@pytest.mark.parametrize('has_categories', [False, True])
def test_more_choices_than_in_the_first_record(
    path: Path,
    has_categories: bool,
):
    records = [{
        'query': 'a',
        'choices': list('bcd')[:n],
        'gold': 0,
        'category': category,
    } for n, category in ((3, 'x'), (2, 'x'), (2, 'y'), (3, 'y'))]
    write_records(path, records[:3])
    check_records(path, 'multiple_choice', {}, has_categories)
    write_records(path, records)
    if not has_categories:
        check_records(path, 'multiple_choice', {}, False)
        return
    match = 'line 4: choices: there are 3, and 2 in the first record'
    with pytest.raises(TaskDataError, match=match):
        check_records(path, 'multiple_choice', {}, True)


@pytest.mark.parametrize('first_has_it', [False, True])
@pytest.mark.parametrize('key', ['aliases', 'chain_of_thought'])
def test_optional_keys_are_in_all_records_or_none(
    path: Path,
    key: str,
    first_has_it: bool,
):
    bare = {'context': 'a', 'answer': 'b'}
    full = {**bare, key: ['c'] if key == 'aliases' else 'c'}
    for records in ([bare, bare], [full, full]):
        write_records(path, records)
        check(path, 'generation_task_with_answers')
    write_records(path, [full, bare] if first_has_it else [bare, full])
    state = 'missing' if first_has_it else 'there'
    with pytest.raises(TaskDataError,
                       match=f"line 2: key '{key}' is {state}, unlike in"):
        check(path, 'generation_task_with_answers')
