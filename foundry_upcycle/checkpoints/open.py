"""Opens a checkpoint, whatever its format, for lazy reading.

No pickle that a checkpoint carries is ever executed: tensors are read with
``weights_only=True``, and a sharded folder's ``.metadata`` with an unpickler
that knows only the classes such a file needs.
"""

import os

from foundry_upcycle.checkpoints.base import Checkpoint
from foundry_upcycle.checkpoints.readers.monolithic import MonolithicReader
from foundry_upcycle.checkpoints.readers.sharded import ShardedReader
from foundry_upcycle.errors import CheckpointError

__all__ = ['open_checkpoint']


def open_checkpoint(path: str) -> Checkpoint:
    """Opens a local Composer checkpoint.

    Args:
        path: A monolithic ``.pt`` file or a sharded (DCP) folder.

    Raises:
        CheckpointError: It is missing, damaged, none of these formats, or
            would execute code to be read.
    """
    if os.path.isdir(path):
        return ShardedReader(path)
    if os.path.isfile(path):
        return MonolithicReader(path)
    raise CheckpointError(
        path,
        'there is no such file or folder.',
        'set source_path to a dense Composer checkpoint.',
    )
