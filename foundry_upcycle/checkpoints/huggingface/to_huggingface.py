"""MPT config to Hugging Face ``config.json``."""

import math
from typing import Any, Mapping, Optional

from foundry_upcycle.checkpoints.huggingface.architectures import (
    ACTIVATIONS,
    NORMALIZE,
    ROPE_TYPES,
    SHARED_EXPERT_SIZE,
    TOKEN_IDS,
    UNSUPPORTED,
    Architecture,
    accepted_activations,
    get_architecture,
)
from foundry_upcycle.checkpoints.huggingface.folding import exported_multipliers
from foundry_upcycle.checkpoints.huggingface.layers import (
    hf_moe_layers,
    hf_ropes,
)
from foundry_upcycle.checkpoints.settings import NO_ROPE, complete
from foundry_upcycle.errors import ConfigError
from foundry_upcycle.planning.top_k import read_top_k

__all__ = ['to_huggingface']

_TOP_K = 'ffn_config.moe_top_k'


def to_huggingface(
    mpt_config: Mapping[str, Any],
    model_type: Optional[str] = None,
    like: Mapping[str, Any] = {},  # noqa: B006
) -> dict[str, Any]:
    """The ``config.json`` of the architecture that computes what an MPT does.

    Transformers 4 and 5 and vLLM read it.

    Of a ``moe_top_k`` that varies it has the largest.

    Args:
        mpt_config: The MPT's settings, nested; missing ones have Foundry's
            defaults.
        model_type: The architecture; None chooses the plainest that fits.
        like: The ``config.json`` of the model it came from, if there is one.

    Raises:
        ConfigError: The architecture can't hold the model; the message names
            the setting.
    """
    mpt = complete(mpt_config)
    model_type = model_type or _choose(mpt)
    architecture = get_architecture(model_type)
    if architecture.is_moe and isinstance(mpt.get(_TOP_K), Mapping):
        E = mpt['ffn_config.moe_num_experts']
        mpt[_TOP_K] = read_top_k(mpt[_TOP_K], E).largest
    _check_settings(mpt, model_type, architecture)
    activation = _hf_activation(mpt, model_type, architecture)
    hf = {
        'architectures': [architecture.class_name],
        'model_type': model_type,
        'head_dim': mpt['head_dim'],
        'hidden_act': activation,
        'rope_scaling': _hf_rope(mpt),
    }
    hf |= {name: mpt[key] for name, key in architecture.all_fields.items()}
    hf |= _hf_window(mpt, model_type, architecture)
    # Else transformers' defaults stand for another tokenizer's tokens.
    hf |= {key: mpt.get(key) for key in TOKEN_IDS}
    if architecture.is_gemma:
        hf['hidden_activation'] = activation
    if architecture.is_moe and NORMALIZE not in architecture.settings:
        hf['norm_topk_prob'] = _hf_normalized(mpt, model_type)
    if architecture.unties(mpt['logit_scale']):
        hf['tie_word_embeddings'] = False
    if architecture.has_dense_layers:
        hf |= hf_moe_layers(mpt)
    if architecture.has_layers_without_rope:
        hf |= hf_ropes(mpt)
    if architecture.has_shared_expert:
        hf['shared_expert_intermediate_size'] = SHARED_EXPERT_SIZE
    return hf | exported_multipliers(mpt, model_type, like)


def _choose(mpt: Mapping[str, Any]) -> str:
    is_moe = mpt['ffn_config.ffn_type'] == 'upcycled_dmoe'
    if mpt['attn_config.qk_gn']:
        return 'qwen3_moe' if is_moe else 'qwen3'
    if mpt['attention_bias']:
        return 'qwen2_moe' if is_moe else 'qwen2'
    if is_moe:
        return 'mixtral'
    if mpt['block_overrides']:
        return 'smollm3'
    if mpt['logit_scale'] is not None:
        is_gemma = mpt['logit_scale'] == 'inv_sqrt_d_model'
        return 'gemma' if is_gemma else 'granite'
    has_window = mpt['attn_config.sliding_window_size'] != -1
    return 'mistral' if has_window else 'llama'


def _check_settings(
    mpt: Mapping[str, Any],
    model_type: str,
    architecture: Architecture,
) -> None:
    required = UNSUPPORTED | architecture.all_settings
    if architecture.has_dense_layers:
        del required['ffn_config.moe_layers']
    overrides = mpt['block_overrides'] or []
    if architecture.has_layers_without_rope and all(each in ({}, NO_ROPE)
                                                    for each in overrides):
        del required['block_overrides']
    if not (architecture.multipliers or architecture.is_moe):
        is_tied = mpt['tie_word_embeddings']
        required['logit_scale'] = architecture.logit_scale(is_tied)
    elif mpt['logit_scale'] == 0:
        raise _unfit('logit_scale', 0, model_type, 'a number above 0')
    if mpt['attn_config.qk_gn']:
        required['attn_config.norm_type'] = mpt['norm_type']
        required['attn_config.norm_eps'] = mpt['norm_eps']
    if architecture.has_shared_expert:
        # Transformers gives a Qwen2-MoE no other.
        required['head_dim'] = mpt['d_model'] // mpt['n_heads']
    if mpt['attn_config.rope_impl'] == 'dail':
        required['attn_config.rope_dail_config.type'] = 'original'
        # It rotates this much of each head.
        required['head_dim'] = mpt['d_model'] // mpt['n_heads']
    found = {**UNSUPPORTED, **mpt}
    for key, value in required.items():
        if found.get(key) != value:
            raise _unfit(key, found.get(key), model_type, repr(value))
    for key in architecture.all_fields.values():
        if found.get(key) is None:
            raise _unfit(key, None, model_type, 'a number')
    _check_softmax_scale(mpt, model_type)


def _check_softmax_scale(mpt: Mapping[str, Any], model_type: str) -> None:
    key = 'attn_config.softmax_scale'
    expected = mpt['head_dim']**-0.5
    if not math.isclose(mpt[key], expected, rel_tol=1e-6):
        raise _unfit(key, mpt[key], model_type, f'head_dim^-0.5 = {expected}')


def _unfit(key: str, value: Any, model_type: str, expected: str) -> ConfigError:
    return ConfigError(
        f'model.{key}',
        value,
        f'a Hugging Face {model_type} can hold only {expected}.',
        'choose another architecture (--like), or keep this model in a '
        'Composer checkpoint.',
    )


def _hf_activation(
    mpt: Mapping[str, Any],
    model_type: str,
    architecture: Architecture,
) -> str:
    found = mpt['ffn_config.ffn_act_fn']
    known = {'name', 'approximate'}
    function = (found['name'], found.get('approximate'))
    accepted = accepted_activations(architecture)
    for name in accepted:
        if ACTIVATIONS[name] == function and found.keys() <= known:
            return name
    key = 'ffn_config.ffn_act_fn'
    raise _unfit(key, found, model_type, ' or '.join(accepted))


def _hf_rope(mpt: Mapping[str, Any]) -> Optional[dict[str, Any]]:
    rope = mpt['attn_config.rope_hf_config']
    if mpt['attn_config.rope_impl'] == 'dail' or rope['type'] == 'no_scaling':
        return None
    for hf_type, (mpt_type, names) in ROPE_TYPES.items():
        if mpt_type == rope['type']:
            return {'rope_type': hf_type, **{n: rope[n] for n in names}}
    key = 'attn_config.rope_hf_config.type'
    known = ', '.join(mpt_type for mpt_type, _ in ROPE_TYPES.values())
    raise _unfit(key, rope['type'], 'model', known)


def _hf_window(
    mpt: Mapping[str, Any],
    model_type: str,
    architecture: Architecture,
) -> dict[str, Any]:
    key = 'attn_config.sliding_window_size'
    size = mpt[key]
    if size != -1 and not architecture.window_keys:
        raise _unfit(key, size, model_type, '-1')
    width = None if size == -1 else size + 1
    values = {
        'use_sliding_window': width is not None,
        'sliding_window': width,
        'max_window_layers': 0 if width else mpt['n_layers'],
    }
    return {name: values[name] for name in architecture.window_keys}


def _hf_normalized(mpt: Mapping[str, Any], model_type: str) -> bool:
    order = mpt.get(NORMALIZE)
    if order and order != 1:
        raise _unfit(NORMALIZE, order, model_type, '1 or None')
    return bool(order)
