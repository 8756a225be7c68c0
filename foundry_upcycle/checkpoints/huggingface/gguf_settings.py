"""The settings of a GGUF file's architecture, each of its kind."""

import math
from typing import Any, Optional

from foundry_upcycle.checkpoints.huggingface.gguf_container import GIVE_ORIGINAL
from foundry_upcycle.checkpoints.huggingface.gguf_file import GGUFFile
from foundry_upcycle.config import is_whole

__all__ = ['GGUFSettings']


class GGUFSettings:
    """The settings of an architecture, by the name after its prefix.

    Args:
        file: The file.
        prefix: ``llama.`` and the like.
    """

    def __init__(self, file: GGUFFile, prefix: str):
        self.file = file
        self.prefix = prefix

    def get(self, key: str, kind: str, default: Any = None) -> Any:
        return self.file.get(self.prefix + key, kind, default)

    def error(self, key: str, value: Any, problem: str) -> Exception:
        return self.file.error(
            f'{self.prefix}{key} is {value!r:.60}, {problem}.',
            GIVE_ORIGINAL,
        )

    def number(self, key: str, default: Any) -> Any:
        """A number; of one for each layer, that of all."""
        name = self.prefix + key
        values = self.file.fields.get(name)
        if isinstance(values, list):
            values = self.file.get(name, 'a list of numbers')
            if len({*values}) != 1:
                raise self.error(key, values, 'and MPT has one for all layers')
            return values[0]
        if default is None:
            self.file.require(name, 'a number')
        return self.file.get(name, 'a number', default)

    def size(self, key: str, default: Optional[int] = None) -> int:
        value = self.number(key, default)
        if not is_whole(value) or value < 1:
            raise self.error(key, value, 'which is no size')
        return value

    def positive(self, key: str, default: Optional[float] = None) -> float:
        value = self.number(key, default)
        if not 0 < value < math.inf:
            raise self.error(key, value, 'which is not a number above 0')
        return float(value)
