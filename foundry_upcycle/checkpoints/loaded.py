"""A model with a checkpoint's weights, whole in memory."""

import torch

from foundry_upcycle.checkpoints.base import Checkpoint, require_tensor
from foundry_upcycle.checkpoints.empty import empty_model
from foundry_upcycle.checkpoints.settings import config_of, require_mpt
from foundry_upcycle.models.upcycled_mpt import UpcycledMPTForCausalLM

__all__ = ['loaded_model']


def loaded_model(
    checkpoint: Checkpoint,
    attn_impl: str = 'torch',
) -> UpcycledMPTForCausalLM:
    """A model that computes what a checkpoint's does, on the CPU, in float32.

    Args:
        checkpoint: A dense or upcycled MPT.
        attn_impl: How attention is computed; see MPT's ``attn_config``.

    Raises:
        CheckpointError: It carries no config, or its tensors are not those of
            the config.
    """
    require_mpt(checkpoint)
    with config_of(checkpoint):
        model = empty_model(checkpoint.model_config, attn_impl)
    fix = 'name a checkpoint whose config is that of its weights.'
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        require_tensor(checkpoint, f'model.{name}', shape, fix)
    state = {
        name:
        checkpoint.read(f'model.{name}', 0, 0, parameter.shape[0]).to(
            torch.float32,
            copy=True,  # What is read may be the file's own.
        )
        for name, parameter in model.named_parameters()
    }
    model.load_state_dict(state, strict=False, assign=True)
    return model
