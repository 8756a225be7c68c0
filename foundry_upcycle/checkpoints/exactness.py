"""Whether a model computes what a checkpoint was trained to compute."""

import warnings
from typing import Any, Mapping, Sequence

from foundry_upcycle.checkpoints.base import Checkpoint, nest
from foundry_upcycle.checkpoints.settings import complete, config_of
from foundry_upcycle.errors import ConfigError, UpcyclingWarning
from foundry_upcycle.planning.top_k import read_top_k

__all__ = ['check_same_function', 'check_same_model']

# Settings that change what a model computes and that no shape shows, as
# ``complete`` names them.
_FUNCTION_SETTINGS = (
    # First, as others follow from them.
    'n_heads',
    'head_dim',
    'attn_config.alibi',
    'attn_config.alibi_bias_max',
    'attn_config.attn_logit_softcapping',
    'attn_config.attn_temperature_tuning.attn_scale',
    'attn_config.attn_temperature_tuning.floor_scale',
    'attn_config.attn_uses_sequence_id',
    'attn_config.clip_qkv',
    'attn_config.fused_qkv',
    'attn_config.kv_n_heads',
    'attn_config.nope',
    'attn_config.norm_eps',
    'attn_config.norm_type',
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
    'learned_pos_emb',
    'logit_scale',
    'norm_eps',
    'norm_type',
    'tie_word_embeddings',
)
# Those of experts, and those that shapes do show, but not by name.
_MODEL_SETTINGS = (
    'd_model',
    'n_layers',
    'vocab_size',
    'ffn_config.ffn_type',
    'ffn_config.ffn_hidden_size',
    'ffn_config.moe_layers',
    'ffn_config.moe_num_experts',
    'ffn_config.moe_normalize_expert_weights',
    'no_bias',
)
_TOP_K = 'ffn_config.moe_top_k'


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
    _check_settings(reader, config, _FUNCTION_SETTINGS, 'model')


def check_same_model(
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    key: str,
) -> None:
    """Checks that a checkpoint is of the model that is to load it.

    A checkpoint without a config is warned of, and passes; so is a number of
    experts a token that it was not trained with, which may be what is to be
    evaluated.

    Args:
        checkpoint: What is to be loaded.
        config: The model's config, nested.
        key: Where the config stands in the YAML, such as ``models[0].model``.

    Raises:
        ConfigError: A setting differs; the message gives both values.
    """
    names = _MODEL_SETTINGS + _FUNCTION_SETTINGS
    _check_settings(checkpoint, config, names, key)
    saved, target = complete(nest(checkpoint.model_config)), complete(config)
    trained, top_k = saved.get(_TOP_K), target.get(_TOP_K)
    if checkpoint.model_config and not _is_trained_with(saved, target):
        warnings.warn(
            f'{key}.{_TOP_K}={top_k!r}: {checkpoint.path} was trained with '
            f'{trained!r}. Fix: set it to {trained!r}, unless this is meant.',
            UpcyclingWarning,
            stacklevel=2,
        )


def _is_trained_with(
    saved: Mapping[str, Any],
    target: Mapping[str, Any],
) -> bool:
    if saved.get(_TOP_K) is None or target.get(_TOP_K) is None:
        return saved.get(_TOP_K) == target.get(_TOP_K)
    trained, found = (
        read_top_k(settings[_TOP_K], settings['ffn_config.moe_num_experts'])
        for settings in (saved, target)
    )
    return found == trained or {*found.values} < {*trained.values}


def _check_settings(
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    names: Sequence[str],
    key: str,
) -> None:
    if not checkpoint.model_config:
        warnings.warn(
            f'{checkpoint.path} carries no model config, so only names and '
            'shapes can be compared: see that activation, number of heads, '
            'rope and norm settings are those of the run that saved it.',
            UpcyclingWarning,
            stacklevel=3,
        )
        return
    with config_of(checkpoint):
        saved = complete(nest(checkpoint.model_config))
    target = complete(config)
    for name in names:
        before, after = _value(saved, name), _value(target, name)
        if before != after:
            raise ConfigError(
                f'{key}.{name}',
                after,
                f'{checkpoint.path} was trained with {before!r}; with another '
                'value the model would compute something else.',
                f'set it to {before!r}.',
            )


def _value(settings: Mapping[str, Any], name: str) -> Any:
    value = settings.get(name)
    if name == 'attn_config.rope_impl':
        # Two implementations of one function, except for dail's xpos.
        kind = settings['attn_config.rope_dail_config.type']
        is_xpos = value == 'dail' and kind == 'xpos'
        return 'dail with xpos' if is_xpos else 'hf'
    # What was computed in another order, or typed by hand.
    return float(f'{value:.6g}') if isinstance(value, float) else value
