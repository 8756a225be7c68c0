"""A study YAML, read section by section: what is asked for is checked."""

import math
import re
from pathlib import Path
from typing import Any

import yaml

from benchmarks.inference.errors import HarnessError

__all__ = ['REQUIRED', 'Changed', 'Section', 'check_name', 'load_yaml']

# What names sizes, and so tables and folders.
_NAME = re.compile(r'\w[\w.-]*')
# Instead of a default: the key must be there.
REQUIRED = object()


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, where YAML keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f'{key!r} stands there twice',
                    node.start_mark,
                )
        return super().construct_mapping(node, deep)


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML holds.

    Raises:
        HarnessError: It can't be read, has a key twice, or no mapping.
    """
    fix = 'name a study YAML, such as benchmarks/inference/studies/smoke.yaml.'
    try:
        content = yaml.load(path.read_text(encoding='utf-8'), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problem = ' '.join(f"it can't be read ({error}).".split())
        raise HarnessError('study', str(path), problem, fix) from error
    if not isinstance(content, dict):
        problem = 'it holds no mapping of keys to values.'
        raise HarnessError('study', str(path), problem, fix)
    return content


class Section:
    """A mapping of a YAML; knows which keys were asked for."""

    def __init__(self, prefix: str, content: Any):
        if not isinstance(content, dict):
            raise HarnessError(
                prefix,
                content,
                'it is not a mapping of keys to values.',
                'write its keys indented below it.',
            )
        self.prefix = prefix
        self.content = content
        self.known: set[str] = set()

    def key(self, key: str) -> str:
        return f'{self.prefix}.{key}' if self.prefix else key

    def inside(self, key: str) -> 'Section':
        """The mapping under a key; empty where there is none."""
        return Section(self.key(key), self.take(key, dict, {}))

    def take(self, key: str, kind: type, default: Any = REQUIRED) -> Any:
        """A value of a type; a bool is a number only to Python."""
        self.known.add(key)
        value = self.content.get(key)
        if value is None and default is not REQUIRED:
            return default
        is_bool = isinstance(value, bool)
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or is_bool != (kind is bool) or value in ('', [], {}):
            raise HarnessError(
                self.key(key),
                value,
                'it is missing, empty or of another type.',
                f'set it to a {kind.__name__}.',
            )
        return value

    def number(
        self,
        key: str,
        kind: type,
        minimum: float,
        default: Any = REQUIRED,
    ) -> Any:
        """A finite number; a float is above its minimum, an int may be it."""
        value = self.take(key, kind, default)
        if value is default:
            return value
        above = value > minimum if kind is float else value >= minimum
        if not above or not math.isfinite(value):
            words = 'above' if kind is float else 'of at least'
            raise HarnessError(
                self.key(key),
                value,
                'it is out of range.',
                f'set it to a number {words} {minimum}.',
            )
        return kind(value)

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        value = self.take(key, str)
        if value not in choices:
            raise HarnessError(
                self.key(key),
                value,
                'there is no such choice.',
                f"set it to {' or '.join(choices)}.",
            )
        return value

    def name(self, key: str) -> str:
        value = self.take(key, str)
        check_name(self.key(key), value)
        return value

    def distinct(self, key: str, kind: type) -> tuple[Any, ...]:
        """A list of whole numbers from 1 on, or of names; each once."""
        values = self.take(key, list)
        for value in values:
            if kind is str:
                check_name(self.key(key), value)
            elif not isinstance(value, int) or isinstance(value,
                                                          bool) or value < 1:
                raise HarnessError(
                    self.key(key),
                    value,
                    'it is not a whole number from 1 on.',
                    'write a list such as [1, 2].',
                )
            if values.count(value) > 1:
                raise HarnessError(
                    self.key(key),
                    value,
                    'it stands there twice.',
                    'write it once.',
                )
        return tuple(values)

    def refuse_others(self) -> None:
        for key, value in self.content.items():
            if key not in self.known:
                raise HarnessError(
                    self.key(str(key)),
                    value,
                    'there is no such setting.',
                    f"remove it; there are {', '.join(sorted(self.known))}.",
                )


class Changed(Section):
    """A mapping of the study with what a size sets in it."""

    def __init__(self, base: Section, changes: Section):
        super().__init__(base.prefix, {**base.content, **changes.content})
        self.changes = changes

    def key(self, key: str) -> str:
        if key in self.changes.content:
            return self.changes.key(key)
        return super().key(key)


def check_name(key: str, name: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise HarnessError(
            key,
            name,
            'it cannot name anything.',
            'use letters, digits, _, - and ., and put a number in quotes.',
        )
