"""Files of token ids: a JSON object ``{"prompt": [token ids], ...}`` a line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.inference.errors import HarnessError

__all__ = ['TokenFile', 'TokenLine']


class TokenLine(NamedTuple):
    """A line.

    Attributes:
        number: From 1.
        ids: What it has under ``prompt``.
        content: All of it.
    """
    number: int
    ids: np.ndarray
    content: dict[str, Any]


class TokenFile:
    """A file of token ids.

    Args:
        key: Of the study, for errors.
        path: The file.
        script: What writes such files, for errors.
    """

    def __init__(self, key: str, path: Path, script: str):
        self.key, self.path, self.script = key, path, script

    def lines(self, vocab_size: int) -> Iterator[TokenLine]:
        """Its lines.

        Raises:
            HarnessError: It can't be read, or a line has something else than
                ids of the vocabulary.
        """
        try:
            lines = self.path.read_text().splitlines()
        except (OSError, ValueError) as error:
            raise self.error(f"it can't be read: {error!r}.") from error
        for number, line in enumerate(lines, 1):
            try:
                content = json.loads(line)
                ids = np.array(content['prompt'])
            except (ValueError, KeyError, TypeError) as error:
                problem = f'line {number} is no prompt: {error!r}.'
                raise self.error(problem) from error
            if ids.ndim != 1 or ids.dtype.kind != 'i' or ids.min() < 0:
                problem = f'line {number} has something else than token ids.'
                raise self.error(problem)
            if ids.max() >= vocab_size:
                raise self.error(
                    f'line {number} has token {ids.max()}; the model has '
                    f'{vocab_size}.',
                    'write it with the model\'s own tokenizer.',
                )
            yield TokenLine(number, ids, content)

    def error(self, problem: str, fix: str = '') -> HarnessError:
        """What is wrong with it; by default it is to be written again."""
        fix = fix or f'write it with benchmarks/inference/{self.script}.'
        return HarnessError(self.key, str(self.path), problem, fix)
