"""A dense checkpoint seen as the mixture of experts it becomes."""

from functools import lru_cache
from typing import Any, Callable, Iterator, Mapping, Optional

import torch

from foundry_upcycle.checkpoints.base import (
    Checkpoint,
    CheckpointView,
    TensorInfo,
)
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


class UpcycledCheckpoint(CheckpointView):
    """A view: what is read is computed from the dense checkpoint.

    Held are the parts of one layer's dense tensors that the rows asked for
    last came from, whatever the number of experts.

    Args:
        dense: The dense checkpoint.
        targets: Full shapes of the mixture's tensors by name.
        config: Recipe, seed and routers' standard deviation.
        model_config: The mixture's MPT config, flat; where it is not needed,
            empty.
        dtype: Of experts and routers; None for that of the dense model. To
            convert once is quicker than to convert each expert.

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
        dtype: Optional[torch.dtype] = None,
    ):
        super().__init__(dense, model_config)
        self._config = config
        self._recipe = get_recipe(config.recipe)
        self._plan = {item.target: item for item in make_plan(dense, targets)}
        of_routers = next(iter(dense.tensors.values())).dtype
        self.tensors = {}
        for name, item in self._plan.items():
            if isinstance(item, CarriedTensor):
                found = dense.tensors[name].dtype
            elif isinstance(item, RouterTensor):
                found = dtype or of_routers
            else:
                found = dtype or dense.tensors[item.source].dtype
            self.tensors[name] = TensorInfo(tuple(targets[name]), found)
        # Experts ask for the same rows one after the other: of one tensor, or
        # (one expert whole after the other) of a layer's three.
        self._dense_rows = lru_cache(maxsize=3)(self._read_dense_rows)
        self._transposed_rows = lru_cache(maxsize=1)(self._transpose_rows)

    def read(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        item = self._plan[name]
        if isinstance(item, CarriedTensor):
            return self._source.read(name, dim, start, stop)
        if dim != 0:
            whole = self.read(name, 0, 0, self.tensors[name].shape[0])
            return whole.narrow(dim, start, stop - start)
        if isinstance(item, RouterTensor):
            return self._router(item)[start:stop]
        blocks = list(self._experts(item, start, stop, self._dense_rows))
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks)

    def rows(self, name: str, start: int, stop: int) -> Iterator[torch.Tensor]:
        item = self._plan[name]
        if isinstance(item, CarriedTensor):
            yield from self._source.rows(name, start, stop)
        elif isinstance(item, RouterTensor):
            yield self._router(item)[start:stop]
        else:
            yield from self._experts(item, start, stop, self._transposed_rows)

    def _router(self, item: RouterTensor) -> torch.Tensor:
        # Drawn whole whichever rows are wanted: it is small.
        generator = seeded_generator(self._config.seed, item.layer, 'router')
        shape, dtype = self.tensors[item.target]
        router_ED = torch.randn(shape, generator=generator)
        router_ED *= self._config.router_init_std
        return self.narrowing.cast(item.target, router_ED, dtype)

    def _experts(
        self,
        item: ExpertTensor,
        start: int,
        stop: int,
        read: Callable[[ExpertTensor, int, int], torch.Tensor],
    ) -> Iterator[torch.Tensor]:
        F = item.ffn_hidden_size

        def dense_rows(start: int, stop: int) -> torch.Tensor:
            return read(item, start, stop)

        for expert in range(start // F, (stop - 1) // F + 1):
            rows = ExpertRows(
                layer=item.layer,
                expert=expert,
                weight=item.weight,
                start=max(start - expert * F, 0),
                stop=min(stop - expert * F, F),
            )
            yield self._recipe(dense_rows, rows)

    def _read_dense_rows(
        self,
        item: ExpertTensor,
        start: int,
        stop: int,
    ) -> torch.Tensor:
        dim = 1 if item.transpose else 0
        dense = self._source.read(item.source, dim, start, stop)
        dtype = self.tensors[item.target].dtype
        dense = self.narrowing.cast(item.source, dense, dtype)
        # A view: a Hugging Face folder has it transposed again.
        return dense.t() if item.transpose else dense

    def _transpose_rows(
        self,
        item: ExpertTensor,
        start: int,
        stop: int,
    ) -> torch.Tensor:
        """The same, contiguous: once for all experts."""
        return self._read_dense_rows(item, start, stop).contiguous()
