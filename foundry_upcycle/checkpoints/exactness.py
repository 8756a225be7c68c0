"""Settings that change what a model computes and that no shape shows."""

import warnings
from typing import Any, Mapping

from llmfoundry.models.utils.config_defaults import attn_config_defaults

from foundry_upcycle.checkpoints.base import Checkpoint, flatten
from foundry_upcycle.errors import ConfigError

__all__ = ['check_same_function']

# Settings of an MPT; one that is a mapping counts with all it holds.
_FUNCTION_SETTINGS = (
    'attn_config.alibi',
    'attn_config.alibi_bias_max',
    'attn_config.attn_logit_softcapping',
    'attn_config.attn_temperature_tuning',
    'attn_config.attn_type',
    'attn_config.attn_uses_sequence_id',
    'attn_config.clip_qkv',
    'attn_config.fused_qkv',
    'attn_config.kv_n_heads',
    'attn_config.qk_gn',
    'attn_config.qk_ln',
    'attn_config.rope',
    'attn_config.rope_hf_config',
    'attn_config.rope_impl',
    'attn_config.rope_theta',
    'attn_config.sliding_window_size',
    'attn_config.softmax_scale',
    'block_overrides',
    'ffn_config.ffn_act_fn',
    'final_logit_softcapping',
    'head_dim',
    'learned_pos_emb',
    'logit_scale',
    'n_heads',
    'norm_eps',
    'norm_type',
    'tie_word_embeddings',
)


def check_same_function(
    reader: Checkpoint,
    config: Mapping[str, Any],
) -> None:
    """Checks that only the feed-forward layers' structure changed.

    A dense checkpoint with 16 heads fits a model with 8 shape by shape, and
    one trained with gelu fits experts with silu; neither would be upcycled
    exactly. Composer saves the dense run's config beside its weights. A
    checkpoint without one is warned of, and passes.

    Args:
        reader: The dense checkpoint.
        config: The upcycled model's config, nested.

    Raises:
        ConfigError: A setting differs; the message gives both values.
    """
    if not reader.model_config:
        warnings.warn(
            f'{reader.path} carries no model config, so only names and shapes '
            'can be compared: see that activation, number of heads, rope and '
            'norm settings are those of the dense run.',
            stacklevel=2,
        )
        return
    flat = flatten(config)
    for name in _FUNCTION_SETTINGS:
        if '.' not in name and name not in reader.model_config:
            continue  # An older Foundry had no such setting.
        dense = _setting(reader.model_config, name)
        target = _setting(flat, name)
        if dense != target:
            raise ConfigError(
                f'model.{name}',
                target,
                f'{reader.path} was trained with {dense!r}; with another '
                'value the model would compute something else.',
                f'set it to {dense!r}.',
            )


def _setting(flat: Mapping[str, Any], name: str) -> Any:
    """A setting's value, the same for all spellings of the same function."""
    value: Any = flat.get(name, _default(name))
    below = {
        key.removeprefix(f'{name}.'): leaf
        for key, leaf in flat.items()
        if key.startswith(f'{name}.')
    }
    if below:
        # An older Foundry's config may lack keys that have come since.
        value = {**(value or {}), **below}
    if name == 'norm_type':
        # The same norm, in autocast's precision or by another kernel.
        return value.removeprefix('low_precision_').removeprefix('triton_')
    if name == 'attn_config.rope_impl':
        # Two implementations of one function, except for dail's xpos.
        kind = flat.get('attn_config.rope_dail_config.type')
        is_xpos = value == 'dail' and kind == 'xpos'
        return 'dail with xpos' if is_xpos else 'hf'
    if name == 'ffn_config.ffn_act_fn':
        return _activation(value, flat.get('ffn_config.ffn_type'))
    return value


def _default(name: str) -> Any:
    section, _, key = name.partition('.')
    return attn_config_defaults.get(key) if section == 'attn_config' else None


def _activation(value: Any, ffn_type: Any) -> dict[str, Any]:
    if value is None:
        # MegaBlocks' default is not Foundry's.
        approximate = 'tanh' if ffn_type == 'mb_dmoe' else 'none'
        return {'name': 'gelu', 'approximate': approximate}
    if value['name'] == 'gelu':
        return {'approximate': 'none', **value}
    return dict(value)
