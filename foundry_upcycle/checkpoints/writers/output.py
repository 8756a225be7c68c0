"""What all writers of files share: an output that is whole or not there.

Beside the target lies, while it is being written, a folder ``NAME.partial``:

- ``.lock`` is held by the process that writes; death releases it,
- ``new`` is what is being written, ``beside`` a file that goes beside it,
- ``replaced`` and ``replaced_beside`` are the old ones, for the moment between
  the renames that put the new ones in their place.

A process that is killed leaves at most this folder. The next one puts the old
ones back, if the new target has not got its place, and removes the rest. So it
does itself where a rename fails. Nothing is synced to the disk: a loss of power
may damage what had just been written.
"""

import mmap
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator, Optional

import torch

from foundry_upcycle.checkpoints.base import Checkpoint, TensorInfo
from foundry_upcycle.errors import CheckpointError
from foundry_upcycle.files import (
    LOCK,
    fix_for,
    lock_folder,
    reason_of,
    require_place,
    unlock_folder,
)

__all__ = [
    'Progress',
    'absolute',
    'check_free_space',
    'new_output',
    'refuse_existing',
    'stored_tensors',
    'stream_tensor',
    'unwritable',
]

# Is told how many bytes have just been written.
Progress = Callable[[int], Any]

# What is converted or transposed at a time: larger parts are quicker.
_PART_BYTES = 32 * 2**20
# What is given to the system at a time. Where a virtual machine's free memory
# is with its host, writes of 8 MiB took up to ten times as long.
_WRITE_BYTES = 2**20
_SUFFIX = '.partial'


@contextmanager
def new_output(
    path: str | os.PathLike[str],
    overwrite: bool = False,
    beside: Optional[Path] = None,
) -> Iterator[Path]:
    """Yields where to write a file or folder that is to be at ``path``.

    It is moved there when the body ends, and removed when the body raises.
    Missing parent folders are made. A link is replaced, and what it points to
    stays.

    Args:
        path: The target.
        overwrite: Whether the target may exist. The old one stays complete
            until the new one is.
        beside: Where a file goes that the body writes as ``beside``, beside
            what it was given. What is there goes with the old target.

    Raises:
        CheckpointError: The target exists (before anything is written),
            another process is writing it, or it can't be written: no
            permission, disk full, a name that is too long, a mount point, what
            is neither a file nor a folder.
    """
    target = Path(absolute(path))
    try:
        refuse_existing(target, overwrite)
        with _locked_workspace(target, beside) as workspace:
            refuse_existing(target, overwrite)  # What a crash left, is back.
            yield workspace / 'new'
            _publish(workspace, target, beside)
    except OSError as error:
        raise unwritable(target, error) from error


def absolute(path: str | os.PathLike[str]) -> str:
    """Where an output is to be: what is checked must be what is replaced.

    Raises:
        CheckpointError: The path is empty, as of a variable that is not set.
    """
    if not os.fspath(path):
        raise CheckpointError(
            "''",
            'the output has no name.',
            'name a file or a folder.',
        )
    return os.path.abspath(path)


def check_free_space(path: str | os.PathLike[str], n_bytes: int) -> None:
    """Checks that ``n_bytes`` fit on the disk of ``path``, which may be new.

    Raises:
        CheckpointError: They don't.
    """
    folder = Path(os.path.abspath(path))
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise CheckpointError(
            path,
            f'{n_bytes / 1e9:.2f} GB are to be written, and its disk has '
            f'{free / 1e9:.2f} GB left.',
            'free space, or write to another disk.',
        )


def stored_tensors(
    checkpoint: Checkpoint,
    dtype: Optional[torch.dtype],
) -> dict[str, TensorInfo]:
    """Every tensor, in the dtype in which it is to be stored.

    Args:
        checkpoint: What is to be written.
        dtype: Of all floating-point tensors; None keeps each one's own.
    """

    def stored_dtype(own: torch.dtype) -> torch.dtype:
        return dtype if dtype and own.is_floating_point else own

    return {
        name: TensorInfo(info.shape, stored_dtype(info.dtype))
        for name, info in checkpoint.tensors.items()
    }


def stream_tensor(
    checkpoint: Checkpoint,
    name: str,
    stored: TensorInfo,
    write: Callable[[memoryview], Any],
    progress: Progress,
) -> None:
    """Writes a tensor's bytes, in this machine's byte order, by blocks.

    Args:
        checkpoint: Where the tensor is.
        name: Its name.
        stored: The shape it must have, and the dtype to convert it to.
        write: Is given the bytes, part after part, and must not keep them.
        progress: Is told the size of each part.

    Raises:
        CheckpointError: The checkpoint gives other rows than it promised, or
            a weight that the dtype does not hold.
    """
    n_rows = 0
    for block in checkpoint.rows(name, 0, stored.shape[0]):
        n_rows += block.shape[0]
        if block.shape[1:] != stored.shape[1:] or n_rows > stored.shape[0]:
            raise _wrong_rows(checkpoint, name, stored, n_rows, block)
        for data in _as_bytes(checkpoint, name, block, stored.dtype):
            for start in range(0, data.nbytes, _WRITE_BYTES):
                write(data[start:start + _WRITE_BYTES])
            progress(data.nbytes)
        # Nothing is held while the next block is read.
        del block, data
    if n_rows != stored.shape[0]:
        raise _wrong_rows(checkpoint, name, stored, n_rows)


def _as_bytes(
    checkpoint: Checkpoint,
    name: str,
    block: torch.Tensor,
    dtype: torch.dtype,
) -> Iterator[memoryview]:
    """A block's bytes in ``dtype``, part after part.

    Not copied where they lie as they should; else one part after the other is
    copied to the same memory.
    """
    parts = block.detach().tensor_split(max(1, block.nbytes // _PART_BYTES))
    copies = _new_memory(parts[0].shape, dtype)  # None is larger.
    for part in parts:
        if part.dtype != dtype or not part.is_contiguous():
            copy = copies[:part.shape[0]]
            part = checkpoint.narrowing.cast(name, part, dtype, copy)
        yield part.reshape(-1).view(torch.uint8).numpy().data


def _new_memory(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """``torch.empty``, of which the system gets all back at the end.

    What malloc keeps of aligned blocks of this size grows for a while.
    """
    n_bytes = shape.numel() * dtype.itemsize
    memory = torch.frombuffer(mmap.mmap(-1, max(1, n_bytes)), dtype=torch.uint8)
    return memory[:n_bytes].view(dtype).view(shape)


def _wrong_rows(
    checkpoint: Checkpoint,
    name: str,
    stored: TensorInfo,
    n_rows: int,
    block: Optional[torch.Tensor] = None,
) -> CheckpointError:
    last = '' if block is None else f', the last of shape {tuple(block.shape)}'
    return CheckpointError(
        checkpoint.path,
        f'{name} of shape {stored.shape} was read as {n_rows} rows{last}.',
        'report this: it is a bug.',
    )


def refuse_existing(
    target: str | os.PathLike[str],
    overwrite: bool,
) -> None:
    """Refuses a target that is there, unless it may be replaced.

    Raises:
        CheckpointError: It exists; it is the working folder, or holds it; or
            its place can't be taken.
    """
    try:
        require_place(Path(target), _SUFFIX)
    except OSError as error:
        raise unwritable(target, error) from error
    if os.path.lexists(target) and not overwrite:
        raise CheckpointError(
            target,
            'it exists.',
            'choose another output, or pass --overwrite.',
        )
    if os.path.isdir(target) and not os.path.islink(target):
        real, here = os.path.realpath(target), os.getcwd()
        if os.path.commonpath([real, here]) == real:
            raise CheckpointError(
                target,
                f'it is, or holds, the working folder {here}.',
                'choose another output.',
            )


@contextmanager
def _locked_workspace(
    target: Path,
    beside: Optional[Path],
) -> Iterator[Path]:
    workspace = target.with_name(f'{target.name}{_SUFFIX}')
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock(workspace, target)
    try:
        _clean(workspace, target, beside)
        yield workspace
    finally:
        _clean(workspace, target, beside)
        unlock_folder(workspace, lock)


def _lock(workspace: Path, target: Path) -> int:
    try:
        return lock_folder(workspace)
    except BlockingIOError as error:
        raise CheckpointError(
            target,
            'another process is writing it.',
            'wait until that is done, or choose another output.',
        ) from error


def _clean(workspace: Path, target: Path, beside: Optional[Path]) -> None:
    """Removes all but the lock; brings back what was to be replaced."""
    new, replaced = workspace / 'new', workspace / 'replaced'
    old_beside = workspace / 'replaced_beside'
    if os.path.lexists(replaced) and not os.path.lexists(target):
        replaced.rename(target)
    if beside and os.path.lexists(old_beside) and os.path.lexists(new):
        old_beside.replace(beside)
    for path in workspace.iterdir():
        if path.name == LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _publish(workspace: Path, target: Path, beside: Optional[Path]) -> None:
    new = workspace / 'new'
    if beside and os.path.lexists(beside):
        beside.rename(workspace / 'replaced_beside')
    if beside and (workspace / 'beside').exists():
        (workspace / 'beside').rename(beside)
    if target.is_dir() or (new.is_dir() and os.path.lexists(target)):
        target.rename(workspace / 'replaced')
    new.replace(target)


def unwritable(
    target: str | os.PathLike[str],
    error: OSError,
) -> CheckpointError:
    """That an output can't be written, why, and what to do."""
    return CheckpointError(
        target,
        f'it could not be written ({reason_of(error, target)}).',
        fix_for(error),
    )
