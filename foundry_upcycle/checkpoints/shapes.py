"""The parameters of an MPT and their shapes, of its config.

Said here of the settings that most models have; LLM Foundry, which takes ten
times as long to load as torch, is asked of the others, and of what it refuses.
"""

from typing import Any, Iterator, Mapping, Optional

from foundry_upcycle.checkpoints.base import nest
from foundry_upcycle.checkpoints.foundry_config import (
    ATTENTION_SETTINGS,
    CONFIG_DEFAULTS,
    with_defaults,
)
from foundry_upcycle.config import (
    is_number,
    is_whole,
    partial_moe_layers,
    resolve_ffn_hidden_size,
)
from foundry_upcycle.models.ffn import build_upcycled_dmoe

__all__ = ['parameter_shapes']

_Shapes = dict[str, tuple[int, ...]]

_SIZES = frozenset({
    'd_model',
    'max_seq_len',
    'n_heads',
    'n_layers',
    'vocab_size',
})
_FLAGS = frozenset({
    'attention_bias',
    'learned_pos_emb',
    'no_bias',
    'tie_word_embeddings',
    'use_cache',
})
_ATTENTION_FLAGS = frozenset({'fused_qkv', 'qk_gn', 'qk_ln', 'rope'})
# Looked at one by one, or of no matter; the others have their defaults.
_FREE = frozenset({
    'attn_config',
    'expansion_ratio',
    'ffn_config',
    'head_dim',
    'init_config',
    'init_device',
    'logit_scale',
    'norm_eps',
    'norm_type',
})
_FREE_ATTENTION = frozenset({
    'attn_impl',
    'attn_type',
    'clip_qkv',
    'rope_dail_config',
    'rope_hf_config',
    'rope_impl',
    'rope_theta',
    'sliding_window_size',
    'softmax_scale',
})
_DENSE_FFN = {'fc_type', 'ffn_act_fn', 'ffn_hidden_size', 'ffn_type'}
_ACTIVATIONS: tuple[Optional[dict[str, str]], ...] = (
    None,
    {
        'name': 'relu'
    },
    {
        'name': 'silu'
    },
    {
        'name': 'gelu'
    },
    {
        'name': 'gelu',
        'approximate': 'none'
    },
    {
        'name': 'gelu',
        'approximate': 'tanh'
    },
)
# Whether a norm has a bias.
_HAS_BIAS = {
    'layernorm': True,
    'low_precision_layernorm': True,
    'rmsnorm': False,
    'low_precision_rmsnorm': False,
}
# Type of rope -> the numbers that it needs.
_ROPE_KEYS = {
    'no_scaling': (),
    'linear': ('factor', ),
    'dynamic': ('factor', ),
    'llama3': (
        'factor',
        'low_freq_factor',
        'high_freq_factor',
        'original_max_position_embeddings',
    ),
}


def parameter_shapes(model_config: Mapping[str, Any]) -> _Shapes:
    """Every parameter of a model and its shape, as checkpoints name them.

    Args:
        model_config: Of a dense or upcycled MPT, keys joined by dots.
    """
    config = _plain(nest(model_config))
    if config is None:
        from foundry_upcycle.checkpoints.empty import empty_model
        model = empty_model(model_config)
        shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    else:
        shapes = dict(_parameters(config))
    return {f'model.{name}': shape for name, shape in shapes.items()}


def _plain(section: Mapping[str, Any]) -> Optional[dict[str, Any]]:
    """The complete config, if it is one that is described here."""
    try:
        config = with_defaults(section)
        is_plain = _is_plain(config)
    # Whatever this is, Foundry says it in words.
    except Exception:
        return None
    return config if is_plain else None


def _is_plain(config: Mapping[str, Any]) -> bool:
    attn = config['attn_config']
    of_attention = CONFIG_DEFAULTS['attn_config']
    return (
        all(_is_size(config[key]) for key in _SIZES)
        and all(isinstance(config[key], bool) for key in _FLAGS)
        and all(isinstance(attn[key], bool) for key in _ATTENTION_FLAGS)
        and _is_default(config, CONFIG_DEFAULTS, _FREE | _SIZES | _FLAGS)
        and _is_default(attn, of_attention, _FREE_ATTENTION | _ATTENTION_FLAGS)
        and attn.keys() <= ATTENTION_SETTINGS
        and not config.get('fuse_norm_attn_norm')
        and config['init_config']['name'] is not None
        and config['logit_scale'] in (None, 'inv_sqrt_d_model') and -1 <
        (config.get('pad_token_id') or 0) < config['vocab_size']
        and _is_plain_norm(config) and _is_plain_norm({
            **config,
            **attn
        }) and _is_plain_attention(config) and _is_plain_ffn(config)
    )


def _is_size(value: Any) -> bool:
    return is_whole(value) and value > 0


def _is_default(
    section: Mapping[str, Any],
    defaults: Mapping[str, Any],
    free: frozenset[str],
) -> bool:
    return all(section[key] == defaults[key] for key in defaults.keys() - free)


def _is_plain_norm(settings: Mapping[str, Any]) -> bool:
    return settings['norm_type'] in _HAS_BIAS and is_number(
        settings['norm_eps']
    )


def _is_plain_attention(config: Mapping[str, Any]) -> bool:
    attn, n_heads = config['attn_config'], config['n_heads']
    kv_n_heads = _kv_n_heads(config)
    has_plain_rope = not attn['rope'] or (
        is_number(attn['rope_theta']) and attn['rope_theta'] > 0
        and attn['rope_impl'] in ('dail', 'hf') and all(
            is_number(attn['rope_hf_config'].get(key))
            for key in _ROPE_KEYS[attn['rope_hf_config']['type']]
        )
    )
    return (
        has_plain_rope and config['d_model'] % n_heads == 0
        and (config['head_dim'] is None or _is_size(config['head_dim']))
        and kv_n_heads is not None and n_heads % kv_n_heads == 0
        and not (attn['qk_ln'] and attn['qk_gn'])
    )


def _kv_n_heads(config: Mapping[str, Any]) -> Optional[int]:
    """Heads for keys and values; None where that is no plain setting."""
    attn = config['attn_config']
    given = attn.get('kv_n_heads')
    if attn['attn_type'] == 'grouped_query_attention':
        return given if _is_size(given) else None
    of_type = {
        'multihead_attention': config['n_heads'],
        'multiquery_attention': 1,
    }
    # The others take no number of them.
    return None if 'kv_n_heads' in attn else of_type.get(attn['attn_type'])


def _is_plain_ffn(config: Mapping[str, Any]) -> bool:
    ffn = config['ffn_config']
    if ffn['ffn_type'] == 'upcycled_dmoe':
        return True  # Its builder refuses what it can't use.
    return (
        _dense_kind(ffn) in ('mptglu', 'mptmlp') and ffn.keys() <= _DENSE_FFN
        and ffn.get('ffn_act_fn') in _ACTIVATIONS
        and _is_size(_hidden_size(config))
    )


def _dense_kind(ffn: Mapping[str, Any]) -> str:
    """The type of the blocks' FFNs that are no mixtures of experts."""
    if ffn['ffn_type'] == 'upcycled_dmoe':
        return f'mpt{ffn.get("mlp_type", "glu")}'
    return ffn['ffn_type']


def _hidden_size(config: Mapping[str, Any]) -> int:
    return resolve_ffn_hidden_size(
        config['d_model'],
        config['expansion_ratio'],
        config['ffn_config'].get('ffn_hidden_size'),
    )


def _parameters(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple]]:
    D, V = config['d_model'], config['vocab_size']
    yield 'transformer.wte.weight', (V, D)
    if config['learned_pos_emb']:
        yield 'transformer.wpe.weight', (config['max_seq_len'], D)
    experts = _expert_layers(config)
    attention = dict(_attention(config))
    for i in range(config['n_layers']):
        block = f'transformer.blocks.{i}'
        yield from _norm(f'{block}.norm_1', config, D)
        for name, shape in attention.items():
            yield f'{block}.attn.{name}', shape
        yield from _norm(f'{block}.norm_2', config, D)
        for name, shape in experts.get(i, _dense_ffn(config)).items():
            yield f'{block}.ffn.{name}', shape
    yield from _norm('transformer.norm_f', config, D)
    if not config['tie_word_embeddings']:
        yield 'lm_head.weight', (V, D)


def _norm(
    name: str,
    config: Mapping[str, Any],
    size: int,
    norm_type: str = '',
) -> Iterator[tuple[str, tuple]]:
    yield f'{name}.weight', (size, )
    if _HAS_BIAS[norm_type or config['norm_type']] and not config['no_bias']:
        yield f'{name}.bias', (size, )


def _linear(
    name: str,
    n_out: int,
    n_in: int,
    bias: bool,
) -> Iterator[tuple[str, tuple]]:
    yield f'{name}.weight', (n_out, n_in)
    if bias:
        yield f'{name}.bias', (n_out, )


def _attention(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple]]:
    attn, D = config['attn_config'], config['d_model']
    H = config['head_dim'] or D // config['n_heads']
    n_kv = _kv_n_heads(config)
    assert n_kv is not None  # As it is plain.
    Q, K = H * config['n_heads'], H * n_kv
    sizes = {'Wqkv': Q + 2 * K}
    if not attn['fused_qkv']:
        sizes = {'Wq': Q, 'Wk': K, 'Wv': K}
    for name, size in sizes.items():
        yield from _linear(name, size, D, config['attention_bias'])
    if attn['qk_ln'] or attn['qk_gn']:
        kind = attn.get('norm_type', 'low_precision_layernorm')
        for name, size in (('q_ln', Q), ('k_ln', K)):
            yield from _norm(name, config, H if attn['qk_gn'] else size, kind)
    yield from _linear('out_proj', D, Q, not config['no_bias'])


def _dense_ffn(config: Mapping[str, Any]) -> _Shapes:
    D, F, bias = config['d_model'], _hidden_size(config), not config['no_bias']
    is_glu = _dense_kind(config['ffn_config']) == 'mptglu'
    return dict([
        *_linear('up_proj', F, D, bias),
        *_linear('down_proj', D, F, bias),
        *(_linear('gate_proj', F, D, bias) if is_glu else ()),
    ])


def _expert_layers(config: Mapping[str, Any]) -> dict[int, _Shapes]:
    """Parameters of the blocks that are mixtures of experts."""
    ffn = dict(config['ffn_config'])
    if ffn.pop('ffn_type') != 'upcycled_dmoe':
        return {}
    layers = partial_moe_layers(ffn.pop('moe_layers', None), config['n_layers'])
    mixture = build_upcycled_dmoe(
        d_model=config['d_model'],
        expansion_ratio=config['expansion_ratio'],
        device='meta',
        **ffn,
    )
    shapes = {n: tuple(p.shape) for n, p in mixture.named_parameters()}
    return dict.fromkeys(layers or range(config['n_layers']), shapes)
