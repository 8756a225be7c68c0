"""In-context tasks as Foundry's ``icl_tasks`` lists them, and their files."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

from foundry_upcycle.config import is_whole
from foundry_upcycle.documents import DocumentError, read_yaml
from foundry_upcycle.errors import ConfigError
from foundry_upcycle.gauntlet.records import FIXED, RECORDS, check_records

__all__ = ['Task', 'check_data', 'parse_tasks', 'read_tasks', 'remove_links']

_REQUIRED = ('label', 'dataset_uri', 'num_fewshot', 'icl_task_type')
_KEYS = ('context_key', 'answer_key', 'choices_key')

# Of a file's name, which has 255 bytes with the few-shot count, a category
# and endings.
_LONGEST_LABEL = 120

# What Foundry calls the link to a task's file: label and few-shot count.
_LINK = re.compile(r'.+-\d+\.jsonl')


@dataclass(frozen=True)
class Task:
    """One entry of ``icl_tasks``.

    Args:
        key: Where it stands, such as ``tasks.yaml: icl_tasks[3]``.
        settings: The entry.
    """

    key: str
    settings: Mapping[str, Any]

    @property
    def label(self) -> str:
        return self.settings['label']

    @property
    def dataset_uri(self) -> str:
        return self.settings['dataset_uri']

    @property
    def num_fewshot(self) -> Sequence[int]:
        return self.settings['num_fewshot']

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """What metrics call it, such as ``copa/0-shot``, by few-shot count."""
        return tuple(f'{self.label}/{n}-shot' for n in self.num_fewshot)


def read_tasks(path: str | Path) -> tuple[Task, ...]:
    """Reads a YAML as Foundry's ``icl_tasks`` takes it.

    Raises:
        ConfigError: It can't be read, or is not a list of tasks.
    """
    try:
        content = read_yaml(path)
    except DocumentError as error:
        raise ConfigError(
            'icl_tasks',
            str(path),
            str(error),
            'make it by `foundry-upcycle gauntlet prepare`, or name another.',
        ) from error
    if not isinstance(content, Mapping) or 'icl_tasks' not in content:
        raise ConfigError(
            'icl_tasks',
            str(path),
            'it holds no list icl_tasks.',
            'write it as eval_gauntlet/paper_tasks.yaml is.',
        )
    return parse_tasks(content['icl_tasks'], f'{path}: icl_tasks')


def parse_tasks(tasks: Any, key: str = 'icl_tasks') -> tuple[Task, ...]:
    """Checks the settings of tasks, not yet their files.

    Args:
        tasks: List of tasks.
        key: Where it stands.

    Raises:
        ConfigError: A setting is missing or can't be meant.
    """
    if not isinstance(tasks, Sequence) or isinstance(tasks, str):
        raise ConfigError(
            key,
            tasks,
            'it is not a list of tasks.',
            'write it as eval_gauntlet/paper_tasks.yaml is.',
        )
    parsed = tuple(
        _parse(f'{key}[{index}]', settings)
        for index, settings in enumerate(tasks)
    )
    benchmarks = Counter(name for task in parsed for name in task.benchmarks)
    for name, count in benchmarks.items():
        if count > 1:
            raise ConfigError(
                key,
                name,
                f'{count} tasks are called so; the results of one would '
                'replace those of the other.',
                'give each a label of its own.',
            )
    return parsed


def _parse(key: str, settings: Any) -> Task:
    if not isinstance(settings, Mapping):
        raise ConfigError(
            key,
            settings,
            'it is not a task.',
            f"give it {', '.join(_REQUIRED)}.",
        )
    for name in _REQUIRED:
        if settings.get(name) is None:
            raise ConfigError(
                f'{key}.{name}',
                None,
                'the task lacks it.',
                f"give it {', '.join(_REQUIRED)}.",
            )
    for name in ('label', 'dataset_uri', 'icl_task_type', *_KEYS):
        if not isinstance(settings.get(name, ''), str):
            raise ConfigError(
                f'{key}.{name}',
                settings[name],
                'it is not a text.',
                'write a text, in quotes where it looks like something else.',
            )
    _check_label(f'{key}.label', settings['label'])
    counts = settings['num_fewshot']
    if (not isinstance(counts, Sequence) or isinstance(counts, str)
            or not counts or any(not is_whole(n) or n < 0 for n in counts)):
        raise ConfigError(
            f'{key}.num_fewshot',
            counts,
            'it is not a list of counts.',
            'write num_fewshot: [0].',
        )
    if not isinstance(settings.get('has_categories', False), bool):
        raise ConfigError(
            f'{key}.has_categories',
            settings['has_categories'],
            'it is neither true nor false.',
            'write true where records name their category.',
        )
    task_type = settings['icl_task_type']
    if task_type not in RECORDS and not _is_registered(task_type):
        raise ConfigError(
            f'{key}.icl_task_type',
            task_type,
            'there is no such type of task.',
            f"take one of {', '.join(RECORDS)}.",
        )
    for name, only in FIXED.get(task_type, {}).items():
        if settings.get(name, only) != only:
            raise ConfigError(
                f'{key}.{name}',
                settings[name],
                f'Foundry takes {only} of every record of type {task_type}, '
                'whatever this says.',
                f'rename the key to {only} in the file, and remove this.',
            )
    return Task(key, settings)


def _check_label(key: str, label: str) -> None:
    """Foundry names a file after it, and metrics, with slashes between."""
    n_bytes = len(label.encode('utf-8', 'surrogatepass'))
    if '/' in label or not label.isprintable() or n_bytes > _LONGEST_LABEL:
        raise ConfigError(
            key,
            label,
            'Foundry names a file after it, so that it has no slash, no '
            f'control characters and at most {_LONGEST_LABEL} bytes.',
            'shorten it, or write it of letters, digits, - and _.',
        )


def _is_registered(task_type: str) -> bool:
    """Whether some other plugin brings this type."""
    from llmfoundry import registry
    return task_type in registry.icl_datasets


def check_data(task: Task, path: str | Path) -> int:
    """Checks a file of a task, record by record.

    Types of task that other plugins bring are not checked.

    Args:
        task: The task.
        path: Its file.

    Returns:
        Number of records.

    Raises:
        TaskDataError: The file or a record can't be used.
        ConfigError: The task asks for more examples in the prompt than the
            file can give.
    """
    settings = task.settings
    if settings['icl_task_type'] not in RECORDS:
        return 0
    has_categories = bool(settings.get('has_categories', False))
    sizes = check_records(
        path,
        settings['icl_task_type'],
        {name: settings[name]
         for name in _KEYS
         if name in settings},
        has_categories,
    )
    category, n_records = min(sizes.items(), key=lambda size: size[1])
    # The example itself is not shown in its own prompt.
    if max(task.num_fewshot) > n_records - 1:
        where = f'category {category!r} of {path}' if has_categories else path
        raise ConfigError(
            f'{task.key}.num_fewshot',
            list(task.num_fewshot),
            f'{task.label} has {n_records} records in {where}, of which at '
            f'most {n_records - 1} can stand before another.',
            'lower it, or add records.',
        )
    return sum(sizes.values())


def remove_links() -> None:
    """Removes links that Foundry has left in the working folder.

    Of a task with categories it makes one file and one link for each. Where a
    link is there already, local rank 0 removes it and makes it anew while the
    other ranks, which wait for it to exist, may be reading it: they fail. So an
    evaluation must find none. Nor does it replace a link to a file that is no
    longer there, as after the data was moved: it fails. Call it on one rank of
    each node.
    """
    for link in Path().glob('*.jsonl*'):
        of_category = link.suffix == '.jsonl_tmp'
        of_moved_data = _LINK.fullmatch(link.name) and not link.exists()
        if link.is_symlink() and (of_category or of_moved_data):
            link.unlink(missing_ok=True)
