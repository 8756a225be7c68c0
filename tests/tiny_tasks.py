"""Small files of in-context tasks, of each type, that the tests share."""

import json
from pathlib import Path
from typing import Any, Mapping, Sequence

__all__ = ['RECORDS', 'gauntlet_data', 'write_records']

RECORDS: Mapping[str, Mapping[str, Any]] = {
    'language_modeling': {
        'context': 'The dog is',
        'continuation': 'fuzzy',
    },
    'multiple_choice': {
        'query': 'The water is',
        'choices': ['hot', 'green'],
        'gold': 0,
    },
    'schema': {
        'context_options': ['The cup, as the cup', 'The cup, as the bag'],
        'continuation': 'was full',
        'gold': 1,
    },
    'generation_task_with_answers': {
        'context': 'Two and two?',
        'answer': '4',
        'aliases': ['four'],
        'chain_of_thought': 'Two and two are four. ',
    },
}


def write_records(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))
    return path


def gauntlet_data(folder: Path, tasks: Sequence[Any], n: int = 30) -> Path:
    """Writes a file of ``n`` records for each task, as its type needs them."""
    for task in tasks:
        record = RECORDS[task.settings['icl_task_type']]
        if task.settings.get('has_categories'):
            record = {**record, 'category': 'animals'}
        write_records(folder / task.dataset_uri, [record] * n)
    return folder
