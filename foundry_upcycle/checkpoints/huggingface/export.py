"""An MPT checkpoint seen as a Hugging Face model."""

from typing import Any, Mapping, Optional

import torch

from foundry_upcycle.checkpoints.base import (
    FLOAT_DTYPES,
    Checkpoint,
    TensorInfo,
    dtype_name,
    nest,
)
from foundry_upcycle.checkpoints.huggingface.names import (
    Part,
    mpt_shapes,
    parts,
)
from foundry_upcycle.checkpoints.huggingface.to_huggingface import (
    to_huggingface,
)
from foundry_upcycle.checkpoints.settings import require_mpt
from foundry_upcycle.errors import CheckpointError

__all__ = ['ExportedCheckpoint']


class ExportedCheckpoint(Checkpoint):
    """A view of an MPT checkpoint under Hugging Face's names.

    Unlike every other ``Checkpoint`` its names are not those of Composer's
    model but those of the Hugging Face architecture, in that model's order;
    ``model_config`` stays the MPT's. Each tensor is a slice of one MPT
    tensor, in places transposed, so a result need not be contiguous.

    Args:
        source: The MPT checkpoint, dense or a mixture of experts.
        model_type: The architecture; None chooses the plainest that fits.

    Attributes:
        config: The content of ``config.json``.

    Raises:
        CheckpointError: The source carries no config, or not exactly the
            tensors that its config describes, or quantised ones.
        ConfigError: The architecture can't hold the model.
    """

    def __init__(self, source: Checkpoint, model_type: Optional[str] = None):
        require_mpt(source)
        self.path = source.path
        self.narrowing = source.narrowing
        self.model_config = source.model_config
        self._source = source
        mpt_config = nest(source.model_config)
        self.config = to_huggingface(mpt_config, model_type)
        found = parts(mpt_config, self.config['model_type'])
        _check_total(source, mpt_shapes(found))
        self._parts: dict[str, Part] = {part.hf: part for part in found}
        self.tensors = {
            part.hf:
            TensorInfo(
                part.shape,
                part.dtype(source.tensors[part.mpt].dtype),
            )
            for part in found
        }
        self.config['torch_dtype'] = _name_of_dtype(self.tensors)

    def read(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        part = self._parts[name]
        mpt_dim = 1 - dim if part.transposed else dim
        if mpt_dim == 0:
            start, stop = part.start + start, part.start + stop
            rows = self._source.read(part.mpt, 0, start, stop)
        else:
            # Only this tensor's rows, then its columns of them.
            rows = self._source.read(part.mpt, 0, part.start, part.stop)
            rows = rows.narrow(1, start, stop - start)
        return part.to_huggingface(rows)


def _check_total(
    source: Checkpoint,
    expected: Mapping[str, tuple[int, ...]],
) -> None:
    for name in (*expected, *source.tensors):
        info: Any = source.tensors.get(name)
        found = info.shape if info else None
        if found != expected.get(name):
            raise CheckpointError(
                source.path,
                f'{name} has shape {found}, and the config beside it describes '
                f'{expected.get(name)} (None: no such tensor).',
                'export a checkpoint whose config is that of its weights.',
            )
        if info.dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                source.path,
                f'{name} has dtype {info.dtype}.',
                'start from weights in float32, bfloat16 or float16.',
            )


def _name_of_dtype(tensors: Mapping[str, TensorInfo]) -> str:
    """The smallest dtype that holds every tensor, as transformers names it."""
    dtype = next(iter(tensors.values())).dtype
    for info in tensors.values():
        dtype = torch.promote_types(dtype, info.dtype)
    return dtype_name(dtype)
