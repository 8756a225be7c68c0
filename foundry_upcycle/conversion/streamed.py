"""Runs a checkpoint of any size: one block in memory at a time."""

from typing import Any, Callable, Mapping

import torch
from llmfoundry.models.mpt import MPTForCausalLM

from foundry_upcycle.checkpoints.base import Checkpoint
from foundry_upcycle.checkpoints.empty import empty_model
from foundry_upcycle.models.upcycled_mpt import UpcycledMPTForCausalLM

__all__ = ['streamed_logits', 'streamed_model']


@torch.inference_mode()
def streamed_logits(
    checkpoint: Checkpoint,
    input_ids_BT: torch.Tensor,
    stored_as: Mapping[str, torch.dtype] = {},  # noqa: B006
) -> torch.Tensor:
    """Runs a model once.

    Args:
        checkpoint: See ``streamed_model``.
        input_ids_BT: Token ids, (B, T).
        stored_as: See ``streamed_model``.

    Returns:
        Logits (B, T, V) in float32.
    """
    return streamed_model(checkpoint, stored_as)(input_ids_BT).logits


def streamed_model(
    checkpoint: Checkpoint,
    stored_as: Mapping[str, torch.dtype] = {},  # noqa: B006
) -> UpcycledMPTForCausalLM:
    """A model that reads the weights of each block when that runs.

    Args:
        checkpoint: A dense or upcycled MPT, with its config.
        stored_as: Rounds these tensors, by name, to a dtype first. The
            arithmetic is in float32.
    """
    model = empty_model(checkpoint.model_config).eval()
    for name, module in _units(model):
        unload = _load_when_it_runs(module, name, checkpoint, stored_as)
        # A tied embedding is needed again at the end.
        if model.lm_head is not None or module is not model.transformer.wte:
            module.register_forward_hook(unload)
    return model


def _units(model: MPTForCausalLM) -> list[tuple[str, torch.nn.Module]]:
    transformer = model.transformer
    units: list[tuple[str, torch.nn.Module]
               ] = [(f'transformer.{name}', module)
                    for name, module in transformer.named_children()
                    if name != 'blocks']
    units += [(f'transformer.blocks.{i}', block)
              for i, block in enumerate(transformer.blocks)]
    if model.lm_head is not None:
        units.append(('lm_head', model.lm_head))
    return units


def _load_when_it_runs(
    unit: torch.nn.Module,
    prefix: str,
    checkpoint: Checkpoint,
    stored_as: Mapping[str, torch.dtype],
) -> Callable[..., None]:
    """Reads the unit's weights before it runs; returns what frees them."""
    meta = dict(unit.named_parameters())

    def load(*_: Any) -> None:
        for name in meta:
            key = f'model.{prefix}.{name}'
            shape, dtype = checkpoint.tensors[key]
            data = checkpoint.read(key, 0, 0, shape[0])
            _set(unit, name, data.to(stored_as.get(key, dtype)).float())

    def unload(*_: Any) -> None:
        for name, parameter in meta.items():
            _set(unit, name, parameter)

    unit.register_forward_pre_hook(load)
    return unload


def _set(unit: torch.nn.Module, name: str, data: torch.Tensor) -> None:
    path, _, leaf = name.rpartition('.')
    setattr(
        unit.get_submodule(path),
        leaf,
        torch.nn.Parameter(data, requires_grad=False),
    )
