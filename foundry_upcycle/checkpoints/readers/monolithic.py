"""Reads a Composer ``.pt`` file, mapped into memory."""

import datetime
import pickle
from typing import Any, Mapping, Sequence

import numpy as np
import torch
from torch.torch_version import TorchVersion

from foundry_upcycle.checkpoints.base import (
    CONFIG_KEY,
    Checkpoint,
    TensorInfo,
    flatten,
)
from foundry_upcycle.checkpoints.names import clean_name
from foundry_upcycle.errors import CheckpointError

__all__ = ['MonolithicReader']


def _safe_globals() -> list[Any]:
    # What a Composer checkpoint holds beside tensors: timestamps, the torch
    # version and numpy's random state.
    try:
        from numpy._core.multiarray import _reconstruct  # type: ignore
    except ImportError:  # numpy < 2
        from numpy.core.multiarray import _reconstruct  # type: ignore
    dtypes = [type(np.dtype(name)) for name in ('uint32', 'int64', 'float64')]
    return [
        datetime.timedelta,
        TorchVersion,
        _reconstruct,
        np.ndarray,
        np.dtype,
        *dtypes,
    ]


class MonolithicReader(Checkpoint):
    """A ``Checkpoint`` of a ``.pt`` file.

    Args:
        path: The file.

    Raises:
        CheckpointError: It is damaged, not Composer's, or would execute code
            to be read.
    """

    def __init__(self, path: str):
        self.path = path
        content = _load(path)
        self._state = {
            clean_name(name): tensor
            for name, tensor in content['state']['model'].items()
            if isinstance(tensor, torch.Tensor)
        }
        self.tensors = {
            name: TensorInfo(tuple(tensor.shape), tensor.dtype)
            for name, tensor in self._state.items()
        }
        config = _lookup(content, CONFIG_KEY.split('.'))
        self.model_config = flatten(config or {})

    def read(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        return self._state[name].narrow(dim, start, stop - start)


def _load(path: str) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals(_safe_globals()):
            content = torch.load(
                path,
                map_location='cpu',
                mmap=True,
                weights_only=True,
            )
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            path,
            f'it can be read only by executing {_unsafe_globals(path)}.',
            'save the dense run with save_weights_only: true, or remove the '
            'callback whose state is in it.',
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(
            path,
            f'it is truncated or not a PyTorch file ({error}).',
            'copy it again, or save it again with Composer; unpack an archive '
            '(.tar, .gz, .lz4, .zst) first.',
        ) from error
    if not isinstance(_lookup(content, ['state', 'model']), Mapping):
        raise CheckpointError(
            path,
            'it holds no state.model, so Composer did not write it.',
            'set source_path to a Composer checkpoint.',
        )
    return content


def _unsafe_globals(path: str) -> str:
    # Parses the pickle without running it.
    with torch.serialization.safe_globals(_safe_globals()):
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    return ', '.join(sorted(names)) or 'a pickle of unknown content'


def _lookup(nested: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        nested = nested.get(key) if isinstance(nested, Mapping) else None
    return nested
