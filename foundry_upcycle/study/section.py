"""A mapping of a study YAML, of which each key is asked for, and its values.

What can't be used raises ``ConfigError``, of the key and the value.
"""

import math
import os
import re
from pathlib import Path
from typing import Any, Optional, Sequence

from foundry_upcycle.config import is_number
from foundry_upcycle.errors import ConfigError

__all__ = [
    'Section',
    'check_name',
    'distinct',
    'has_instead',
    'is_positive',
    'named',
    'require_once',
    'yaml_beside',
]

# What names runs, and so files and folders.
_NAME = re.compile(r'\w[\w.-]*')
_REQUIRED = object()


class Section:
    """A mapping of a YAML; knows which keys were asked for.

    Args:
        prefix: Its key; empty of the whole YAML.
        content: What stands there.

    Raises:
        ConfigError: It is not a mapping.
    """

    def __init__(self, prefix: str, content: Any):
        if not isinstance(content, dict):
            raise ConfigError(
                prefix,
                content,
                'it is not a mapping of keys to values.',
                'write its keys indented below it.',
            )
        self.prefix = prefix
        self.content = content
        self.known: set[str] = set()

    def inside(self, key: str, content: Any) -> 'Section':
        """What stands at a key, as a section."""
        return Section(self.key(key), content)

    def key(self, key: str) -> str:
        """A key's full name."""
        return f'{self.prefix}.{key}' if self.prefix else key

    def has(self, key: str) -> bool:
        """Whether a key has a value."""
        self.known.add(key)
        return self.content.get(key) is not None

    def take(self, key: str, kind: Any, default: Any = _REQUIRED) -> Any:
        """The value of a key.

        Args:
            key: Its name.
            kind: A type, or several.
            default: Stands for a value that is not there.

        Raises:
            ConfigError: It is missing, empty, of another type, or interpolated.
        """
        self.known.add(key)
        value = self.content.get(key)
        if value is None and default is not _REQUIRED:
            return default
        kinds = kind if isinstance(kind, tuple) else (kind, )
        # True is an int to Python.
        fits = isinstance(value, kinds) and not isinstance(value, bool)
        is_empty = not value and value != 0 and value != default
        if not fits or is_empty:
            raise ConfigError(
                self.key(key),
                value,
                'it is missing, empty or of another type.',
                f"set it to a {' or '.join(k.__name__ for k in kinds)}.",
            )
        if isinstance(value, str) and '${' in value:
            raise ConfigError(
                self.key(key),
                value,
                'a study YAML has no interpolations but in overrides.',
                'write the value out.',
            )
        return value

    def refuse_others(self) -> None:
        """Raises ``ConfigError`` of a key that nobody asked for."""
        for key, value in self.content.items():
            if key not in self.known:
                raise ConfigError(
                    self.key(str(key)),
                    value,
                    'there is no such setting.',
                    f"remove it; there are {', '.join(sorted(self.known))}.",
                )


def has_instead(
    section: Section,
    key: str,
    others: Sequence[str],
) -> bool:
    """Whether a key is there, in place of others."""
    there = [other for other in others if section.has(other)]
    if not section.has(key):
        return False
    if there:
        raise ConfigError(
            section.key(key),
            section.content[key],
            f"it stands in place of {' and '.join(others)}.",
            f"remove it, or {' and '.join(there)}.",
        )
    return True


def named(section: Section, key: str) -> dict[str, Any]:
    """A mapping whose keys name runs."""
    values = section.take(key, dict)
    for name in values:
        check_name(section.key(key), name)
    return values


def distinct(
    section: Section,
    key: str,
    kinds: tuple[type, ...],
    minimum: Optional[float],
    maximum: float,
    fix: str,
) -> tuple[Any, ...]:
    """A list of numbers, each there once.

    Args:
        section: Has the list.
        key: Of it.
        kinds: Of the numbers.
        minimum: The smallest that will do; None: all above 0.
        maximum: The largest.
        fix: Ends the error.
    """
    values = section.take(key, list)
    for value in values:
        fits = isinstance(value, kinds) and not isinstance(value, bool)
        if minimum is None:
            fits = fits and is_positive(value)
        else:
            fits = fits and value >= minimum
        if not fits or value > maximum:
            raise ConfigError(
                section.key(key),
                value,
                'it is not a number, too small, or above '
                f'{maximum:,}.'
                if fits else 'it is not a number, or too small.',
                fix,
            )
    require_once(section.key(key), values)
    return tuple(values)


def require_once(key: str, values: Sequence[Any]) -> None:
    """Refuses what stands in a list twice."""
    for value in values:
        if values.count(value) > 1:
            raise ConfigError(
                key,
                value,
                'it stands there twice, and would name two runs alike.',
                'write it once.',
            )


def is_positive(value: Any) -> bool:
    """Whether it is a finite number above 0."""
    return is_number(value) and 0 < value < math.inf


def yaml_beside(folder: Path, section: Section, key: str) -> Path:
    """A YAML that is named relative to a folder."""
    path = folder / section.take(key, str)
    if not os.path.isfile(path):  # Of a name that can't be, too.
        raise ConfigError(
            section.key(key),
            str(path),
            'there is no such file.',
            'name a YAML relative to the folder of the study YAML.',
        )
    return path


def check_name(key: str, name: Any) -> None:
    """Refuses what can't name runs, and so files and folders."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            key,
            name,
            'it cannot name runs.',
            'use letters, digits, _, - and ., and put a number in quotes.',
        )
