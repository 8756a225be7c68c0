"""A part for ``test_pack.py`` whose cases end in every way."""

import os
from pathlib import Path
from typing import Any

import torch

from foundry_upcycle.errors import ConfigError


def _refuses() -> dict[str, Any]:
    raise ConfigError('backend', 'x', 'this torch lacks it.', 'take another.')


def _fails() -> dict[str, Any]:
    raise ValueError('two\nlines')


def _takes_all_memory() -> dict[str, Any]:
    raise torch.OutOfMemoryError('Tried to allocate 99 GiB.')


# Of this process.
_spoilt: list[str] = []


def _spoils() -> dict[str, Any]:
    _spoilt.append('by a kernel')
    raise RuntimeError('Triton Error [CUDA]: an illegal memory access')


def _dies() -> dict[str, Any]:
    print('Segmentation fault', flush=True)
    os._exit(139)


def cases(device: str, folder: Path) -> dict[str, Any]:
    del device, folder
    return {
        'works': lambda: {
            'value': 1
        },
        'refuses': _refuses,
        'fails': _fails,
        'takes all memory': _takes_all_memory,
        'dies': _dies,
        'spoils': _spoils,
        'works after': lambda: {
            'value': 2,
            'spoilt': _spoilt
        },
    }
