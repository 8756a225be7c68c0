"""MPT's own Hugging Face folders, as Foundry's ``hf_checkpointer`` writes them.

``config.json`` holds MPT's settings, and the tensors have MPT's names.
"""

import copy
from inspect import signature
from typing import Any, Mapping

from foundry_upcycle.checkpoints.base import flatten
from foundry_upcycle.checkpoints.foundry_config import (
    ATTENTION_SETTINGS,
    CONFIG_DEFAULTS,
)
from foundry_upcycle.checkpoints.settings import complete
from foundry_upcycle.checkpoints.shapes import parameter_shapes
from foundry_upcycle.config import MOE_FFN_TYPES, is_whole
from foundry_upcycle.errors import ConfigError
from foundry_upcycle.models.ffn import build_upcycled_dmoe

__all__ = ['MPT', 'own_section', 'own_shapes']

MPT = 'mpt'

# Keys of a run, not of the model.
_OF_A_RUN = {'init_device', 'use_cache'}
_SIZES = {'d_model', 'n_heads', 'n_layers', 'max_seq_len', 'vocab_size'}
# The defaults of ``mb_dmoe`` that are not those of ``upcycled_dmoe``.
_MEGABLOCKS = {
    'mlp_type': 'mlp',
    'moe_num_experts': 1,
    'moe_top_k': 1,
    'moe_normalize_expert_weights': None,
}
# What would compute something else; other unknown keys are of older versions.
_REFUSED = {
    'attn_config.prefix_lm': 'attention is not causal in a prefix',
    'ffn_config.uniform_expert_assignment': 'tokens are dealt to experts',
}


def own_section(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """The ``model`` section of an MPT's own ``config.json``.

    Experts, which stock Foundry calls ``torch_dmoe``, become
    ``upcycled_dmoe``: the same parameters and function.

    Raises:
        ConfigError: It is of something that MPT no longer computes.
    """
    wanted = CONFIG_DEFAULTS.keys() - _OF_A_RUN
    section = {k: copy.deepcopy(v) for k, v in hf_config.items() if k in wanted}
    for key in _SIZES & section.keys():
        if not is_whole(section[key]) or section[key] < 1:
            raise ConfigError(
                key,
                section[key],
                'it is a size or a number of things.',
                'set it to a whole number from 1.',
            )
    for key in ('attn_config', 'ffn_config'):
        if not isinstance(section.setdefault(key, {}), dict):
            raise ConfigError(
                key,
                section[key],
                'it is not a mapping.',
                'repair config.json.',
            )
    for name, feature in _REFUSED.items():
        key, inner = name.split('.')
        if section[key].get(inner):
            raise ConfigError(
                name,
                section[key][inner],
                f'{feature}, which is not carried over.',
                'start from a model without that.',
            )
    section['attn_config'] = {
        **{
            k: v
            for k, v in section['attn_config'].items() if k in ATTENTION_SETTINGS
        },
        'attn_impl': 'torch',
    }
    if section['ffn_config'].get('ffn_type') in MOE_FFN_TYPES:
        section['ffn_config'] = _experts(section)
    return section


def own_shapes(section: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every parameter and its shape, under Composer's names.

    Raises:
        ConfigError: LLM Foundry can't build the model.
    """
    try:
        return parameter_shapes(flatten(section))
    except ConfigError:
        raise
    # What Foundry raises of settings of all kinds.
    except Exception as error:
        raise ConfigError(
            'model_type',
            MPT,
            f'LLM Foundry cannot build this one ({error}).',
            'repair config.json.',
        ) from error


def _experts(section: Mapping[str, Any]) -> dict[str, Any]:
    known = signature(build_upcycled_dmoe).parameters.keys()
    ffn, settings = section['ffn_config'], complete(section)
    return {
        **(_MEGABLOCKS if ffn['ffn_type'] == 'mb_dmoe' else {}),
        **{
            k: v
            for k, v in ffn.items() if k in known
        },
        'ffn_type': 'upcycled_dmoe',
        'ffn_act_fn': settings['ffn_config.ffn_act_fn'],
        'ffn_hidden_size': settings['ffn_config.ffn_hidden_size'],
    }
