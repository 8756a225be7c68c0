"""A mixture of experts seen as the cheaper model it shrinks to.

Shape suffixes: D d_model, E experts, N experts that are left, F expert hidden.
"""

from typing import Any, Callable, Mapping, NamedTuple, Optional, Sequence

import torch

from foundry_upcycle.checkpoints.base import CheckpointView, TensorInfo
from foundry_upcycle.checkpoints.mixture import Mixture
from foundry_upcycle.checkpoints.names import (
    ExpertName,
    expert_name,
    is_mixture,
    is_moe_name,
    parse_expert_name,
    parse_router_name,
)
from foundry_upcycle.checkpoints.settings import config_of
from foundry_upcycle.checkpoints.shapes import parameter_shapes
from foundry_upcycle.errors import CheckpointError

__all__ = ['Kept', 'KeptExpert', 'ShrunkCheckpoint']


class KeptExpert(NamedTuple):
    """An expert that is left, and what it is made of.

    Attributes:
        members: Experts of the mixture.
        weights: Of each member in their mean; they sum to 1.
        share: Of the layer's output, where experts stand side by side in a
            dense layer; a layer's sum to 1.
    """
    members: Sequence[int]
    weights: Sequence[float]
    share: float


# Block -> its experts that are left.
Kept = Mapping[int, Sequence[KeptExpert]]


class ShrunkCheckpoint(CheckpointView):
    """A view: what is read is computed from the mixture.

    An expert of one member is read as it is. A mean is computed in float32
    (float64 of float64), as the first member and weighted differences from it:
    of equal members it is that expert, bit by bit.

    Args:
        mixture: The mixture of experts.
        kept: What is left of each of its layers.
        model_config: The MPT config of what it becomes, flat: a mixture of
            fewer experts, or a dense model.
        dtype: Of what is computed; None for that of the mixture.

    Raises:
        CheckpointError: The mixture's config is not that of its tensors; the
            message names one.
    """

    def __init__(
        self,
        mixture: Mixture,
        kept: Kept,
        model_config: Mapping[str, Any],
        dtype: Optional[torch.dtype] = None,
    ):
        super().__init__(mixture.source, model_config)
        self._mixture = mixture
        self._kept = kept
        with config_of(self._source):
            shapes = parameter_shapes(self.model_config)
        self._is_dense = not is_mixture(shapes)
        self._stacks = {name: self._stack_of(name) for name in shapes}
        self.tensors = {}
        for name, shape in shapes.items():
            found = self._info(name, dtype)
            if found is None or found.shape != shape:
                raise self._wrong(name, found and found.shape, shape)
            self.tensors[name] = found
        for name, info in self._source.tensors.items():
            if name not in shapes and not is_moe_name(name):
                raise self._wrong(name, info.shape, None)

    def read(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        shape, dtype = self.tensors[name]
        stack, layer = self._stacks[name], parse_router_name(name)
        if layer is not None:
            whole_ND = self._router(layer, name)
        elif stack is not None:
            is_down = self._is_dense and stack.weight == 'w2'
            # A dense down projection is (D, N * F).
            dim = 1 - dim if is_down else dim
            rows = self._rows(stack, name, dim, start, stop)
            return rows.t() if is_down else rows
        elif name in self._source.tensors:
            return self._source.read(name, dim, start, stop)
        else:
            whole_ND = torch.zeros(shape, dtype=dtype)
        return whole_ND.narrow(dim, start, stop - start)

    def _stack_of(self, name: str) -> Optional[ExpertName]:
        """The experts that a weight is made of."""
        if name in self._source.tensors:  # A layer may be dense already.
            return parse_expert_name(name)
        return expert_name(name, self._mixture.mlp_type)

    def _info(
        self,
        name: str,
        dtype: Optional[torch.dtype],
    ) -> Optional[TensorInfo]:
        """What can be made of the mixture."""
        stack, layer = self._stacks[name], parse_router_name(name)
        own = self._source.tensors.get(stack.name if stack else name)
        if layer is not None and own:
            n, D = len(self._kept[layer]), own.shape[1]
            return TensorInfo((n, D), dtype or own.dtype)
        if stack and own:
            n, D = len(self._kept[stack.layer]), own.shape[1]
            rows = n * self._mixture.hidden_size
            is_down = self._is_dense and stack.weight == 'w2'
            shape = (D, rows) if is_down else (rows, D)
            return TensorInfo(shape, dtype or own.dtype)
        weight_name = f'{name.removesuffix("bias")}weight'
        if own is None and self._stacks.get(weight_name):
            # A dense layer's bias, zero: experts hold none.
            weight = self.tensors[weight_name]
            return TensorInfo(weight.shape[:1], weight.dtype)
        return own

    def _wrong(self, name: str, found: Any, needed: Any) -> CheckpointError:
        return CheckpointError(
            self.path,
            f'{name} has shape {found}, and its config describes {needed} '
            '(None: no such tensor).',
            'name a checkpoint whose config is that of its weights.',
        )

    def _router(self, layer: int, name: str) -> torch.Tensor:
        router_ED = self._mixture.router(layer)
        rows = [
            _mean(kept, lambda expert: router_ED[expert])
            for kept in self._kept[layer]
        ]
        return self._cast(name, torch.stack(rows))

    def _rows(
        self,
        stack: ExpertName,
        name: str,
        dim: int,
        start: int,
        stop: int,
    ) -> torch.Tensor:
        """Part of the experts one below the other, (N * F, D)."""
        F = self._mixture.hidden_size
        columns = slice(None) if dim == 0 else slice(start, stop)
        pieces = []
        for i, kept in enumerate(self._kept[stack.layer]):
            first, last = 0, F
            if dim == 0:
                first, last = max(start - i * F, 0), min(stop - i * F, F)
            if first >= last:
                continue
            rows = _mean(
                kept,
                lambda expert, first=first, last=last: self._mixture.
                rows(stack, expert, first, last)[:, columns],
            )
            if self._is_dense and stack.weight == 'w2' and kept.share != 1:
                rows = rows.to(_wide(rows.dtype)) * kept.share
            pieces.append(self._cast(name, rows))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _cast(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        return self.narrowing.cast(name, tensor, self.tensors[name].dtype)


def _mean(
    kept: KeptExpert,
    read: Callable[[int], torch.Tensor],
) -> torch.Tensor:
    first, *others = kept.members
    base = read(first)
    if not others:
        return base
    base = base.to(_wide(base.dtype))
    mean = base.clone()
    for expert, weight in zip(others, kept.weights[1:]):
        mean += weight * (read(expert) - base)
    return mean


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
