"""A GGUF file with the other parts of its model, and its metadata by kind."""

import os
import re
from collections import Counter
from typing import Any, Callable, Mapping, NamedTuple

from foundry_upcycle.checkpoints.huggingface.gguf_container import (
    COPY_AGAIN,
    GIVE_ORIGINAL,
    StoredTensor,
    read_container,
)
from foundry_upcycle.config import is_number, is_whole
from foundry_upcycle.errors import CheckpointError

__all__ = ['GGUFFile', 'gguf_parts', 'read_gguf']

_PART_NAME = re.compile(r'(.*)-(\d{5})-of-(\d{5})\.gguf')


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _list_of(is_kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_kind, value))


_IS_KIND: Mapping[str, Callable[[Any], bool]] = {
    'a number': is_number,
    'a whole number': is_whole,
    'true or false': lambda value: isinstance(value, bool),
    'a text': _is_text,
    'a list of texts': _list_of(_is_text),
    'a list of numbers': _list_of(is_number),
}


class GGUFFile(NamedTuple):
    """Metadata and tensors of a GGUF file, with those of its other parts.

    Attributes:
        path: The file, or the first of its parts.
        fields: All metadata, of the first part.
        tensors: Where each tensor lies, by name.
    """
    path: str
    fields: dict[str, Any]
    tensors: dict[str, StoredTensor]

    def get(self, key: str, kind: str, default: Any = None) -> Any:
        """A value of the metadata, which must be of a kind if it is there."""
        value = self.fields.get(key, default)
        if key in self.fields and not _IS_KIND[kind](value):
            raise self.error(
                f'{key} is {value!r:.60}, which is not {kind}.',
                COPY_AGAIN,
            )
        return value

    def require(self, key: str, kind: str, fix: str = GIVE_ORIGINAL) -> Any:
        if key not in self.fields:
            raise self.error(f'it has no {key}.', fix)
        return self.get(key, kind)

    def error(self, problem: str, fix: str) -> CheckpointError:
        return CheckpointError(self.path, problem, fix)


def gguf_parts(path: str) -> list[str]:
    """Paths of the files that a model's GGUF file is split into, in order.

    Told by its name; a file that is not split is its only part.

    Raises:
        CheckpointError: It is not the first part.
    """
    name = _PART_NAME.fullmatch(path)
    number, n_parts = (int(name[2]), int(name[3])) if name else (0, 0)
    if name is None or not 1 <= number <= n_parts:
        return [path]
    parts = [f'{name[1]}-{i + 1:05}-of-{name[3]}.gguf' for i in range(n_parts)]
    if number != 1:
        raise CheckpointError(
            path,
            f'it is part {number} of {n_parts} of a model.',
            f'give the first, {os.path.basename(parts[0])}.',
        )
    return parts


def read_gguf(path: str) -> GGUFFile:
    """Reads metadata and places of tensors, of all parts.

    Args:
        path: A GGUF file; of several parts, the first.

    Raises:
        CheckpointError: A part is missing, damaged, or of another model, or
            the package ``gguf`` is.
    """
    paths = gguf_parts(path)
    for i, part in enumerate(paths):
        if i and not os.path.isfile(part):
            raise CheckpointError(
                path,
                f'of its {len(paths)} parts, {os.path.basename(part)} is '
                'missing.',
                'put all parts beside it.',
            )
    files = [GGUFFile(part, *read_container(part)) for part in paths]
    for i, file in enumerate(files):
        n_parts = file.get('split.count', 'a whole number', 1) or 1
        number = file.get('split.no', 'a whole number', 0)
        if (n_parts, number) != (len(files), i):
            raise file.error(
                f'it says that it is part {number + 1} of {n_parts}, and its '
                f'name, part {i + 1} of {len(files)}.',
                'give each part its own name again, '
                'NAME-00001-of-00002.gguf and so on, or copy them again.',
            )
    _check_names(files)
    tensors = {name: t for file in files for name, t in file.tensors.items()}
    return files[0]._replace(tensors=tensors)


def _check_names(files: list[GGUFFile]) -> None:
    counts = Counter(name for file in files for name in file.tensors)
    twice = [name for name, count in counts.items() if count > 1]
    expected = files[0].get('split.tensors.count', 'a whole number')
    if twice or (len(files) > 1 and expected not in (None, len(counts))):
        raise files[0].error(
            f'its parts hold {twice[0]} twice.' if twice else
            f'its parts hold {len(counts)} tensors, and it says {expected}.',
            'copy all parts again.',
        )
