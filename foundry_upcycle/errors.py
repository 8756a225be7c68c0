"""What is raised for bad input: each error names what, its value, the fix."""

import reprlib
from typing import Any, Optional

__all__ = [
    'CheckpointError',
    'ConfigError',
    'TaskDataError',
    'UpcyclingWarning',
    'shown',
]

# Characters of a message's parts. A value may be a whole file.
_MOST_OF_VALUE = 500
_MOST_OF_TEXT = 2000


class _Repr(reprlib.Repr):
    """``repr`` that looks at no more of a value than it shows."""

    def __init__(self) -> None:
        super().__init__()
        # Room for a setting of each layer, and no more than 40^4 values.
        self.maxlevel = 4
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 40
        self.maxstring = self.maxother = self.maxlong = _MOST_OF_VALUE

    def repr_int(self, x: int, level: int) -> str:
        # Python writes out no int of more than 4300 digits.
        if x.bit_length() > 3 * _MOST_OF_VALUE:
            return f'a number of {x.bit_length()} bits'
        return repr(x)


def shown(value: Any) -> str:
    """``repr`` of a value of any size, for a message."""
    return _shortened(_Repr().repr(value), _MOST_OF_VALUE)


def _shortened(text: Any, most: int = _MOST_OF_TEXT) -> str:
    """A text without its middle, if it is long, that can be printed."""
    text = str(text)
    if len(text) > most:
        text = f'{text[:most // 2]} ... {text[-most // 2:]}'
    # Names in damaged files hold halves of characters.
    return text.encode(errors='backslashreplace').decode()


class UpcyclingWarning(UserWarning):
    """What may be meant, and may be a mistake."""

    def __init__(self, message: str):
        super().__init__(_shortened(message))


def _message(what: str, problem: str, fix: str) -> str:
    what, problem, fix = map(_shortened, (what, problem, fix))
    return f'{what}: {problem} Fix: {fix}'


class ConfigError(ValueError):
    """A setting that can't be used.

    Args:
        key: The setting's full name, as it is written in a YAML.
        value: The value found.
        problem: Why it can't be used.
        fix: What to write instead.
    """

    def __init__(self, key: str, value: Any, problem: str, fix: str):
        what = f'{_shortened(key)}={shown(value)}'
        super().__init__(_message(what, problem, fix))


class CheckpointError(ValueError):
    """A checkpoint that can't be used.

    Args:
        path: Where it was looked for.
        problem: What is wrong, with the tensor's name and the values found.
        fix: What to do.
    """

    def __init__(self, path: Any, problem: str, fix: str):
        super().__init__(_message(path, problem, fix))


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
        super().__init__(_message(place, problem, fix))
