"""A dense checkpoint seen as the mixture of experts it becomes."""

from typing import Any, Iterator, Mapping

import torch

from foundry_upcycle.checkpoints.base import Checkpoint, TensorInfo
from foundry_upcycle.checkpoints.plan import (
    CarriedTensor,
    ExpertTensor,
    RouterTensor,
    make_plan,
)
from foundry_upcycle.config import UpcyclingConfig
from foundry_upcycle.recipes import get_recipe
from foundry_upcycle.recipes.base import ExpertRows, seeded_generator

__all__ = ['UpcycledCheckpoint']


class UpcycledCheckpoint(Checkpoint):
    """A view: what is read is computed from the dense checkpoint.

    Held at a time is the part of one dense tensor that the rows asked for
    come from, whatever the number of experts.

    Args:
        dense: The dense checkpoint.
        targets: Full shapes of the mixture's tensors by name.
        config: Recipe, seed and routers' standard deviation.
        model_config: The mixture's MPT config, flat; where it is not needed,
            empty.

    Raises:
        CheckpointError: ``dense`` is not a dense model of which ``targets``
            is an upcycled one; the message names the tensor.
        ConfigError: There is no such recipe.
    """

    def __init__(
        self,
        dense: Checkpoint,
        targets: Mapping[str, tuple[int, ...]],
        config: UpcyclingConfig,
        model_config: Mapping[str, Any] = {},  # noqa: B006
    ):
        self.path = dense.path
        self.model_config = dict(model_config)
        self._dense = dense
        self._config = config
        self._recipe = get_recipe(config.recipe)
        self._plan = {item.target: item for item in make_plan(dense, targets)}
        dtype = next(iter(dense.tensors.values())).dtype
        self.tensors = {
            name: TensorInfo(tuple(targets[name]), self._dtype(name, dtype))
            for name in targets
        }
        # The last dense rows read: experts ask for them one after the other.
        self._rows_key: Any = None
        self._rows_FD = torch.empty(0)

    def _dtype(self, name: str, of_routers: torch.dtype) -> torch.dtype:
        item = self._plan[name]
        if isinstance(item, RouterTensor):
            return of_routers
        source = item.source if isinstance(item, ExpertTensor) else name
        return self._dense.tensors[source].dtype

    def read(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        if isinstance(self._plan[name], CarriedTensor):
            return self._dense.read(name, dim, start, stop)
        if dim != 0:
            whole = self.read(name, 0, 0, self.tensors[name].shape[0])
            return whole.narrow(dim, start, stop - start)
        blocks = list(self.rows(name, start, stop))
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks)

    def rows(self, name: str, start: int, stop: int) -> Iterator[torch.Tensor]:
        item = self._plan[name]
        if isinstance(item, CarriedTensor):
            yield from self._dense.rows(name, start, stop)
        elif isinstance(item, RouterTensor):
            yield self._router(item)[start:stop]
        else:
            yield from self._experts(item, start, stop)

    def _router(self, item: RouterTensor) -> torch.Tensor:
        # Drawn whole whichever rows are wanted: it is small.
        generator = seeded_generator(self._config.seed, item.layer, 'router')
        shape, dtype = self.tensors[item.target]
        router_ED = torch.randn(shape, generator=generator)
        return (router_ED * self._config.router_init_std).to(dtype)

    def _experts(
        self,
        item: ExpertTensor,
        start: int,
        stop: int,
    ) -> Iterator[torch.Tensor]:
        F = item.ffn_hidden_size

        def dense_rows(start: int, stop: int) -> torch.Tensor:
            return self._dense_rows(item, start, stop)

        for expert in range(start // F, (stop - 1) // F + 1):
            rows = ExpertRows(
                layer=item.layer,
                expert=expert,
                weight=item.weight,
                start=max(start - expert * F, 0),
                stop=min(stop - expert * F, F),
            )
            yield self._recipe(dense_rows, rows)

    def _dense_rows(
        self,
        item: ExpertTensor,
        first: int,
        last: int,
    ) -> torch.Tensor:
        key = (item.source, first, last)
        if key != self._rows_key:
            dim = 1 if item.transpose else 0
            dense = self._dense.read(item.source, dim, first, last)
            self._rows_FD = dense.t().contiguous() if item.transpose else dense
            self._rows_key = key
        return self._rows_FD
