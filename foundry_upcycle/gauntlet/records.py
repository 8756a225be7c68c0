"""What the records of a task's file must hold."""

from collections import Counter
from pathlib import Path
from typing import Any, Callable, Mapping

from foundry_upcycle.documents import DocumentError, parse_json
from foundry_upcycle.errors import TaskDataError

__all__ = ['FIXED', 'RECORDS', 'check_records']

_Check = Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_answer(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_choices(value: Any) -> bool:
    # An empty one would have a perplexity of NaN. White space may be meant.
    return isinstance(value, list) and len(value) > 1 and all(
        isinstance(choice, str) and choice for choice in value
    )


def _is_answers(value: Any) -> bool:
    # Every output starts with an empty one, and would be right.
    return isinstance(value, list) and all(map(_is_answer, value))


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


_MEANING = {
    _is_text: 'a text',
    _is_answer: 'a text that is not blank',
    _is_choices: 'a list of two texts or more, none empty',
    _is_answers: 'a list of texts that are not blank',
    _is_index: 'a number from 0',
}

# Type of task -> key of its records -> what the value must be. Keys are those
# that Foundry's data sets read by default.
RECORDS: Mapping[str, Mapping[str, _Check]] = {
    'language_modeling': {
        'context': _is_text,
        'continuation': _is_answer,
    },
    'multiple_choice': {
        'query': _is_text,
        'choices': _is_choices,
        'gold': _is_index,
    },
    'schema': {
        'context_options': _is_choices,
        'continuation': _is_answer,
        'gold': _is_index,
    },
    'generation_task_with_answers': {
        'context': _is_text,
        'answer': _is_answer,
    },
}
_OPTIONAL: Mapping[str, Mapping[str, _Check]] = {
    'generation_task_with_answers': {
        'aliases': _is_answers,
        'chain_of_thought': _is_text,
    },
}
# Type of task -> setting that renames a key -> the key.
_RENAMED: Mapping[str, Mapping[str, str]] = {
    'language_modeling': {},
    'multiple_choice': {
        'context_key': 'query',
        'choices_key': 'choices',
    },
    'schema': {
        'choices_key': 'context_options',
    },
    'generation_task_with_answers': {},
}
# The same of settings that Foundry takes, and then looks for the key itself.
FIXED: Mapping[str, Mapping[str, str]] = {
    'language_modeling': {
        'context_key': 'context',
    },
    'generation_task_with_answers': {
        'context_key': 'context',
        'answer_key': 'answer',
    },
}


def check_records(
    path: str | Path,
    task_type: str,
    keys: Mapping[str, str],
    has_categories: bool,
) -> Counter[str]:
    """Checks a JSONL file, record by record.

    Args:
        path: The file.
        task_type: A key of ``RECORDS``.
        keys: ``context_key`` and the like, where the task sets them.
        has_categories: Whether each record must name its category.

    Returns:
        Category -> number of records; one category ``''`` where the task has
        none.

    Raises:
        TaskDataError: The file is missing or empty, or a line is not a record
            of this type.
    """
    renamed = {
        key: keys[setting]
        for setting, key in _RENAMED[task_type].items()
        if setting in keys
    }
    required = {
        renamed.get(key, key): check
        for key, check in RECORDS[task_type].items()
    }
    if has_categories:
        required['category'] = _is_answer
    optional = _OPTIONAL.get(task_type, {})
    options = next(
        (key for key, check in required.items() if check is _is_choices),
        None,
    )
    sizes: Counter[str] = Counter()
    n_options: dict[str, int] = {}  # Category -> those of its first record.
    first: dict[str, Any] = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        record = _parse(path, number, line)
        for key in required:
            if key not in record:
                raise TaskDataError(
                    path,
                    number,
                    f"key {key!r} is missing, there are {sorted(record)}.",
                    f'a record of type {task_type} needs '
                    f"{', '.join(required)}.",
                )
        for key, check in {**required, **optional}.items():
            if key in record and not check(record[key]):
                raise TaskDataError(
                    path,
                    number,
                    f'{key}={_short(record[key])}: it is not '
                    f'{_MEANING[check]}.',
                    'mend the record, or remove it.',
                )
        if options and record['gold'] >= len(record[options]):
            raise TaskDataError(
                path,
                number,
                f"gold={record['gold']}: there are {len(record[options])} "
                f'{options}, counted from 0.',
                'mend the record, or remove it.',
            )
        category = record['category'] if has_categories else ''
        if options:
            n = len(record[options])
            n_first = n_options.setdefault(category, n)
            # Fewer pass: Foundry then evaluates what there is.
            if n > n_first:
                raise TaskDataError(
                    path,
                    number,
                    f'{options}: there are {n}, and {n_first} in the first '
                    'record, from which Foundry takes the number.',
                    'give all records as many, or put this one first.',
                )
        first = first or record
        for key in optional:
            if (key in record) != (key in first):
                raise TaskDataError(
                    path,
                    number,
                    f'key {key!r} is '
                    f"{'there' if key in record else 'missing'}, unlike in "
                    'the first record; where it is missing Foundry would read '
                    'a None.',
                    'give it to all records, or to none.',
                )
        sizes[category] += 1
    if not sizes:
        raise TaskDataError(
            path,
            None,
            'it holds no records.',
            'get the file again, or leave the task out.',
        )
    return sizes


def _lines(path: str | Path) -> list[bytes]:
    try:
        return Path(path).read_bytes().split(b'\n')
    except OSError as error:
        raise TaskDataError(
            path,
            None,
            f'it can\'t be read ({error.strerror}).',
            'get it by `foundry-upcycle gauntlet prepare`, or leave the task '
            'out.',
        ) from error


def _parse(path: str | Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = parse_json(line)
    except DocumentError as error:
        raise TaskDataError(
            path,
            number,
            f'{error} The line: {_short(line)}.',
            'one JSON object a line; if the file was cut off, get it again.',
        ) from error
    if not isinstance(record, dict):
        raise TaskDataError(
            path,
            number,
            f'it is not a JSON object: {_short(record)}.',
            'one JSON object a line.',
        )
    return record


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'
