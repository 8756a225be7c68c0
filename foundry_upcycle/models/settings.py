"""The section ``model`` of an ``upcycled_mpt``: checked, and complete."""

from inspect import signature
from typing import Any, Mapping, Optional

from llmfoundry.layers_registry import ffns_with_megablocks
from llmfoundry.models.mpt.configuration_mpt import MPTConfig
from llmfoundry.models.mpt.modeling_mpt import ComposerMPTCausalLM
from transformers.configuration_utils import PretrainedConfig

from foundry_upcycle.config import MOE_FFN_TYPES, partial_moe_layers
from foundry_upcycle.errors import ConfigError
from foundry_upcycle.models.ffn import build_upcycled_dmoe
from foundry_upcycle.planning.top_k import refuse_varying_top_k

__all__ = ['complete_settings', 'partial_layers']

# What torch_dmoe and upcycled_dmoe both take, and Foundry's builder of the one
# has no defaults for.
_OF_BOTH = (
    'moe_num_experts',
    'moe_top_k',
    'mlp_type',
    'moe_jitter_eps',
    'moe_normalize_expert_weights',
)
_LOSS_WEIGHTS = ('moe_loss_weight', 'moe_zloss_weight')


def partial_layers(config: MPTConfig) -> Optional[tuple[int, ...]]:
    """The blocks that are mixtures of experts; None where all are.

    Raises:
        ConfigError: ``moe_layers`` can't be used.
    """
    layers = config.ffn_config.get('moe_layers')
    return partial_moe_layers(layers, config.n_layers)


def complete_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that ``mpt_causal_lm`` is to be built with.

    Raises:
        ConfigError: One is unknown, or can't be used.
    """
    _refuse_unknown(settings)
    ffn = settings.get('ffn_config') or {}
    if not isinstance(ffn, Mapping):
        raise ConfigError(
            'model.ffn_config',
            ffn,
            'it is not a section.',
            'write ffn_config: {ffn_type: upcycled_dmoe}.',
        )
    ffn_type = ffn.get('ffn_type', 'mptmlp')
    if ffn_type not in MOE_FFN_TYPES:
        raise ConfigError(
            'model.ffn_config.ffn_type',
            ffn_type,
            'upcycled_mpt is a mixture of experts.',
            f'set it to one of {MOE_FFN_TYPES}, or model.name to '
            'mpt_causal_lm for a dense model.',
        )
    if ffn_type == 'mb_dmoe':
        _check_megablocks(settings)
    if ffn_type != 'upcycled_dmoe' and 'moe_layers' in ffn:
        raise ConfigError(
            'model.ffn_config.moe_layers',
            ffn['moe_layers'],
            f'{ffn_type} is a mixture of experts in every block.',
            'set ffn_type: upcycled_dmoe, or remove moe_layers.',
        )
    if ffn_type != 'upcycled_dmoe':
        refuse_varying_top_k(ffn.get('moe_top_k'), ffn_type)
    if ffn_type == 'torch_dmoe':
        ffn = _complete_torch_dmoe(ffn)
    return {**settings, 'ffn_config': ffn}


def _refuse_unknown(settings: Mapping[str, Any]) -> None:
    # MPTConfig would keep them, and nothing would read them: a model that is
    # said to be pretrained, or to have so many experts, would be another one.
    known = {*PretrainedConfig().to_dict(), 'name'}
    for builder in (MPTConfig, ComposerMPTCausalLM):
        known |= signature(builder).parameters.keys()
    for key in settings.keys() - known:
        in_ffn = key in signature(build_upcycled_dmoe).parameters
        raise ConfigError(
            f'model.{key}',
            settings[key],
            'upcycled_mpt has no such setting.',
            f'write it into model.ffn_config.{key}.' if in_ffn else
            'remove it; weights come from load_path, or from the source_path '
            'of the callback sparse_upcycling.',
        )


def _check_megablocks(settings: Mapping[str, Any]) -> None:
    if 'mb_dmoe' not in ffns_with_megablocks:
        raise ConfigError(
            'model.ffn_config.ffn_type',
            'mb_dmoe',
            'MegaBlocks is not installed.',
            "pip install 'foundry_upcycle[megablocks]' (it needs CUDA), or "
            'use upcycled_dmoe.',
        )
    if not settings.get('no_bias', False):
        raise ConfigError(
            'model.no_bias',
            False,
            'the experts of MegaBlocks would have a bias, which no other '
            'mixture of experts here has.',
            'set no_bias: true (attention_bias: true keeps the biases of the '
            'QKV projections).',
        )


def _complete_torch_dmoe(ffn: Mapping[str, Any]) -> dict[str, Any]:
    """Foundry's builder has no defaults: it gets those of upcycled_dmoe."""
    parameters = signature(build_upcycled_dmoe).parameters
    of_both = {key: parameters[key].default for key in _OF_BOTH}
    given = dict(ffn)
    uniform = given.pop('uniform_expert_assignment', False)
    weights = {key: given.pop(key, 0) for key in _LOSS_WEIGHTS}
    # Refuses what the layer can't be, with that layer's words.
    build_upcycled_dmoe(
        d_model=1,
        expansion_ratio=1,
        device='meta',
        **weights,
        **{
            key: value
            for key, value in given.items()
            if key != 'ffn_type'
        },
    )
    for key, value, problem in (
            *((key, weights[key], 'it has no such loss')
              for key in _LOSS_WEIGHTS),
        ('backend', given.get('backend'), 'it has no such setting'),
    ):
        if value:
            raise ConfigError(
                f'model.ffn_config.{key}',
                value,
                f'ffn_type is torch_dmoe, and {problem}.',
                'remove it, or set ffn_type: upcycled_dmoe.',
            )
    if not isinstance(uniform, bool):
        raise ConfigError(
            'model.ffn_config.uniform_expert_assignment',
            uniform,
            'it is neither true nor false.',
            'remove it: true sends tokens to the experts in turn.',
        )
    return {**of_both, **given, 'uniform_expert_assignment': uniform}
