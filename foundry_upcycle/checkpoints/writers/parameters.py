"""Fills live parameters, plain or sharded."""

from typing import Iterable, Mapping

import torch
from torch.distributed.tensor import DTensor, Replicate, Shard

from foundry_upcycle.checkpoints.base import Checkpoint
from foundry_upcycle.errors import ConfigError

__all__ = ['fill_parameters', 'local_rows']


@torch.no_grad()
def fill_parameters(
    checkpoint: Checkpoint,
    parameters: Mapping[str, torch.Tensor],
    names: Iterable[str],
) -> None:
    """Copies each named tensor into this rank's part of its parameter.

    In place, because optimizer and FSDP already hold the parameters; and rows
    by rows, so that beside them only a block is held.

    Args:
        checkpoint: Holds all of ``names``, of the parameters' full shapes.
        parameters: Parameters by the checkpoint's names.
        names: What to fill, in order.

    Raises:
        CheckpointError: A weight is larger than a parameter's dtype holds.
        ConfigError: As ``local_rows``.
        RuntimeError: The checkpoint gives fewer rows than it says.
    """
    for name in names:
        local, start = local_rows(name, parameters[name])
        stop = start + local.shape[0]
        for block in checkpoint.rows(name, start, stop):
            block = checkpoint.narrowing.cast(name, block, local.dtype)
            local[:len(block)].copy_(block)
            local = local[len(block):]
        if len(local):
            raise RuntimeError(
                f'{name}: {len(local)} rows were not read from '
                f'{checkpoint.path}. This is a bug.',
            )


def local_rows(name: str, parameter: torch.Tensor) -> tuple[torch.Tensor, int]:
    """This rank's rows of a parameter, and the index of the first.

    Args:
        name: The parameter's name, for the error.
        parameter: A tensor, or a DTensor sharded along dimension 0.

    Returns:
        A tensor that shares the parameter's memory.

    Raises:
        ConfigError: The parameter is on the meta device, or sharded along
            another dimension.
    """
    if not isinstance(parameter, DTensor):
        local, start = parameter, 0
    else:
        for placement in parameter.placements:
            if not isinstance(placement, Replicate) and placement != Shard(0):
                raise ConfigError(
                    'tp_config',
                    f'{name}: {parameter.placements}',
                    'sparse_upcycling fills parameters that are whole or '
                    'sharded along dimension 0.',
                    'upcycle under FSDP2 without tensor parallelism.',
                )
        local = parameter.to_local()
        chunks = parameter.__create_chunk_list__()
        start = chunks[0].offsets[0] if chunks else 0
    if local.is_meta:
        raise ConfigError(
            'model.init_device',
            f'meta, still, for {name}',
            'there is no memory to fill.',
            'set init_device: meta only together with fsdp_config, else cpu.',
        )
    return local.detach(), start
