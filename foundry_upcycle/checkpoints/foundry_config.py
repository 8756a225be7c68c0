"""What LLM Foundry's ``MPTConfig`` says, without loading LLM Foundry.

Which takes ten times as long as torch does. A test holds each of these to what
Foundry's own classes give.
"""

import copy
from typing import Any, Iterator, Mapping, Sequence

__all__ = [
    'ATTENTION_SETTINGS',
    'CONFIG_DEFAULTS',
    'blocks_in_order',
    'with_defaults',
]

# What ``MPTConfig().to_dict()`` has beside what every config of transformers
# has.
CONFIG_DEFAULTS: Mapping[str, Any] = {
    'd_model': 2048,
    'n_heads': 16,
    'n_layers': 24,
    'head_dim': None,
    'expansion_ratio': 4,
    'max_seq_len': 2048,
    'vocab_size': 50368,
    'resid_pdrop': 0.0,
    'emb_pdrop': 0.0,
    'learned_pos_emb': True,
    'attn_config': {
        'attn_type': 'multihead_attention',
        'attn_pdrop': 0.0,
        'attn_impl': 'flash',
        'qk_ln': False,
        'qk_gn': False,
        'fused_qkv': True,
        'clip_qkv': None,
        'softmax_scale': None,
        'attn_uses_sequence_id': False,
        'sliding_window_size': -1,
        'attn_logit_softcapping': None,
        'alibi': False,
        'alibi_bias_max': 8,
        'rope': False,
        'nope': False,
        'rope_theta': 10000,
        'rope_impl': 'dail',
        'rope_dail_config': {
            'type': 'original',
            'pos_idx_in_fp32': True,
            'xpos_scale_base': 512,
        },
        'rope_hf_config': {
            'type': 'no_scaling',
            'factor': 1.0,
        },
        'attn_temperature_tuning': {
            'floor_scale': 8192,
            'attn_scale': 0.0,
        },
        'kv_dim': None,
    },
    'ffn_config': {
        'ffn_type': 'mptmlp',
    },
    'init_device': 'cpu',
    'logit_scale': None,
    'no_bias': False,
    'attention_bias': None,
    'embedding_fraction': 1.0,
    'norm_type': 'low_precision_layernorm',
    'norm_eps': 1e-05,
    'use_cache': False,
    'init_config': {
        'name': 'kaiming_normal_',
        'fan_mode': 'fan_in',
        'init_nonlinearity': 'relu',
        'init_div_is_residual': True,
        'emb_init_std': None,
        'emb_init_uniform_lim': None,
        'init_std': None,
        'init_gain': 0.0,
    },
    'block_overrides': None,
    'final_logit_softcapping': None,
    'fc_type': {
        'name': 'torch',
    },
    'use_pad_tok_in_ffn': True,
    'tie_word_embeddings': True,
}

# Of ``attn_config``, that its config or its layer reads.
ATTENTION_SETTINGS = frozenset({
    *CONFIG_DEFAULTS['attn_config'],
    'attention_bias',
    'bias',
    'd_model',
    'device',
    'fc_type',
    'head_dim',
    'kv_n_heads',
    'n_heads',
    'norm_eps',
    'norm_type',
    'reuse_kv_layer_idx',
    'reuse_kv_x_layer_idx',
})

_SECTIONS = ('attn_config', 'ffn_config', 'init_config', 'fc_type')


def with_defaults(section: Mapping[str, Any]) -> dict[str, Any]:
    """A ``model`` section as ``MPTConfig`` keeps it, which must accept it.

    Args:
        section: Nested settings, without ``name`` and ``loss_fn``.
    """
    config = copy.deepcopy({**CONFIG_DEFAULTS, **section})
    if isinstance(config['fc_type'], str):
        config['fc_type'] = {'name': config['fc_type']}
    for key in _SECTIONS:
        config[key] = _merge(config[key], CONFIG_DEFAULTS[key])
    config['max_seq_len'] = int(config['max_seq_len'])
    if config['attention_bias'] is None:
        config['attention_bias'] = not config['no_bias']
    if config['attn_config']['alibi'] or config['attn_config']['rope']:
        config['learned_pos_emb'] = False
    config['ffn_config']['fc_type'] = config['fc_type']
    return config


def blocks_in_order(order: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What ``block_overrides.order`` calls each block.

    Raises:
        KeyError, TypeError, ValueError: It is not an order of blocks.
    """
    for item in order:
        if ('name' in item) == ('order' in item):
            raise ValueError(f'{item} has not one of name and order')
        names = [item['name']
                ] if 'name' in item else [*blocks_in_order(item['order'])]
        yield from names * item.get('repeat', 1)


def _merge(
    given: Mapping[str, Any] | None,
    defaults: Mapping[str, Any],
) -> dict[str, Any]:
    """What is given, and defaults for the rest, at each depth."""
    merged = dict(given or {})
    for key, default in defaults.items():
        if isinstance(default, Mapping):
            merged[key] = _merge(merged.get(key), default)
        else:
            merged.setdefault(key, default)
    return copy.deepcopy(merged)
