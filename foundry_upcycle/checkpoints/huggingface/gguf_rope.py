"""How a GGUF file's model scales rotary positions."""

import math
import warnings
from typing import Any, Mapping, Optional

import torch

from foundry_upcycle.checkpoints.huggingface.gguf_container import GIVE_ORIGINAL
from foundry_upcycle.checkpoints.huggingface.gguf_file import GGUFFile
from foundry_upcycle.checkpoints.huggingface.gguf_settings import GGUFSettings
from foundry_upcycle.checkpoints.huggingface.gguf_tensors import read_part
from foundry_upcycle.errors import UpcyclingWarning

__all__ = ['ROPE_FACTORS', 'ROPE_KEYS', 'rope_scaling']

ROPE_FACTORS = 'rope_freqs.weight'

_ROPE_TYPE = 'rope.scaling.type'
# Its present name and its first one.
_ROPE_FACTOR = ('rope.scaling.factor', 'rope.scale_linear')
ROPE_KEYS = (_ROPE_TYPE, *_ROPE_FACTOR)

# All Llamas from 3.1 on have these; only their factor differs.
_LLAMA3 = {
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 8192,
}
_LLAMA3_BASE = 500000.0


def rope_scaling(
    keys: GGUFSettings,
    config: Mapping[str, Any],
    head_dim: int,
) -> Optional[dict[str, Any]]:
    linear, llama3 = _linear(keys), _llama3(keys.file, config, head_dim)
    if linear and llama3:
        raise keys.file.error(
            f'{ROPE_FACTORS} scales rotary positions, and '
            f'{keys.prefix}{_ROPE_FACTOR[0]} does so again.',
            GIVE_ORIGINAL,
        )
    if ROPE_FACTORS not in keys.file.tensors and not linear:
        _warn_of_llama3(keys.file, config)
    return linear or llama3


def _linear(keys: GGUFSettings) -> Optional[dict[str, Any]]:
    kind = keys.get(_ROPE_TYPE, 'a text', 'linear')
    if kind not in ('none', 'linear'):
        raise keys.error(
            _ROPE_TYPE,
            kind,
            'a scaling of rotary positions that MPT does not compute',
        )
    given = [key for key in _ROPE_FACTOR if keys.get(key, 'a number')]
    factor = keys.positive(given[0]) if given else 1.0
    # llama.cpp takes a factor without a type for linear, and 0 for 1.
    if kind == 'none' or factor == 1:
        return None
    return {'rope_type': 'linear', 'factor': factor}


def _llama3(
    file: GGUFFile,
    config: Mapping[str, Any],
    head_dim: int,
) -> Optional[dict[str, Any]]:
    """The scaling that gives the file's factors of each frequency."""
    stored = file.tensors.get(ROPE_FACTORS)
    if stored is None:
        return None
    found = torch.empty(0)
    if stored.shape == (head_dim // 2, ):
        found = read_part(ROPE_FACTORS, stored, 0, 0, head_dim // 2)
    scaling = {'factor': found.max().item() if len(found) else 1.0, **_LLAMA3}
    expected = _llama3_factors(config['rope_theta'], head_dim, **scaling)
    if found.shape == expected.shape and bool((found == 1).all()):
        return None
    # The converter computes in float32, where we do in float64.
    if found.shape != expected.shape or not torch.allclose(
            found.double(),
            expected,
            rtol=1e-5,
            atol=0,
    ):
        raise file.error(
            f'the factors of {ROPE_FACTORS} are not those of a scaling as in '
            'Llama 3 (low_freq_factor 1, high_freq_factor 4, of 8192 '
            'positions), and MPT knows no other.',
            GIVE_ORIGINAL,
        )
    return {'rope_type': 'llama3', **scaling}


def _llama3_factors(
    theta: float,
    head_dim: int,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> torch.Tensor:
    """What each frequency is divided by, (head_dim / 2,), in float64.

    Long waves by ``factor``, short ones by 1, and between them 1 / divisor
    goes linearly with the number of waves in the original context.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    waves = original_max_position_embeddings / (2 * math.pi * theta**exponents)
    smooth = (waves - low_freq_factor) / (high_freq_factor - low_freq_factor)
    smooth = smooth.clamp(0, 1)
    return 1 / ((1 - smooth) / factor + smooth)


def _warn_of_llama3(file: GGUFFile, config: Mapping[str, Any]) -> None:
    n_positions = config['max_position_embeddings']
    original = _LLAMA3['original_max_position_embeddings']
    is_llama = config['model_type'] == 'llama'
    is_llama3 = is_llama and config['rope_theta'] == _LLAMA3_BASE
    if is_llama3 and n_positions > original:
        warnings.warn(
            f'{file.path}: it has {n_positions} positions and no '
            f'{ROPE_FACTORS}. If it is a Llama from 3.1 on, an early converter '
            'left them out, and its answers will be wrong: get a newer file.',
            UpcyclingWarning,
            stacklevel=4,
        )
