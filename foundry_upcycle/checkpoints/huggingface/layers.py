"""Layers that differ from the others, in both directions.

Qwen's mixtures may have experts in some layers only, and some layers of SmolLM3
have no rope.
"""

from itertools import groupby
from typing import Any, Mapping

from foundry_upcycle.checkpoints.settings import NO_ROPE
from foundry_upcycle.config import is_whole
from foundry_upcycle.errors import ConfigError

__all__ = ['hf_moe_layers', 'hf_ropes', 'mpt_moe_layers', 'mpt_overrides']


def mpt_moe_layers(hf: Mapping[str, Any]) -> dict[str, Any]:
    """``moe_layers`` of a Qwen mixture; empty where all have experts.

    Args:
        hf: Its keys, with transformers' defaults.

    Raises:
        ConfigError: No layer has experts, or MPT can't hold those that are
            dense.
    """
    n_layers, step = hf['num_hidden_layers'], hf['decoder_sparse_step']
    dense = hf['mlp_only_layers'] or []
    if not isinstance(dense, list) or not all(map(is_whole, dense)):
        raise ConfigError(
            'mlp_only_layers',
            dense,
            'it is not a list of whole numbers.',
            'repair config.json.',
        )
    layers = [
        layer for layer in range(n_layers)
        if layer not in dense and (layer + 1) % step == 0
    ]
    if len(layers) == n_layers:
        return {}
    if not layers:
        raise ConfigError(
            'mlp_only_layers',
            dense,
            f'with decoder_sparse_step={step} no layer has experts.',
            'repair config.json.',
        )
    hidden, of_expert = hf['intermediate_size'], hf['moe_intermediate_size']
    if hidden != of_expert:
        raise ConfigError(
            'intermediate_size',
            hidden,
            f'layers without experts are as wide as an expert in MPT, which is '
            f'{of_expert} (moe_intermediate_size).',
            'start from a model in which both are the same.',
        )
    return {'ffn_config.moe_layers': layers}


def hf_moe_layers(mpt: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse."""
    layers = mpt.get('ffn_config.moe_layers')
    every = range(mpt['n_layers'])
    return {
        'decoder_sparse_step': 1,
        'mlp_only_layers': [i for i in every if layers and i not in layers],
        'intermediate_size': mpt['ffn_config.ffn_hidden_size'],
    }


def mpt_overrides(hf: Mapping[str, Any]) -> dict[str, Any]:
    """``block_overrides`` of a SmolLM3; empty where all layers have rope.

    Args:
        hf: Its keys, with transformers' defaults.

    Raises:
        ConfigError: ``no_rope_layers`` is no list of a 0 or 1 for each layer.
    """
    n_layers, ropes = hf['num_hidden_layers'], hf['no_rope_layers']
    if ropes is None:
        step = hf['no_rope_layer_interval']
        ropes = [int((layer + 1) % step != 0) for layer in range(n_layers)]
    is_list = isinstance(ropes, list) and len(ropes) >= n_layers
    if not is_list or not all(is_whole(r) and r in (0, 1) for r in ropes):
        raise ConfigError(
            'no_rope_layers',
            ropes,
            f'it is not a list of a 0 (no rope) or 1 for each of {n_layers} '
            'layers.',
            'repair config.json.',
        )
    if all(ropes[:n_layers]):
        return {}
    return {
        'block_overrides': {
            'order': [{
                'name': 'default' if has_rope else 'no_rope',
                'repeat': len([*layers]),
            } for has_rope, layers in groupby(ropes[:n_layers])],
            'overrides': {
                'no_rope': {
                    'attn_config': {
                        'nope': True,
                    },
                },
            },
        },
    }


def hf_ropes(mpt: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse."""
    overrides = mpt['block_overrides'] or [{}] * mpt['n_layers']
    return {'no_rope_layers': [int(o != NO_ROPE) for o in overrides]}
