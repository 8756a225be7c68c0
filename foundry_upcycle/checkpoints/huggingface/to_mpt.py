"""Hugging Face ``config.json`` to the MPT ``model`` section."""

import math
import warnings
from typing import Any, Callable, Mapping, Optional

from transformers.models.auto.configuration_auto import AutoConfig

from foundry_upcycle.checkpoints.base import nest
from foundry_upcycle.checkpoints.huggingface.architectures import (
    ACTIVATION_ALIASES,
    ACTIVATIONS,
    KINDS,
    NORMALIZE,
    OTHER_KEYS,
    ROPE_TYPES,
    SIZES,
    Architecture,
    accepted_activations,
    get_architecture,
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
from foundry_upcycle.checkpoints.huggingface.refused import REFUSED
from foundry_upcycle.config import is_number, is_whole
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
    _check_keys(given, known, architecture)
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
    _check_sizes(said)
    _check_kinds(said)
    chosen = {k: v for k, v in given.items() if k in wanted}
    # Some defaults follow from other keys, so transformers itself sets them.
    hf = _in_transformers(architecture, given, chosen)
    hf = {key: hf[key] for key in wanted if key in hf}
    _check_sizes({k: v for k, v in hf.items() if k != 'head_dim'})
    _check_kinds(hf)
    _check_experts(hf)
    return {**hf, 'rope': rope, 'layer_types': _layer_types(given)}


def _in_transformers(
    architecture: Architecture,
    given: Mapping[str, Any],
    chosen: Mapping[str, Any],
) -> dict[str, Any]:
    """All keys of an architecture, of which some are chosen."""
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
            'it is no list of texts.',
            'repair config.json.',
        )
    return layers


def _check_keys(
    given: Mapping[str, Any],
    known: set[str],
    architecture: Architecture,
) -> None:
    refused = {**REFUSED, **architecture.refused}
    for key, (accepted, feature) in refused.items():
        value = given.get(key)
        if key in known and value is not None and value != accepted:
            raise ConfigError(
                key,
                value,
                f'{feature}, which MPT does not have.',
                'start from a model without that.',
            )
    # What the architecture does not know, and says that it has not, is no news.
    absent = {key: accepted for key, (accepted, _) in refused.items()}
    unknown = sorted(
        key for key in given.keys() - known
        if given[key] is not None and given[key] != absent.get(key)
    )
    if unknown:
        warnings.warn(
            f'config.json has {", ".join(unknown)}, which transformers '
            f'{given["model_type"]} does not know: ignored.',
            UpcyclingWarning,
            stacklevel=4,  # The caller of to_mpt.
        )


def _check_sizes(hf: Mapping[str, Any]) -> None:
    for key in sorted(SIZES & hf.keys()):
        value = hf[key]
        if not is_whole(value) or value < 1:
            raise ConfigError(
                key,
                value,
                'it is a size or a number of things.',
                'set it to a whole number from 1.',
            )


_IS_KIND: Mapping[str, Callable[[Any], bool]] = {
    'a number above 0': lambda v: is_number(v) and 0 < v < math.inf,
    'a share from 0 to 1': lambda v: is_number(v) and 0 <= v <= 1,
    'a whole number from 0': lambda v: is_whole(v) and v >= 0,
    'true or false': lambda v: isinstance(v, bool),
    'a text': lambda v: isinstance(v, str),
}


def _check_kinds(hf: Mapping[str, Any]) -> None:
    for kind, keys in KINDS.items():
        for key in sorted(keys & hf.keys()):
            if not _IS_KIND[kind](hf[key]):
                raise ConfigError(
                    key,
                    hf[key],
                    f'it is not {kind}.',
                    'repair config.json.',
                )


def _check_experts(hf: Mapping[str, Any]) -> None:
    top_k = hf.get('num_experts_per_tok', 1)
    experts = hf.get('num_local_experts', hf.get('num_experts', top_k))
    if top_k > experts:
        raise ConfigError(
            'num_experts_per_tok',
            top_k,
            f'there are {experts} experts.',
            'repair config.json.',
        )


def _given_rope(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of ``rope_parameters`` (transformers 5) or ``rope_scaling``."""
    key = 'rope_parameters' if given.get('rope_parameters') else 'rope_scaling'
    rope = given.get(key) or {}
    if not isinstance(rope, Mapping):
        raise ConfigError(key, rope, 'it is no mapping.', 'repair config.json.')
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
        kind_of_value = 'a number above 0'
        if not _IS_KIND[kind_of_value](rope[name]):
            raise ConfigError(
                f'{key}.{name}',
                rope[name],
                f'it is not {kind_of_value}.',
                'repair config.json.',
            )
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
