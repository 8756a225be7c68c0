"""A model without weights: what a config says there is."""

import warnings
from typing import Any, Mapping

from llmfoundry.models.mpt import MPTConfig
from llmfoundry.models.utils import init_empty_weights
from transformers.utils import logging

from foundry_upcycle.checkpoints.base import nest
from foundry_upcycle.models.upcycled_mpt import UpcycledMPTForCausalLM

__all__ = ['empty_model']


def empty_model(
    model_config: Mapping[str, Any],
    attn_impl: str = 'torch',
) -> UpcycledMPTForCausalLM:
    """The model of a config, on no device.

    Args:
        model_config: Of a dense or upcycled MPT, keys joined by dots.
        attn_impl: How attention is computed, whatever the config says.
    """
    verbosity = logging.get_verbosity()
    # Of how the class is written, and of keys of ropes that are not scaled.
    logging.set_verbosity_error()
    try:
        with init_empty_weights():
            return UpcycledMPTForCausalLM(_config(model_config, attn_impl))
    finally:
        logging.set_verbosity(verbosity)


def _config(flat: Mapping[str, Any], attn_impl: str) -> MPTConfig:
    config = nest(flat)
    attention = {**config.get('attn_config', {}), 'attn_impl': attn_impl}
    if attention.get('rope_impl') == 'dail':
        # The same, without flash-attn; what only hf reads does not count.
        attention['rope_impl'] = 'hf'
        attention.pop('rope_hf_config', None)
    with warnings.catch_warnings():
        # Foundry warns that rope replaces learned positions.
        warnings.simplefilter('ignore')
        return MPTConfig(
            **{
                **config,
                'attn_config': attention,
                # Nothing is drawn for weights that are not there.
                'init_device': 'meta',
            },
        )
