"""Fills live parameters, plain or sharded, by a plan."""

from functools import lru_cache
from typing import Iterable, Mapping

import torch
from torch.distributed.tensor import DTensor, Replicate, Shard

from foundry_upcycle.checkpoints.base import Checkpoint
from foundry_upcycle.checkpoints.plan import (
    CarriedTensor,
    ExpertTensor,
    RouterTensor,
)
from foundry_upcycle.errors import ConfigError
from foundry_upcycle.recipes.base import ExpertRows, Recipe, seeded_generator

__all__ = ['ParameterWriter']


class ParameterWriter:
    """Writes each planned tensor into this rank's part of a parameter.

    What is read and held at a time is the part of one dense tensor that this
    rank's rows come from.

    Args:
        reader: The dense checkpoint.
        recipe: Makes experts.
        router_init_std: Standard deviation of router weights.
        seed: Seeds the routers; the values do not depend on the sharding.
    """

    def __init__(
        self,
        reader: Checkpoint,
        recipe: Recipe,
        router_init_std: float,
        seed: int,
    ):
        self.reader = reader
        self.recipe = recipe
        self.router_init_std = router_init_std
        self.seed = seed

    @torch.no_grad()
    def write(
        self,
        plan: Iterable[CarriedTensor | ExpertTensor | RouterTensor],
        parameters: Mapping[str, torch.Tensor],
    ) -> None:
        """Fills ``parameters``, named as in the plan, in place.

        In place, because optimizer and FSDP already hold them.
        """
        for item in plan:
            parameter = parameters[item.target]
            local, start = local_rows(item.target, parameter)
            if local.shape[0] == 0:
                continue  # More ranks than rows.
            if isinstance(item, CarriedTensor):
                stop = start + local.shape[0]
                local.copy_(self.reader.read(item.target, 0, start, stop))
            elif isinstance(item, RouterTensor):
                full = self._router(item, tuple(parameter.shape))
                local.copy_(full[start:start + local.shape[0]])
            else:
                self._write_experts(item, local, start)

    def _router(
        self,
        item: RouterTensor,
        shape: tuple[int, ...],
    ) -> torch.Tensor:
        # Drawn whole whatever this rank holds of it: it is small.
        generator = seeded_generator(self.seed, item.layer, 'router')
        return torch.randn(shape, generator=generator) * self.router_init_std

    def _write_experts(
        self,
        item: ExpertTensor,
        local_RD: torch.Tensor,
        start: int,
    ) -> None:
        F = item.ffn_hidden_size
        stop = start + local_RD.shape[0]

        # Experts ask for the same rows one after the other.
        @lru_cache(maxsize=1)
        def dense_rows(first: int, last: int) -> torch.Tensor:
            dim = 1 if item.transpose else 0
            dense = self.reader.read(item.source, dim, first, last)
            return dense.t().contiguous() if item.transpose else dense

        for expert in range(start // F, (stop - 1) // F + 1):
            first, last = max(start, expert * F), min(stop, (expert + 1) * F)
            rows = ExpertRows(
                layer=item.layer,
                expert=expert,
                weight=item.weight,
                start=first - expert * F,
                stop=last - expert * F,
            )
            part_RD = local_RD[first - start:last - start]
            part_RD.copy_(self.recipe(dense_rows, rows))


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
