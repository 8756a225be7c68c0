"""Hugging Face ``config.json`` to the MPT ``model`` section."""

import warnings
from typing import Any, Mapping, Optional

from foundry_upcycle.checkpoints.base import nest
from foundry_upcycle.checkpoints.huggingface.architectures import (
    ACTIVATION_ALIASES,
    ACTIVATIONS,
    NORMALIZE,
    OTHER_KEYS,
    ROPE_TYPES,
    Architecture,
    accepted_activations,
    get_architecture,
)
from foundry_upcycle.checkpoints.huggingface.checks import (
    check_experts,
    check_keys,
    check_kind,
    check_kinds,
    check_sizes,
)
from foundry_upcycle.checkpoints.huggingface.folding import (
    logit_scale,
    multipliers,
)
from foundry_upcycle.checkpoints.huggingface.layers import (
    mpt_moe_layers,
    mpt_overrides,
)
from foundry_upcycle.checkpoints.huggingface.own import MPT, own_section
from foundry_upcycle.errors import ConfigError, UpcyclingWarning

__all__ = ['to_mpt']


def to_mpt(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """The MPT ``model`` section that computes what a Hugging Face model does.

    Args:
        hf_config: The content of ``config.json``, of transformers 4 or 5. A
            missing key has transformers' default for the architecture.

    Returns:
        Nested settings, without ``name``, ``loss_fn`` and ``init_device``.

    Raises:
        ConfigError: MPT can't express the model.
    """
    if hf_config.get('model_type') == MPT:
        return own_section(hf_config)
    architecture = get_architecture(hf_config.get('model_type'))
    hf = _read(hf_config, architecture)
    mpt = {key: hf[name] for name, key in architecture.all_fields.items()}
    mpt |= architecture.all_settings | _mpt_heads(hf) | {
        'logit_scale': _mpt_logit_scale(hf_config, hf, architecture),
        'attn_config.attn_type': 'grouped_query_attention',
        'attn_config.attn_impl': 'torch',
        'attn_config.rope_impl': 'hf',
        'attn_config.rope_hf_config': _mpt_rope(hf),
        'attn_config.sliding_window_size': _mpt_window(hf),
        'ffn_config.ffn_act_fn': _mpt_activation(hf, architecture),
    }
    if mpt['attn_config.qk_gn']:
        # Foundry does not forward the model's norm to the attention.
        mpt['attn_config.norm_type'] = mpt['norm_type']
        mpt['attn_config.norm_eps'] = mpt['norm_eps']
    if 'norm_topk_prob' in hf:
        mpt[NORMALIZE] = 1 if hf['norm_topk_prob'] else None
    if architecture.has_dense_layers:
        mpt |= mpt_moe_layers(hf)
    if architecture.has_layers_without_rope:
        mpt |= mpt_overrides(hf)
    return nest(mpt)


def _read(
    given: Mapping[str, Any],
    architecture: Architecture,
) -> dict[str, Any]:
    """The settings that count, checked, with transformers' defaults."""
    if 'num_experts' in architecture.fields and 'num_local_experts' in given:
        # Transformers 5 saves it under Mixtral's name.
        given = {'num_experts': given['num_local_experts'], **given}
        del given['num_local_experts']
    known = {*_in_transformers(architecture, given, {}), *OTHER_KEYS}
    check_keys(given, known, architecture)
    wanted = known & {
        *architecture.all_fields,
        *architecture.window_keys,
        *architecture.layer_keys,
        *('head_dim', 'hidden_act', 'hidden_activation', 'norm_topk_prob'),
    }
    rope = _given_rope(given)
    if 'rope_theta' in rope:
        given = {**given, 'rope_theta': rope['rope_theta']}
    said = {k: v for k, v in given.items() if v is not None}
    check_sizes(said)
    check_kinds(said)
    chosen = {k: v for k, v in given.items() if k in wanted}
    # Some defaults follow from other keys, so transformers itself sets them.
    hf = _in_transformers(architecture, given, chosen)
    hf = {key: hf[key] for key in wanted if key in hf}
    check_sizes({k: v for k, v in hf.items() if k != 'head_dim'})
    check_kinds(hf)
    check_experts(hf)
    return {**hf, 'rope': rope, 'layer_types': _layer_types(given)}


def _in_transformers(
    architecture: Architecture,
    given: Mapping[str, Any],
    chosen: Mapping[str, Any],
) -> dict[str, Any]:
    """All keys of an architecture, of which some are chosen."""
    from transformers.models.auto.configuration_auto import AutoConfig

    model_type = architecture.config_of or given['model_type']
    keys = {**architecture.defaults, **chosen}
    return AutoConfig.for_model(model_type, **keys).to_dict()


def _layer_types(given: Mapping[str, Any]) -> Optional[list[str]]:
    layers = given.get('layer_types')
    is_list = isinstance(layers, list) and all(
        isinstance(layer, str) for layer in layers
    )
    if layers is not None and not is_list:
        raise ConfigError(
            'layer_types',
            layers,
            'it is not a list of texts.',
            'repair config.json.',
        )
    return layers


def _given_rope(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of ``rope_parameters`` (transformers 5) or ``rope_scaling``."""
    key = 'rope_parameters' if given.get('rope_parameters') else 'rope_scaling'
    rope = given.get(key) or {}
    if not isinstance(rope, Mapping):
        raise ConfigError(
            key, rope, 'it is not a mapping.', 'repair config.json.'
        )
    rope = dict(rope)
    kind = rope.pop('type', None)
    kind = rope.pop('rope_type', None) or kind or 'default'
    if not isinstance(kind, str) or kind not in ROPE_TYPES:
        raise ConfigError(
            f'{key}.rope_type',
            kind,
            'MPT does not compute this scaling of rotary positions.',
            f'start from a model with one of {", ".join(ROPE_TYPES)}.',
        )
    needed = {*ROPE_TYPES[kind][1]}
    if rope.get('partial_rotary_factor') == 1:
        del rope['partial_rotary_factor']
    # An unscaled rope has no factor to apply.
    ignored = {'rope_theta', *(('factor', ) if kind == 'default' else ())}
    for name in sorted(needed ^ (rope.keys() - ignored)):
        raise ConfigError(
            f'{key}.{name}',
            rope.get(name),
            f'rope type {kind} needs {", ".join(sorted(needed)) or "nothing"}'
            ', and MPT knows nothing else.',
            'complete config.json, or start from another model.',
        )
    for name in sorted(needed):
        check_kind(f'{key}.{name}', rope[name], 'a number above 0')
    return {'rope_type': kind, **rope}


def _mpt_rope(hf: Mapping[str, Any]) -> dict[str, Any]:
    mpt_type, names = ROPE_TYPES[hf['rope']['rope_type']]
    values = {name: hf['rope'][name] for name in names}
    return {'type': mpt_type, **(values or {'factor': 1.0})}


def _mpt_heads(hf: Mapping[str, Any]) -> dict[str, Any]:
    D, n_heads = hf['hidden_size'], hf['num_attention_heads']
    if D % n_heads:
        # MPTConfig asks for it even where head_dim is set.
        raise ConfigError(
            'num_attention_heads',
            n_heads,
            f'MPT needs a hidden_size that it divides, not {D}.',
            'start from another model.',
        )
    head_dim = hf.get('head_dim') or D // n_heads
    heads = {
        # Foundry splits a fused Wqkv as if the queries had D channels, and
        # its default scale is 1 / sqrt(D / n_heads).
        'attn_config.fused_qkv': head_dim == D // n_heads,
        'attn_config.softmax_scale': head_dim**-0.5,
    }
    if head_dim != D // n_heads:
        heads['head_dim'] = head_dim
    return heads


def _mpt_logit_scale(
    hf_config: Mapping[str, Any],
    hf: Mapping[str, Any],
    architecture: Architecture,
) -> Any:
    is_tied = hf['tie_word_embeddings']
    numbers = multipliers(hf_config)
    if not numbers:
        return architecture.logit_scale(is_tied)
    scale = logit_scale(numbers, is_tied)
    return None if scale == 1 else scale


def _mpt_window(hf: Mapping[str, Any]) -> int:
    """MPT counts the tokens before, transformers the token itself as well."""
    width = hf.get('sliding_window')
    if not hf.get('use_sliding_window', True):
        width = None
    n_full = hf.get('max_window_layers', 0)
    kinds = set(hf['layer_types'] or ())
    if not kinds and (width is None or n_full >= hf['num_hidden_layers']):
        kinds = {'full_attention'}
    elif not kinds and n_full <= 0:
        kinds = {'sliding_attention'}
    if kinds == {'full_attention'}:
        return -1
    if kinds == {'sliding_attention'} and isinstance(width, int) and width > 0:
        return width - 1
    key = 'layer_types' if kinds else 'max_window_layers'
    raise ConfigError(
        key,
        hf[key],
        f'with sliding_window={width!r}, layers would differ in attention, '
        'or have no window.',
        'start from a model with the same attention in all layers.',
    )


def _mpt_activation(
    hf: Mapping[str, Any],
    architecture: Architecture,
) -> dict[str, str]:
    name = ACTIVATION_ALIASES.get(hf['hidden_act'], hf['hidden_act'])
    accepted = accepted_activations(architecture)
    if architecture.is_gemma and name == 'gelu':
        # Gemma's first config.json says so; it was trained with tanh.
        warnings.warn(
            "hidden_act='gelu' of a Gemma is taken for gelu_pytorch_tanh, with "
            'which Gemma was trained; transformers may compute the other.',
            UpcyclingWarning,
            stacklevel=2,
        )
        name = 'gelu_pytorch_tanh'
    # Of Gemma's two keys transformers reads one, vLLM the other.
    if name not in accepted or hf.get('hidden_activation') not in (None, name):
        raise ConfigError(
            'hidden_act',
            hf['hidden_act'],
            f'this architecture is served, or MPT can compute, only with '
            f'{" or ".join(accepted)}; hidden_activation may not differ.',
            'correct config.json if the model was trained so, or start from '
            'another model.',
        )
    function, approximate = ACTIVATIONS[name]
    if approximate is None:
        return {'name': function}
    return {'name': function, 'approximate': approximate}
