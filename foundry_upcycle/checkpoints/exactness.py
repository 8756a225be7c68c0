"""Settings that change what a model computes and that no shape shows."""

from typing import Any, Mapping

from foundry_upcycle.checkpoints.reader import CheckpointReader, flatten
from foundry_upcycle.errors import ConfigError

__all__ = ['check_same_function']

# Settings of an MPT; a name stands for everything below it as well.
_FUNCTION_SETTINGS = (
    'attn_config.alibi',
    'attn_config.alibi_bias_max',
    'attn_config.attn_logit_softcapping',
    'attn_config.attn_temperature_tuning',
    'attn_config.attn_type',
    'attn_config.clip_qkv',
    'attn_config.fused_qkv',
    'attn_config.kv_n_heads',
    'attn_config.qk_gn',
    'attn_config.qk_ln',
    'attn_config.rope',
    'attn_config.rope_hf_config',
    'attn_config.rope_theta',
    'attn_config.sliding_window_size',
    'attn_config.softmax_scale',
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
    reader: CheckpointReader,
    config: Mapping[str, Any],
) -> None:
    """Checks that only the feed-forward layers' structure changed.

    A dense checkpoint with 16 heads fits a model with 8 shape by shape, and
    one trained with gelu fits experts with silu; neither would be upcycled
    exactly. Composer saves the dense run's config beside its weights.

    Args:
        reader: The dense checkpoint; one that carries no config passes.
        config: The upcycled model's config, nested.

    Raises:
        ConfigError: A setting differs; the message gives both values.
    """
    if not reader.model_config:
        return
    dense = _function_settings(reader.model_config)
    target = _function_settings(flatten(config))
    for key in sorted(dense.keys() | target.keys()):
        if dense.get(key) != target.get(key):
            raise ConfigError(
                f'model.{key}',
                target.get(key),
                f'{reader.path} was trained with {dense.get(key)!r}; with '
                'another value the model would compute something else.',
                f'set it to {dense.get(key)!r}.',
            )


def _function_settings(flat: Mapping[str, Any]) -> dict[str, Any]:
    settings = {
        key: _normalise(key, value)
        for key, value in flat.items()
        if any(f'{key}.'.startswith(f'{s}.') for s in _FUNCTION_SETTINGS)
    }
    if settings.pop('ffn_config.ffn_act_fn', None) is None:
        settings.setdefault('ffn_config.ffn_act_fn.name', 'gelu')
    if settings['ffn_config.ffn_act_fn.name'] == 'gelu':
        settings.setdefault('ffn_config.ffn_act_fn.approximate', 'none')
    return settings


def _normalise(key: str, value: Any) -> Any:
    if key == 'norm_type':
        # The same norm, in autocast's precision or by another kernel.
        return value.removeprefix('low_precision_').removeprefix('triton_')
    return list(value) if isinstance(value, tuple) else value
