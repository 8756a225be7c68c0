"""What is raised for bad input: each error names what, its value, the fix."""

from typing import Any, Optional

__all__ = [
    'CheckpointError',
    'ConfigError',
    'TaskDataError',
    'UpcyclingWarning',
]


class UpcyclingWarning(UserWarning):
    """What may be meant, and may be a mistake."""


class ConfigError(ValueError):
    """A setting that can't be used.

    Args:
        key: The setting's full name, as it is written in a YAML.
        value: The value found.
        problem: Why it can't be used.
        fix: What to write instead.
    """

    def __init__(self, key: str, value: Any, problem: str, fix: str):
        super().__init__(f'{key}={value!r}: {problem} Fix: {fix}')


class CheckpointError(ValueError):
    """A checkpoint that can't be used.

    Args:
        path: Where it was looked for.
        problem: What is wrong, with the tensor's name and the values found.
        fix: What to do.
    """

    def __init__(self, path: Any, problem: str, fix: str):
        super().__init__(f'{path}: {problem} Fix: {fix}')


class TaskDataError(ValueError):
    """A file of an evaluation task that can't be used.

    Args:
        path: The file.
        line: Line of the record, from 1; None where it is the whole file.
        problem: What is wrong, with the key and the value found.
        fix: What to do.
    """

    def __init__(self, path: Any, line: Optional[int], problem: str, fix: str):
        place = path if line is None else f'{path}, line {line}'
        super().__init__(f'{place}: {problem} Fix: {fix}')
