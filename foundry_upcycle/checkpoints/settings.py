"""The settings of an MPT, complete, and each function in one spelling."""

import math
from contextlib import contextmanager
from inspect import signature
from typing import Any, Iterator, Mapping, Optional

from foundry_upcycle.checkpoints.base import Checkpoint, flatten, nest
from foundry_upcycle.checkpoints.foundry_config import (
    blocks_in_order,
    with_defaults,
)
from foundry_upcycle.config import (
    MOE_FFN_TYPES,
    is_number,
    partial_moe_layers,
    resolve_ffn_hidden_size,
)
from foundry_upcycle.errors import CheckpointError, ConfigError, shown
from foundry_upcycle.models.ffn import build_upcycled_dmoe

__all__ = ['NO_ROPE', 'complete', 'config_of', 'require_mpt']

# What a block without rope overrides, beside blocks that have it.
NO_ROPE = {'attn_config.nope': True}

# Mappings that count as one value.
_WHOLE = ('attn_config.rope_hf_config', 'ffn_config.ffn_act_fn')


def complete(mpt_config: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of an MPT, keys joined by dots.

    What is missing has Foundry's default (a config that an older Foundry saved
    lacks what has come since), and different spellings of the same function
    become one: ``low_precision_rmsnorm`` and ``rmsnorm``, multi-head attention
    and grouped queries with all heads, no softmax scale and the default one,
    the three mixtures of experts, ``moe_layers`` that lists all blocks and
    none. ``block_overrides`` becomes a list of what each block overrides, keys
    joined by dots, or None where none does.

    Args:
        mpt_config: Nested settings.

    Raises:
        ConfigError: ``ffn_config.moe_layers`` or ``block_overrides`` can't be
            used.
    """
    given = flatten(mpt_config)
    mpt = {**flatten(with_defaults({})), **given}
    if given.get('attention_bias') is None:
        mpt['attention_bias'] = not mpt['no_bias']
    if mpt['attn_config.rope']:
        mpt['learned_pos_emb'] = False  # As MPTConfig does.
    # The attention has defaults of its own.
    mpt.setdefault('attn_config.norm_type', 'low_precision_layernorm')
    mpt.setdefault('attn_config.norm_eps', 1e-5)
    for key in ('norm_type', 'attn_config.norm_type'):
        norm = mpt[key].lower().removeprefix('low_precision_')
        mpt[key] = norm.removeprefix('triton_')
    mpt['logit_scale'] = _logit_scale(mpt)
    for key in _WHOLE:
        mpt[key] = _take_below(mpt, key)
    if mpt['attn_config.rope_impl'] == 'dail':
        # It reads no rope_hf_config.
        mpt['attn_config.rope_hf_config'] = {
            'type': 'no_scaling',
            'factor': 1.0
        }
    mpt |= _attention(mpt) | _ffn(mpt)
    _take_below(mpt, 'block_overrides')
    mpt['block_overrides'] = _overrides(mpt_config.get('block_overrides'), mpt)
    return mpt


def require_mpt(checkpoint: Checkpoint) -> dict[str, Any]:
    """The complete settings of a checkpoint that says what it is.

    Raises:
        CheckpointError: It carries no config, or that of no MPT.
    """
    if not checkpoint.model_config:
        raise CheckpointError(
            checkpoint.path,
            'it carries no model config, so what its tensors compute is not '
            'known.',
            'save it with Composer (save_weights_only: true will do), or '
            'upcycle it in a run, whose YAML has a model section: the callback '
            'sparse_upcycling.',
        )
    kind = checkpoint.model_config.get('model_type', 'mpt')
    if kind != 'mpt':
        raise CheckpointError(
            checkpoint.path,
            f'it is a Composer checkpoint of a {kind}, not of an MPT.',
            'save that model as a Hugging Face folder, and import it.',
        )
    n_layers: Any = checkpoint.model_config.get('n_layers')
    # Before that many are built.
    if is_number(n_layers) and n_layers > len(checkpoint.tensors):
        raise CheckpointError(
            checkpoint.path,
            f'it has {len(checkpoint.tensors)} tensors, and its config says '
            f'{shown(n_layers)} layers.',
            'copy it again, or save it again with Composer.',
        )
    with config_of(checkpoint):
        return complete(nest(checkpoint.model_config))


@contextmanager
def config_of(checkpoint: Checkpoint) -> Iterator[None]:
    """Says of which checkpoint a config is that makes libraries fail.

    Raises:
        CheckpointError: The body raised what is no error of ours.
    """
    try:
        yield
    except (CheckpointError, ConfigError):
        raise
    # Foundry checks little of a config: odd values raise almost anything.
    except Exception as error:
        raise CheckpointError(
            checkpoint.path,
            f'its model config is of no MPT ({type(error).__name__}: {error}).',
            'copy it again, or save it again with Composer.',
        ) from error


def _take_below(flat: dict[str, Any], name: str) -> dict[str, Any]:
    """Takes the mapping of this name out of flat settings."""
    keys = [key for key in flat if key.startswith(f'{name}.')]
    return {key.removeprefix(f'{name}.'): flat.pop(key) for key in keys}


def _logit_scale(mpt: Mapping[str, Any]) -> Any:
    scale = mpt['logit_scale']
    if not isinstance(scale, (int, float)):
        return scale
    if math.isclose(scale, mpt['d_model']**-0.5, rel_tol=1e-6):
        return 'inv_sqrt_d_model'
    return None if scale == 1 else scale


def _attention(mpt: Mapping[str, Any]) -> dict[str, Any]:
    D, n_heads = mpt['d_model'], mpt['n_heads']
    scale = mpt['attn_config.softmax_scale']
    kv_n_heads = {'multihead_attention': n_heads, 'multiquery_attention': 1}
    return {
        'head_dim':
        mpt['head_dim'] or D // n_heads,
        'attn_config.softmax_scale':
        (D / n_heads)**-0.5 if scale is None else scale,
        'attn_config.kv_n_heads':
        kv_n_heads.get(
            mpt['attn_config.attn_type'],
            mpt.get('attn_config.kv_n_heads'),
        ),
    }


def _ffn(mpt: Mapping[str, Any]) -> dict[str, Any]:
    ffn = {
        'ffn_config.ffn_act_fn':
        _activation(mpt),
        'ffn_config.ffn_hidden_size':
        resolve_ffn_hidden_size(
            mpt['d_model'],
            mpt['expansion_ratio'],
            mpt.get('ffn_config.ffn_hidden_size'),
        ),
    }
    ffn_type = mpt['ffn_config.ffn_type']
    if ffn_type == 'upcycled_dmoe':
        parameters = signature(build_upcycled_dmoe).parameters.values()
        defaults = {f'ffn_config.{p.name}': p.default for p in parameters}
        ffn['ffn_config.moe_layers'] = _moe_layers(mpt)
        return {**defaults, **_section(mpt), **ffn}
    if ffn_type in MOE_FFN_TYPES:
        ffn['ffn_config.ffn_type'] = 'upcycled_dmoe'
    return ffn


def _overrides(
    given: Any,
    mpt: Mapping[str, Any],
) -> Optional[list[dict[str, Any]]]:
    """What each block overrides; a value that all blocks have overrides none.

    Raises:
        ConfigError: Its order is not one of all blocks.
    """
    if given is None:
        return None
    try:
        named = {'default': {}, **given['overrides']}
        order = [*blocks_in_order(given['order'])]
        blocks = [flatten(named[i]) for i in order * given.get('repeat', 1)]
    except (AttributeError, KeyError, TypeError, ValueError):
        blocks = []
    if len(blocks) != mpt['n_layers']:
        raise ConfigError(
            'model.block_overrides',
            given,
            f'it does not say what each of {mpt["n_layers"]} blocks overrides.',
            'repair its order and overrides, or remove it.',
        )
    each = [{
        k: v
        for k, v in block.items()
        if mpt.get(k) != v
    }
            for block in blocks]
    return each if any(each) else None


def _section(mpt: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in mpt.items() if k.startswith('ffn_config.')}


def _moe_layers(mpt: Mapping[str, Any]) -> Optional[list[int]]:
    layers = mpt.get('ffn_config.moe_layers')
    partial = partial_moe_layers(layers, mpt['n_layers'])
    return None if partial is None else [*partial]


def _activation(mpt: Mapping[str, Any]) -> dict[str, Any]:
    activation = mpt['ffn_config.ffn_act_fn']
    if not activation:
        # MegaBlocks' default is not Foundry's.
        is_megablocks = mpt['ffn_config.ffn_type'] == 'mb_dmoe'
        approximate = 'tanh' if is_megablocks else 'none'
        return {'name': 'gelu', 'approximate': approximate}
    if activation['name'] == 'gelu':
        return {'approximate': 'none', **activation}
    return activation
