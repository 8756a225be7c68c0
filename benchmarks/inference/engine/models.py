"""Folders that vLLM serves a model from, and what the model weighs.

A model is a shape (the paper's Table 3): ``d_model``, ``ffn_hidden_size``,
``n_layers``, ``n_heads``, ``kv_n_heads`` and ``vocab_size``. Dense, it is a
Mistral; as a mixture, a Mixtral whose experts have the dense model's
``ffn_hidden_size``.

- With dummy weights (``--load-format dummy``) a folder is a ``config.json``.
- A real folder has safetensors beside it, as ``foundry-upcycle export-hf``
  writes.
"""

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.inference.errors import HarnessError

__all__ = [
    'BYTES_PER_WEIGHT',
    'check_model_folder',
    'config_number',
    'config_of',
    'count_elements',
    'count_parameters',
    'describe_model_folder',
    'read_config',
    'weight_bytes',
    'write_model_folder',
]

BYTES_PER_WEIGHT = {'bfloat16': 2, 'float16': 2, 'float32': 4}

# The paper's prompts and answers are 3,800 tokens. Rotary embeddings have no
# weights, so more positions cost nothing.
_POSITIONS = 32768

# Shape keys in the words of a config.json.
_NAMES = {
    'd_model': 'hidden_size',
    'ffn_hidden_size': 'intermediate_size',
    'n_layers': 'num_hidden_layers',
    'n_heads': 'num_attention_heads',
    'kv_n_heads': 'num_key_value_heads',
    'vocab_size': 'vocab_size',
}

_WEIGHTS = 'model.safetensors'
_INDEX = 'model.safetensors.index.json'

_MIB = 2**20


def config_of(
    shape: Mapping[str, int],
    experts: int = 1,
    top_k: int = 1,
    dtype: str = 'bfloat16',
) -> dict[str, Any]:
    """The ``config.json`` of a shape: Mistral if dense, else Mixtral.

    Args:
        shape: See the module's docstring. Unknown keys are refused.
        experts: 1: dense.
        top_k: Experts of a token. Ignored where the model is dense.
        dtype: Of the weights.
    """
    _check_shape(shape, experts, top_k)
    moe = experts > 1
    config = {
        'architectures':
        ['MixtralForCausalLM' if moe else 'MistralForCausalLM'],
        'model_type': 'mixtral' if moe else 'mistral',
        **{
            name: shape[key]
            for key, name in _NAMES.items()
        },
        'max_position_embeddings': _POSITIONS,
        'head_dim': shape['d_model'] // shape['n_heads'],
        'hidden_act': 'silu',
        'rms_norm_eps': 1e-5,
        'rope_theta': 10000.0,
        'sliding_window': None,
        'tie_word_embeddings': False,
        'bos_token_id': 1,
        'eos_token_id': 2,
        'torch_dtype': dtype,
    }
    if moe:
        config['num_local_experts'] = experts
        config['num_experts_per_tok'] = top_k
    return config


def _check_shape(shape: Mapping[str, int], experts: int, top_k: int) -> None:
    if missing := [key for key in _NAMES if key not in shape]:
        raise HarnessError(
            'shape',
            dict(shape),
            f'{missing} not set.',
            f'set {", ".join(_NAMES)}.',
        )
    if unknown := sorted(set(shape) - set(_NAMES)):
        raise HarnessError(
            'shape',
            dict(shape),
            f'unknown {unknown}.',
            f'known are {", ".join(_NAMES)}.',
        )
    for key, value in shape.items():
        if not isinstance(value, int) or value < 1:
            raise HarnessError(
                f'shape.{key}',
                value,
                'not a positive whole number.',
                'write a whole number from 1.',
            )
    for larger, smaller in (('d_model', 'n_heads'), ('n_heads', 'kv_n_heads')):
        if shape[larger] % shape[smaller]:
            raise HarnessError(
                f'shape.{smaller}',
                shape[smaller],
                f'does not divide {larger}, {shape[larger]}.',
                f'choose a divisor of {larger}.',
            )
    if experts < 1:
        raise HarnessError(
            'experts', experts, 'not a number of experts.',
            'write 1 for a dense model, else 2 or more.'
        )
    if not 1 <= top_k <= experts:
        raise HarnessError(
            'top_k', top_k, f'not between 1 and {experts} experts.',
            'choose as many experts a token as there are, or fewer.'
        )


def write_model_folder(
    shape: Mapping[str, int],
    folder: Path,
    experts: int = 1,
    top_k: int = 1,
    dtype: str = 'bfloat16',
) -> dict[str, Any]:
    """Writes a folder for dummy weights; returns its ``config.json``."""
    config = config_of(shape, experts, top_k, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'config.json').write_text(json.dumps(config, indent=2) + '\n')
    return config


def count_parameters(shape: Mapping[str, int], experts: int = 1) -> int:
    """Parameters, as vLLM holds them: no biases, no norms of heads.

    A block has attention ``D^2 (2 + 2 kv_n_heads / n_heads)``, two norms ``2
    D``, three matrices ``D F`` an expert and, of a mixture, a router ``D E``.
    Leaves out padding of the vocabulary.

    Args:
        shape: See the module's docstring.
        experts: 1: dense.
    """
    d, f = shape['d_model'], shape['ffn_hidden_size']
    kv = d * shape['kv_n_heads'] // shape['n_heads']
    router = d * experts if experts > 1 else 0
    block = 2 * d * d + 2 * d * kv + 2 * d + 3 * d * f * experts + router
    return shape['n_layers'] * block + d + 2 * d * shape['vocab_size']


def weight_bytes(
    shape: Mapping[str, int],
    experts: int = 1,
    dtype: str = 'bfloat16',
) -> int:
    """Bytes of the weights of a model that is not quantised."""
    return count_parameters(shape, experts) * BYTES_PER_WEIGHT[dtype]


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a real folder."""
    return _read_json(folder, 'config.json')


def check_model_folder(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a real folder whose weights are all there.

    Args:
        folder: As ``foundry-upcycle export-hf`` writes it.
    """
    config = read_config(folder)
    missing = [
        name for name in _weight_files(folder) if not (folder / name).is_file()
    ]
    if missing:
        more = f' and {len(missing) - 1} more' if missing[1:] else ''
        raise _folder_error(
            folder,
            f'model folder without weights: no {missing[0]}{more}.',
            'export the model again, or use load_format: dummy.',
        )
    return config


def config_number(config: Mapping[str, Any], key: str, folder: Path) -> int:
    """A whole number of a folder's ``config.json``."""
    value = config.get(key)
    if not isinstance(value, int):
        raise _folder_error(
            folder,
            f'its config.json has {key} {value!r}, not a whole number.',
            'export the model again.',
        )
    return value


def count_elements(folder: Path) -> int:
    """Elements of all tensors in a real folder, from the files' headers.

    Embeddings that are tied are one tensor of the file, and counted once.
    """
    return sum(_elements_in(folder, name) for name in _weight_files(folder))


def _elements_in(folder: Path, name: str) -> int:
    """A safetensors file begins with the length of a header in JSON."""
    try:
        with (folder / name).open('rb') as file:
            (length, ) = struct.unpack('<Q', file.read(8))
            header = json.loads(file.read(length))
        return sum(
            math.prod(tensor['shape'])
            for key, tensor in header.items()
            if key != '__metadata__'
        )
    except (OSError, OverflowError, ValueError, KeyError, TypeError,
            AttributeError, struct.error) as error:
        raise _unreadable(folder, name, error) from error


def _weight_files(folder: Path) -> list[str]:
    """The files that should be there; one that is not, where none is."""
    if not (folder / _INDEX).is_file():
        return [_WEIGHTS]
    names = _read_json(folder, _INDEX).get('weight_map')
    if not isinstance(names, dict) or not names:
        raise _folder_error(
            folder,
            f'its {_INDEX} has no weight_map.',
            'export the model again.',
        )
    return sorted(set(names.values()))


def describe_model_folder(folder: Path) -> dict[str, Any]:
    """What identifies a real folder, without reading gigabytes.

    Path, SHA-256 of ``config.json`` and of the index, each weight file's size,
    and the SHA-256 of its first and last MiB: weights of another training are
    others there too, though a change of one matrix in between is not seen.
    """
    names = _weight_files(folder)
    return {
        'folder': str(folder),
        'config_sha256': _digest(folder, 'config.json'),
        'index_sha256': _digest(folder, _INDEX) if
        (folder / _INDEX).is_file() else None,
        'weight_bytes': {
            name: _size(folder, name)
            for name in names
        },
        'weight_sha256': {
            name: _digest(folder, name)
            for name in names
        },
    }


def _size(folder: Path, name: str) -> int:
    try:
        return (folder / name).stat().st_size
    except OSError as error:
        raise _unreadable(folder, name, error) from error


def _digest(folder: Path, name: str) -> str:
    """SHA-256 of a file's first and last MiB."""
    size = _size(folder, name)
    try:
        with (folder / name).open('rb') as file:
            digest = hashlib.sha256(file.read(_MIB))
            file.seek(max(size - _MIB, file.tell()))
            digest.update(file.read())
    except OSError as error:
        raise _unreadable(folder, name, error) from error
    return digest.hexdigest()


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_text())
        if not isinstance(content, dict):
            raise ValueError('it holds no JSON object')
        return content
    except (OSError, ValueError) as error:
        raise _unreadable(folder, name, error) from error


def _unreadable(folder: Path, name: str, error: Exception) -> HarnessError:
    return _folder_error(
        folder,
        f"its {name} can't be read: {error!r}.",
        'name a folder that foundry-upcycle export-hf wrote.',
    )


def _folder_error(folder: Path, problem: str, fix: str) -> HarnessError:
    return HarnessError('folder', str(folder), problem, fix)
