"""Rows and columns of a tensor in a GGUF file, as the numbers they stand for."""

import numpy as np
import torch

from foundry_upcycle.checkpoints.huggingface.gguf_container import (
    GIVE_ORIGINAL,
    StoredTensor,
    gguf_package,
)
from foundry_upcycle.errors import CheckpointError

__all__ = ['check_readable', 'read_part']


def check_readable(name: str, tensor: StoredTensor) -> None:
    """Refuses a type of weights that the package ``gguf`` can't compute."""
    package = gguf_package(tensor.file)
    _, n_bytes = package.GGML_QUANT_SIZES[tensor.kind]
    try:
        package.dequantize(np.zeros((1, n_bytes), np.uint8), tensor.kind)
    except NotImplementedError as error:
        raise CheckpointError(
            tensor.file,
            f'{name} is of the type {tensor.kind.name}, which the package gguf '
            'does not compute.',
            GIVE_ORIGINAL,
        ) from error


def read_part(
    name: str,
    tensor: StoredTensor,
    dim: int,
    start: int,
    stop: int,
) -> torch.Tensor:
    """Reads ``tensor.narrow(dim, start, stop - start)`` in float32.

    Only what is asked for is read: whole rows, or of each row the quantised
    blocks that hold the columns.

    Args:
        name: For messages.
        tensor: A matrix or a vector.
        dim: 0 or, of a matrix, 1.
        start: First row or column.
        stop: Row or column after the last.

    Raises:
        CheckpointError: The file is gone, or shorter than it was.
    """
    is_vector = len(tensor.shape) == 1
    n_rows, n_columns = (1, *tensor.shape)[-2:]
    if is_vector or dim == 1:
        values = _read(name, tensor, (0, n_rows), (start, stop))
    else:
        values = _read(name, tensor, (start, stop), (0, n_columns))
    return torch.from_numpy(values[0] if is_vector else values)


def _read(
    name: str,
    tensor: StoredTensor,
    rows: tuple[int, int],
    columns: tuple[int, int],
) -> np.ndarray:
    package = gguf_package(tensor.file)
    block, block_bytes = package.GGML_QUANT_SIZES[tensor.kind]
    first, last = columns[0] // block, -(-columns[1] // block)
    row_bytes = tensor.shape[-1] // block * block_bytes
    content = np.empty(
        (rows[1] - rows[0], (last - first) * block_bytes),
        np.uint8,
    )
    start = tensor.offset + rows[0] * row_bytes + first * block_bytes
    try:
        # Read, not mapped: a file that is cut meanwhile gives an error.
        with open(tensor.file, 'rb') as stream:
            is_contiguous = content.shape[1] == row_bytes
            for i, piece in enumerate([content] if is_contiguous else content):
                stream.seek(start + i * row_bytes)
                if stream.readinto(piece.data) < piece.nbytes:
                    raise OSError('it has become shorter')
    except OSError as error:
        raise CheckpointError(
            tensor.file,
            f'{name} can no longer be read ({error}).',
            'see that nothing changes it, and begin again.',
        ) from error
    # Damaged scales give NaN, of which the checkpoint warns.
    with np.errstate(all='ignore'):
        values = package.dequantize(content, tensor.kind)
    skipped = columns[0] - first * block
    return values[:, skipped:skipped + columns[1] - columns[0]]
