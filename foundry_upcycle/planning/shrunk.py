"""The section ``model`` of what a mixture of experts shrinks to."""

from typing import Any, Mapping

from foundry_upcycle.config import ShrinkingConfig
from foundry_upcycle.errors import ConfigError
from foundry_upcycle.planning.flops import N_MATRICES, ModelShape

__all__ = ['dense_ffn', 'shrunk_model']


def shrunk_model(
    model: Mapping[str, Any],
    config: ShrinkingConfig,
) -> dict[str, Any]:
    """What ``shrink`` makes of the model that a train YAML describes.

    Args:
        model: Of the mixture: the section ``model``, nested.
        config: What it shrinks to.

    Raises:
        ConfigError: It can't be shrunk so, or no dense model can hold the
            result.
    """
    shape, ffn = ModelShape.from_config(model), model['ffn_config']
    is_ours = ffn['ffn_type'] == 'upcycled_dmoe'
    key = 'moe_normalize_expert_weights'
    order = ffn.get(key, 1 if is_ours else None)
    if order != 1:
        raise ConfigError(
            f'model.ffn_config.{key}',
            order,
            'a mixture is shrunk whose combine weights sum to 1.',
            'set it to 1.',
        )
    n = config.n_left(shape.n_experts, shape.top_k)
    if config.dense is None:
        return {**model, 'ffn_config': {**ffn, 'moe_num_experts': n}}
    mlp_type = ffn.get('mlp_type', 'glu' if is_ours else 'mlp')
    hidden_size = shape.n_expert_params // (
        N_MATRICES[mlp_type] * shape.d_model
    )
    dense = dense_ffn(
        ffn,
        mlp_type,
        hidden_size,
        n,
        shape.n_moe_layers < shape.n_layers,
    )
    return {**model, 'name': 'mpt_causal_lm', 'ffn_config': dense}


def dense_ffn(
    ffn: Mapping[str, Any],
    mlp_type: str,
    hidden_size: int,
    n: int,
    is_partial: bool,
) -> dict[str, Any]:
    """The ``ffn_config`` of experts side by side.

    Args:
        ffn: That of the mixture.
        mlp_type: ``glu`` or ``mlp``.
        hidden_size: Of one of them.
        n: How many.
        is_partial: Whether some layers are dense already.

    Raises:
        ConfigError: The layers would not be of one width.
    """
    if is_partial and n > 1:
        raise ConfigError(
            '--dense',
            'concat',
            'only some layers are mixtures (moe_layers); they would be '
            f'{n} times as wide as the others, and the layers of a dense MPT '
            'are of one width.',
            'choose --keep 1, or --dense mean or weighted.',
        )
    return {
        'ffn_type': f'mpt{mlp_type}',
        'ffn_hidden_size': n * hidden_size,
        'ffn_act_fn': ffn.get('ffn_act_fn'),
    }
