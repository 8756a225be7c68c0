"""Folders that vLLM serves a model from, and what the model weighs.

A model is a shape (the paper's Table 3): ``d_model``, ``ffn_hidden_size``,
``n_layers``, ``n_heads``, ``kv_n_heads``, ``vocab_size`` and, optionally,
``max_position_embeddings``. Dense, it is a Mistral; as a mixture, a Mixtral
whose experts have the dense model's ``ffn_hidden_size``.

- With dummy weights (``--load-format dummy``) a folder is a ``config.json``.
- A real folder has safetensors beside it, as ``foundry-upcycle export-hf``
  writes.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.inference.errors import HarnessError

__all__ = [
    'BYTES_PER_WEIGHT',
    'check_model_folder',
    'config_of',
    'count_parameters',
    'describe_model_folder',
    'shape_of_config',
    'weight_bytes',
    'write_model_folder',
]

BYTES_PER_WEIGHT = {'bfloat16': 2, 'float16': 2, 'float32': 4}

_SHAPE_KEYS = (
    'd_model',
    'ffn_hidden_size',
    'n_layers',
    'n_heads',
    'kv_n_heads',
    'vocab_size',
)

# Positions, where a shape has none of its own: the paper's prompts and answers
# are 3,800 tokens. Rotary embeddings have no weights, so it costs nothing.
_POSITIONS = 32768

# Shape keys in the words of a config.json.
_NAMES = {
    'd_model': 'hidden_size',
    'ffn_hidden_size': 'intermediate_size',
    'n_layers': 'num_hidden_layers',
    'n_heads': 'num_attention_heads',
    'kv_n_heads': 'num_key_value_heads',
    'vocab_size': 'vocab_size',
    'max_position_embeddings': 'max_position_embeddings',
}

_WEIGHTS = 'model.safetensors'
_INDEX = 'model.safetensors.index.json'


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
            for key, name in _NAMES.items() if key in shape
        },
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
    config.setdefault('max_position_embeddings', _POSITIONS)
    if moe:
        config['num_local_experts'] = experts
        config['num_experts_per_tok'] = top_k
    return config


def _check_shape(shape: Mapping[str, int], experts: int, top_k: int) -> None:
    if missing := [key for key in _SHAPE_KEYS if key not in shape]:
        raise HarnessError(
            'shape',
            dict(shape),
            f'{missing} not set.',
            f'set {", ".join(_SHAPE_KEYS)}.',
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


def shape_of_config(config: Mapping[str, Any]) -> dict[str, int]:
    """The shape of a ``config.json`` in the Llama family's words."""
    defaults = {'num_key_value_heads': config.get('num_attention_heads')}
    shape = {
        key: config.get(name, defaults.get(name))
        for key, name in _NAMES.items()
    }
    return {key: value for key, value in shape.items() if value is not None}


def count_parameters(
    shape: Mapping[str, int],
    experts: int = 1,
    tied: bool = False,
) -> int:
    """Parameters, as vLLM holds them: no biases, no norms of heads.

    A block has attention ``D^2 (2 + 2 kv_n_heads / n_heads)``, two norms ``2
    D``, three matrices ``D F`` an expert and, of a mixture, a router ``D E``.
    Leaves out padding of the vocabulary.

    Args:
        shape: See the module's docstring.
        experts: 1: dense.
        tied: Whether the embedding is also the output layer.
    """
    d, f = shape['d_model'], shape['ffn_hidden_size']
    kv = d * shape['kv_n_heads'] // shape['n_heads']
    router = d * experts if experts > 1 else 0
    block = 2 * d * d + 2 * d * kv + 2 * d + 3 * d * f * experts + router
    embeddings = d * shape['vocab_size'] * (1 if tied else 2)
    return shape['n_layers'] * block + d + embeddings


def weight_bytes(
    shape: Mapping[str, int],
    experts: int = 1,
    dtype: str = 'bfloat16',
    tied: bool = False,
) -> int:
    """Bytes of the weights of a model that is not quantised."""
    return count_parameters(shape, experts, tied) * BYTES_PER_WEIGHT[dtype]


def check_model_folder(
    folder: Path,
    architectures: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The ``config.json`` of a real folder whose weights are all there.

    Args:
        folder: As ``foundry-upcycle export-hf`` writes it.
        architectures: Those that will do; empty: any.
    """
    path = folder / 'config.json'
    if not path.is_file():
        raise HarnessError(
            'folder',
            str(folder),
            'model folder without config.json.',
            'name a folder that foundry-upcycle export-hf wrote.',
        )
    config = json.loads(path.read_text())
    found = config.get('architectures') or []
    if architectures and not set(found) & set(architectures):
        raise HarnessError(
            'folder',
            str(folder),
            f'architecture {found}, not {" or ".join(architectures)}.',
            'name a folder of that architecture.',
        )
    missing = [
        name for name in _weight_files(folder) if not (folder / name).is_file()
    ]
    if missing:
        raise HarnessError(
            'folder',
            str(folder),
            f'model folder without weights: no {missing[0]}'
            f'{f" and {len(missing) - 1} more" if missing[1:] else ""}.',
            'export the model again, or use load_format: dummy.',
        )
    return config


def _weight_files(folder: Path) -> list[str]:
    """The files that should be there; one that is not, where none is."""
    index = folder / _INDEX
    if not index.is_file():
        return [_WEIGHTS]
    return sorted(set(json.loads(index.read_text())['weight_map'].values()))


def describe_model_folder(folder: Path) -> dict[str, Any]:
    """What identifies a real folder, without reading gigabytes.

    Path, SHA-256 of ``config.json`` and of the index, and each weight file's
    size. Weights that were replaced by others of the same size look the same.
    """
    return {
        'folder': str(folder),
        'config_sha256': _digest(folder / 'config.json'),
        'index_sha256': _digest(folder / _INDEX),
        'weight_bytes': {
            name: (folder / name).stat().st_size
            for name in _weight_files(folder)
        },
    }


def _digest(path: Path) -> str | None:
    if not path.is_file():
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest()
