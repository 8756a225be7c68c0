"""A GGUF file's metadata to the ``config.json`` that it was made from."""

from pathlib import Path
from typing import Any, Mapping, Optional

import torch

from foundry_upcycle.checkpoints.huggingface.architectures import (
    ARCHITECTURES,
    missing_feature,
)
from foundry_upcycle.checkpoints.huggingface.gguf_container import GIVE_ORIGINAL
from foundry_upcycle.checkpoints.huggingface.gguf_file import GGUFFile
from foundry_upcycle.checkpoints.huggingface.gguf_rope import (
    ROPE_KEYS,
    rope_scaling,
)
from foundry_upcycle.checkpoints.huggingface.gguf_settings import GGUFSettings

__all__ = [
    'EMBEDDING',
    'HEAD',
    'read_hf_config',
    'write_configs',
]

EMBEDDING = 'token_embd.weight'
HEAD = 'output.weight'

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
    *(_KV_HEADS, _NORM_EPS, _ROPE_BASE),
    *ROPE_KEYS,
    *_HEAD_DIMS,
    *_HARMLESS,
}

_TOKEN_IDS = {
    'bos_token_id': 'tokenizer.ggml.bos_token_id',
    'eos_token_id': 'tokenizer.ggml.eos_token_id',
    'pad_token_id': 'tokenizer.ggml.padding_token_id',
}


def read_hf_config(file: GGUFFile) -> dict[str, Any]:
    """What ``config.json`` of the model in a GGUF file would say.

    Raises:
        CheckpointError: The metadata has a setting, or lacks one, without
            which the model would compute something else.
    """
    architecture = _architecture(file)
    keys = GGUFSettings(file, f'{architecture}.')
    _refuse_others(keys)
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
    config['rope_scaling'] = rope_scaling(keys, config, head_dim)
    return config | _token_ids(file, config['vocab_size'])


def write_configs(hf_config: Mapping[str, Any], folder: Path) -> None:
    """Writes ``config.json`` and ``generation_config.json``."""
    from transformers.generation.configuration_utils import GenerationConfig
    from transformers.models.auto.configuration_auto import AutoConfig

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
        reason = f'it cannot be carried over: {feature}'
    else:
        reason = 'this architecture is not known'
    raise file.error(
        f'general.architecture is {name!r}; {reason}.',
        GIVE_ORIGINAL if other in ARCHITECTURES else f'use a model of {known}.',
    )


def _refuse_others(keys: GGUFSettings) -> None:
    """Refuses what would be left out without a word."""
    for name, value in keys.file.fields.items():
        key = name.removeprefix(keys.prefix)
        if key == name or key in _KNOWN or (key, value) in _OFF.items():
            continue
        raise keys.error(
            key,
            value,
            'and mixtures of experts are not read from GGUF files'
            if key.startswith('expert') else
            'and nothing is known that computes it',
        )


def _vocab_size(file: GGUFFile) -> int:
    # Rows are often more than tokens: sizes are padded.
    if EMBEDDING not in file.tensors:
        raise file.error(f'it has no {EMBEDDING}.', GIVE_ORIGINAL)
    return file.tensors[EMBEDDING].shape[0]


def _head_dim(keys: GGUFSettings, config: Mapping[str, Any]) -> int:
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
