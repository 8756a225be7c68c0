"""A GGUF file's metadata to the ``config.json`` that it was made from."""

import math
import warnings
from pathlib import Path
from typing import Any, Mapping, Optional

import torch
from transformers.generation.configuration_utils import GenerationConfig
from transformers.models.auto.configuration_auto import AutoConfig

from foundry_upcycle.checkpoints.huggingface.architectures import (
    ARCHITECTURES,
    missing_feature,
)
from foundry_upcycle.checkpoints.huggingface.gguf_file import (
    GIVE_ORIGINAL,
    GGUFFile,
)
from foundry_upcycle.checkpoints.huggingface.gguf_tensors import read_part
from foundry_upcycle.config import is_whole
from foundry_upcycle.errors import UpcyclingWarning

__all__ = [
    'EMBEDDING',
    'HEAD',
    'ROPE_FACTORS',
    'read_hf_config',
    'write_configs',
]

EMBEDDING = 'token_embd.weight'
HEAD = 'output.weight'
ROPE_FACTORS = 'rope_freqs.weight'

# Both sides call these the same.
_ARCHITECTURES = ('llama', 'qwen2', 'qwen3')

# Other architectures: llama.cpp's name -> transformers'.
_OTHER_NAMES = {
    'command-r': 'cohere',
    'deepseek2': 'deepseek_v3',
    'qwen2moe': 'qwen2_moe',
    'qwen3moe': 'qwen3_moe',
}

_SIZES = {
    'block_count': 'num_hidden_layers',
    'context_length': 'max_position_embeddings',
    'embedding_length': 'hidden_size',
    'feed_forward_length': 'intermediate_size',
    'attention.head_count': 'num_attention_heads',
}
_KV_HEADS = 'attention.head_count_kv'
_NORM_EPS = 'attention.layer_norm_rms_epsilon'
_ROPE_BASE = 'rope.freq_base'
_ROPE_TYPE = 'rope.scaling.type'
# Its present name and its first one.
_ROPE_FACTOR = ('rope.scaling.factor', 'rope.scale_linear')
_HEAD_DIMS = (
    'attention.key_length',
    'attention.value_length',
    'rope.dimension_count',
)

# Keys that change nothing: they repeat others, or tell of the training.
_HARMLESS = {
    'rope.scaling.finetuned',
    'rope.scaling.original_context_length',
    'tensor_data_layout',
    'vocab_size',
}
# Keys whose other values MPT can't express: the one that it can.
_OFF = {
    'attention.causal': True,
    'expert_count': 0,
    'expert_used_count': 0,
    'use_parallel_residual': False,
}
_KNOWN = {
    *_SIZES,
    *(_KV_HEADS, _NORM_EPS, _ROPE_BASE, _ROPE_TYPE),
    *_ROPE_FACTOR,
    *_HEAD_DIMS,
    *_HARMLESS,
}

_TOKEN_IDS = {
    'bos_token_id': 'tokenizer.ggml.bos_token_id',
    'eos_token_id': 'tokenizer.ggml.eos_token_id',
    'pad_token_id': 'tokenizer.ggml.padding_token_id',
}

# All Llamas from 3.1 on have these; only their factor differs.
_LLAMA3 = {
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 8192,
}
_LLAMA3_BASE = 500000.0


def read_hf_config(file: GGUFFile) -> dict[str, Any]:
    """What ``config.json`` of the model in a GGUF file would say.

    Raises:
        CheckpointError: The metadata has a setting, or lacks one, without
            which the model would compute something else.
    """
    architecture = _architecture(file)
    keys = _Keys(file, f'{architecture}.')
    keys.check()
    config: dict[str, Any] = {hf: keys.size(k) for k, hf in _SIZES.items()}
    heads = config['num_attention_heads']
    config |= {
        'model_type': architecture,
        'num_key_value_heads': keys.size(_KV_HEADS, heads),
        'rms_norm_eps': keys.positive(_NORM_EPS),
        'rope_theta': keys.positive(_ROPE_BASE, 10000.0),
        'tie_word_embeddings': HEAD not in file.tensors,
        'vocab_size': _vocab_size(file),
    }
    head_dim = _head_dim(keys, config)
    config['head_dim'] = head_dim
    config['rope_scaling'] = _rope_scaling(keys, config, head_dim)
    return config | _token_ids(file, config['vocab_size'])


def write_configs(hf_config: Mapping[str, Any], folder: Path) -> None:
    """Writes ``config.json`` and ``generation_config.json``."""
    config = AutoConfig.for_model(
        **hf_config,
        architectures=[ARCHITECTURES[hf_config['model_type']].class_name],
        torch_dtype=torch.float32,
    )
    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)


def _architecture(file: GGUFFile) -> str:
    kind = file.get('general.type', 'a text', 'model')
    if kind != 'model':
        raise file.error(
            f'general.type is {kind!r}: it holds no language model.',
            'give the GGUF file of the model itself.',
        )
    name = file.require('general.architecture', 'a text')
    if name in _ARCHITECTURES:
        return name
    other = _OTHER_NAMES.get(name, name)
    feature = missing_feature(other)
    known = ', '.join(_ARCHITECTURES)
    if other in ARCHITECTURES:
        reason = f'of GGUF files only {known} are read'
    elif feature:
        reason = f'MPT has no counterpart to {feature}'
    else:
        reason = 'this architecture is not known'
    raise file.error(
        f'general.architecture is {name!r}; {reason}.',
        GIVE_ORIGINAL if other in ARCHITECTURES else f'use a model of {known}.',
    )


class _Keys:
    """The settings of an architecture, by the name after its prefix."""

    def __init__(self, file: GGUFFile, prefix: str):
        self.file = file
        self.prefix = prefix

    def get(self, key: str, kind: str, default: Any = None) -> Any:
        return self.file.get(self.prefix + key, kind, default)

    def error(self, key: str, value: Any, problem: str) -> Exception:
        return self.file.error(
            f'{self.prefix}{key} is {value!r:.60}, {problem}.',
            GIVE_ORIGINAL,
        )

    def check(self) -> None:
        """Refuses what would be left out without a word."""
        for name, value in self.file.fields.items():
            key = name.removeprefix(self.prefix)
            if key == name or key in _KNOWN:
                continue
            if key not in _OFF or value != _OFF[key]:
                raise self.error(
                    key,
                    value,
                    'and mixtures of experts are not read from GGUF files'
                    if key.startswith('expert') else
                    'and nothing is known that computes it',
                )

    def number(self, key: str, default: Any) -> Any:
        """A number; of one for each layer, that of all."""
        name = self.prefix + key
        values = self.file.fields.get(name)
        if isinstance(values, list):
            values = self.file.get(name, 'a list of numbers')
            if len({*values}) != 1:
                raise self.error(key, values, 'and MPT has one for all layers')
            return values[0]
        if default is None:
            self.file.require(name, 'a number')
        return self.file.get(name, 'a number', default)

    def size(self, key: str, default: Optional[int] = None) -> int:
        value = self.number(key, default)
        if not is_whole(value) or value < 1:
            raise self.error(key, value, 'which is no size')
        return value

    def positive(self, key: str, default: Optional[float] = None) -> float:
        value = self.number(key, default)
        if not 0 < value < math.inf:
            raise self.error(key, value, 'which is not a number above 0')
        return float(value)


def _vocab_size(file: GGUFFile) -> int:
    # Rows are often more than tokens: sizes are padded.
    if EMBEDDING not in file.tensors:
        raise file.error(f'it has no {EMBEDDING}.', GIVE_ORIGINAL)
    return file.tensors[EMBEDDING].shape[0]


def _head_dim(keys: _Keys, config: Mapping[str, Any]) -> int:
    D, n_heads = config['hidden_size'], config['num_attention_heads']
    head_dim = keys.size('attention.key_length', D // n_heads)
    for key in _HEAD_DIMS:
        found = keys.size(key, head_dim)
        if found != head_dim:
            raise keys.error(
                key,
                found,
                f'and the heads have {head_dim} dimensions',
            )
    return head_dim


def _token_ids(file: GGUFFile, vocab_size: int) -> dict[str, Optional[int]]:
    ids = {}
    for name, key in _TOKEN_IDS.items():
        ids[name] = found = file.get(key, 'a whole number')
        if found is not None and not 0 <= found < vocab_size:
            raise file.error(
                f'{key} is {found}, and there are {vocab_size} rows of '
                f'{EMBEDDING}.',
                GIVE_ORIGINAL,
            )
    return ids


def _rope_scaling(
    keys: _Keys,
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


def _linear(keys: _Keys) -> Optional[dict[str, Any]]:
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
