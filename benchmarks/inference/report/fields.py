"""Takes the fields of a JSON record, and says which is wrong and where."""

import json
import math
from pathlib import Path
from typing import Any, Mapping, NoReturn, Optional

from benchmarks.inference.errors import HarnessError

__all__ = ['Fields', 'read_record']

# A longer list is counted in errors, not shown.
_MOST_SHOWN = 8
_FIX = (
    'remove its folder, so that `run` measures the point again, or restore '
    'the file.'
)


class Fields:
    """A JSON object whose fields are checked as they are taken.

    Args:
        source: The file, for errors.
        prefix: Name of the object within it, with a dot at the end; empty for
            the whole file.
        content: The object.

    Raises:
        HarnessError: It is not an object. All methods raise it too, where a field
            is missing or of another type.
    """

    def __init__(self, source: str, prefix: str, content: Any):
        self.source, self.prefix = source, prefix
        if not isinstance(content, dict):
            name = prefix.rstrip('.') or 'content'
            raise HarnessError(
                f'{source}: {name}',
                content,
                'it is not a JSON object.',
                _FIX,
            )
        self.content: Mapping[str, Any] = content

    def refuse(self, key: str, problem: str, fix: str = _FIX) -> NoReturn:
        """Raises what is wrong with a field."""
        value = self.content.get(key)
        if isinstance(value, (list, dict)) and len(value) > _MOST_SHOWN:
            value = f'{len(value)} values'
        raise HarnessError(
            f'{self.source}: {self.prefix}{key}',
            value,
            problem,
            fix,
        )

    def is_null(self, key: str) -> bool:
        """Whether a field is null, or not there."""
        return self.content.get(key) is None

    def text(self, key: str) -> str:
        """A text that is not empty."""
        value = self.content.get(key)
        if not isinstance(value, str) or not value.strip():
            self.refuse(key, 'it is not a text, or missing.')
        return value

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self.content.get(key)
        if not isinstance(value, bool):
            self.refuse(key, 'it is neither true nor false, or missing.')
        return value

    def number(self, key: str, least: float = -math.inf) -> float:
        """A finite number.

        Args:
            key: Of the field.
            least: It must be at least that.
        """
        value: Any = self.content.get(key)
        if not _is_number(value):
            self.refuse(key, 'it is not a finite number, or missing.')
        if value < least:
            self.refuse(key, f'it is less than {least:g}.')
        return float(value)

    def optional_number(self, key: str, least: float = 0) -> Optional[float]:
        """As ``number``; None where it was not measured."""
        return None if self.is_null(key) else self.number(key, least)

    def count(self, key: str, least: int = 0) -> int:
        """A whole number."""
        value = self.number(key, least)
        if value != int(value):
            self.refuse(key, 'it is not a whole number.')
        return int(value)

    def optional_count(self, key: str) -> Optional[int]:
        """As ``count``; None where it was not measured."""
        return None if self.is_null(key) else self.count(key)

    def array(self, key: str) -> list[Any]:
        """A list."""
        value = self.content.get(key)
        if not isinstance(value, list):
            self.refuse(key, 'it is not a list, or missing.')
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of finite numbers."""
        values = self.array(key)
        for index, value in enumerate(values):
            if not _is_number(value):
                self.refuse(
                    key,
                    f'number {index} of it is {value!r}, no finite number.',
                )
        return tuple(float(value) for value in values)

    def inner(self, key: str) -> 'Fields':
        """An object within this one."""
        return Fields(
            self.source,
            f'{self.prefix}{key}.',
            self.content.get(key),
        )


def _is_number(value: Any) -> bool:
    # True is an int to Python.
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool)
        and math.isfinite(value)
    )


def read_record(path: Path, kind: str, version: str, fix: str) -> Fields:
    """The fields of a file that ``run`` wrote.

    Args:
        path: The file.
        kind: What it is, for errors.
        version: Of the format that is read here.
        fix: What to do about a file that is damaged.

    Raises:
        HarnessError: It can't be read, or has another version's format.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise HarnessError(
            kind,
            str(path),
            f"it can't be read as JSON ({error}).",
            fix,
        ) from error
    fields = Fields(str(path), '', content)
    if fields.text('format') != version:
        fields.refuse(
            'format',
            f'this version reads {version}.',
            'report with the version that measured, or measure again.',
        )
    return fields
