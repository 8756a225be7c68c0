"""The bytes of a GGUF file: its metadata, and where its tensors lie.

The package ``gguf`` believes every count and length that it meets. Here the
size of the file bounds each of them first, so damage ends in an error.
"""

import os
import struct
from importlib import import_module
from typing import IO, Any, Mapping, NamedTuple, Optional

from foundry_upcycle.config import is_whole
from foundry_upcycle.errors import CheckpointError

__all__ = [
    'COPY_AGAIN',
    'GIVE_ORIGINAL',
    'StoredTensor',
    'gguf_package',
    'is_gguf',
    'read_container',
]

GIVE_ORIGINAL = "give the model's original Hugging Face folder."
COPY_AGAIN = 'copy or download it again.'

_MAGIC = b'GGUF'
_VERSIONS = (2, 3)
_ALIGNMENT = 32

# More things of a kind than any file of a language model has.
_MOST = 2**24
_MOST_DIMENSIONS = 4

# Numbers of kinds of values, and what `struct` calls them.
_CODES = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), 'BbHhIif?Qqd'))
_TEXT, _ARRAY = 8, 9


class StoredTensor(NamedTuple):
    """A tensor in a file.

    Attributes:
        file: Path of the file.
        shape: Its shape, rows first.
        kind: Its type, a ``gguf.GGMLQuantizationType``.
        offset: Where it starts, in bytes from the file's start.
        n_bytes: How long it is.
    """
    file: str
    shape: tuple[int, ...]
    kind: Any
    offset: int
    n_bytes: int


def is_gguf(path: str) -> bool:
    """Whether a file starts as a GGUF file does."""
    with open(path, 'rb') as stream:
        return stream.read(len(_MAGIC)) == _MAGIC


def gguf_package(path: str) -> Any:
    """The package ``gguf``, which knows how weights are quantised.

    Raises:
        CheckpointError: It is not installed; ``path`` is what needs it.
    """
    try:
        return import_module('gguf')
    except ImportError as error:
        raise CheckpointError(
            path,
            'GGUF files need the package gguf.',
            'run `pip install gguf`.',
        ) from error


def read_container(
    path: str,
) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """Reads all metadata, and where each tensor lies, by name.

    Raises:
        CheckpointError: It is not a GGUF file, damaged, or of a kind that is not
            read, or the package ``gguf`` is missing.
    """
    package = gguf_package(path)
    try:
        with open(path, 'rb') as stream:
            cursor = _Cursor(stream)
            if cursor.take(len(_MAGIC)) != _MAGIC:
                raise ValueError('it does not start with GGUF')
            _check_version(path, cursor.number('I'))
            n_tensors, n_fields = cursor.count(24), cursor.count(13)
            fields = _unique(_field(cursor) for _ in range(n_fields))
            infos = _unique(_tensor(cursor) for _ in range(n_tensors))
            tensors = _places(path, cursor, fields, infos, package)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(
            path,
            f'it could not be read ({error}).',
            'see that it is there, and that you may read it.',
        ) from error
    except ValueError as error:
        raise CheckpointError(
            path,
            f'it is not a GGUF file, or damaged ({error}).',
            COPY_AGAIN,
        ) from error
    return fields, tensors


def _check_version(path: str, version: int) -> None:
    is_swapped = int.from_bytes(struct.pack('<I', version)) in _VERSIONS
    if not is_swapped and version > 255:
        raise ValueError(f'{version} is no version')
    if is_swapped or version not in _VERSIONS:
        raise CheckpointError(
            path,
            'it is big-endian.' if is_swapped else
            f'it is a GGUF file of version {version}; known are '
            f'{" and ".join(map(str, _VERSIONS))}.',
            "convert the model again with llama.cpp's present converter, "
            "or give its original Hugging Face folder.",
        )


class _Cursor:
    """Reads a file in order, and not past its end.

    Attributes:
        left: Bytes from here to the end.
        size: Those of the whole file.
    """

    def __init__(self, stream: IO[bytes]):
        self._stream = stream
        self.size = self.left = os.fstat(stream.fileno()).st_size

    def take(self, n_bytes: int) -> bytes:
        if n_bytes > self.left:
            raise ValueError(f'{n_bytes} bytes should follow, not {self.left}')
        self.left -= n_bytes
        taken = self._stream.read(n_bytes)
        if len(taken) < n_bytes:
            raise ValueError('it has become shorter')
        return taken

    def numbers(self, code: str, n: int) -> tuple[Any, ...]:
        kind = struct.Struct(f'<{n}{code}')
        return kind.unpack(self.take(kind.size))

    def number(self, code: str) -> Any:
        return self.numbers(code, 1)[0]

    def count(self, least_bytes: int) -> int:
        """A number of things of which each has at least so many bytes."""
        count = self.number('Q')
        if count > min(self.left // least_bytes, _MOST):
            raise ValueError(
                f'{count} things cannot be in its {self.size} bytes',
            )
        return count

    def text(self) -> str:
        return self.take(self.number('Q')).decode()


def _unique(items: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, item in items:
        if name in found:
            raise ValueError(f'{name} is there twice')
        found[name] = item
    return found


def _field(cursor: _Cursor) -> tuple[str, Any]:
    name, kind = cursor.text(), cursor.number('I')
    if kind != _ARRAY:
        return name, _values(cursor, name, kind, None)
    kind = cursor.number('I')
    size = 8 if kind == _TEXT else struct.calcsize(_CODES.get(kind, 'B'))
    return name, _values(cursor, name, kind, cursor.count(size))


def _values(
    cursor: _Cursor,
    name: str,
    kind: int,
    n: Optional[int],
) -> Any:
    if kind == _TEXT:
        texts = [cursor.text() for _ in range(1 if n is None else n)]
        return texts[0] if n is None else texts
    if kind not in _CODES:
        raise ValueError(f'{name} is of the kind {kind}')
    if n is None:
        return cursor.number(_CODES[kind])
    return [*cursor.numbers(_CODES[kind], n)]


def _tensor(cursor: _Cursor) -> tuple[str, tuple[tuple[int, ...], int, int]]:
    name, n_dimensions = cursor.text(), cursor.number('I')
    if not 1 <= n_dimensions <= _MOST_DIMENSIONS:
        raise ValueError(f'{name} has {n_dimensions} dimensions')
    shape = cursor.numbers('Q', n_dimensions)[::-1]
    return name, (shape, cursor.number('I'), cursor.number('Q'))


def _places(
    path: str,
    cursor: _Cursor,
    fields: Mapping[str, Any],
    infos: Mapping[str, Any],
    package: Any,
) -> dict[str, StoredTensor]:
    alignment = fields.get('general.alignment', _ALIGNMENT)
    if not is_whole(alignment) or alignment < 1:
        raise ValueError(f'general.alignment is {alignment!r:.60}')
    header = cursor.size - cursor.left
    start = -(-header // alignment) * alignment
    tensors = {
        name: _place(path, name, info, start, package)
        for name, info in infos.items()
    }
    end = start
    for name, tensor in sorted(tensors.items(), key=lambda t: t[1].offset):
        if tensor.offset < end:
            raise ValueError(f'{name} lies over another tensor')
        end = tensor.offset + tensor.n_bytes
        if end > cursor.size:
            raise ValueError(f'{name} ends at byte {end} of {cursor.size}')
    return tensors


def _place(
    path: str,
    name: str,
    info: tuple[tuple[int, ...], int, int],
    start: int,
    package: Any,
) -> StoredTensor:
    shape, number, offset = info
    try:
        kind = package.GGMLQuantizationType(number)
    except ValueError as error:
        raise CheckpointError(
            path,
            f'{name} is of the type {number}, which the package gguf does not '
            'know.',
            f'run `pip install --upgrade gguf`, or {GIVE_ORIGINAL}',
        ) from error
    block, n_bytes = package.GGML_QUANT_SIZES[kind]
    if shape[-1] % block:
        raise ValueError(
            f'{name} has {shape[-1]} columns of {kind.name}, which come by '
            f'{block}',
        )
    for size in shape:
        n_bytes *= size
    return StoredTensor(path, shape, kind, start + offset, n_bytes // block)
