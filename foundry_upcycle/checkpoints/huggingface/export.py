"""An MPT checkpoint seen as a Hugging Face model."""

from typing import Any, Mapping, Optional

import torch

from foundry_upcycle.checkpoints.base import (
    Checkpoint,
    CheckpointView,
    TensorInfo,
    common_dtype,
    dtype_name,
    nest,
    require_tensor,
)
from foundry_upcycle.checkpoints.huggingface.folding import multipliers
from foundry_upcycle.checkpoints.huggingface.names import (
    Part,
    hf_shapes,
    mpt_shapes,
    parts,
    zero_shapes,
)
from foundry_upcycle.checkpoints.huggingface.to_huggingface import (
    to_huggingface,
)
from foundry_upcycle.checkpoints.settings import require_mpt
from foundry_upcycle.config import is_whole
from foundry_upcycle.errors import ConfigError

__all__ = ['ExportedCheckpoint']


class ExportedCheckpoint(CheckpointView):
    """A view of an MPT checkpoint under Hugging Face's names.

    Unlike every other ``Checkpoint`` its names are not those of Composer's
    model but those of the Hugging Face architecture, in that model's order;
    ``model_config`` stays the MPT's. Each tensor is made of slices of MPT
    tensors, in places transposed, so a result need not be contiguous.

    Args:
        source: The MPT checkpoint, dense or a mixture of experts.
        model_type: The architecture; None chooses the plainest that fits.
        like: The ``config.json`` of the model it came from, if there is one.
        top_k: Experts K a token goes to; None keeps the checkpoint's, of one
            that varies the largest.

    Attributes:
        config: The content of ``config.json``.

    Raises:
        CheckpointError: The source carries no config, or not exactly the
            tensors that its config describes, or quantised ones.
        ConfigError: The architecture can't hold the model, or it has not as
            many experts.
    """

    def __init__(
        self,
        source: Checkpoint,
        model_type: Optional[str] = None,
        like: Mapping[str, Any] = {},  # noqa: B006
        top_k: Optional[int] = None,
    ):
        settings = require_mpt(source)
        super().__init__(source, source.model_config)
        mpt_config = nest(source.model_config)
        if top_k is not None:
            _check_top_k(settings, top_k)
            mpt_config['ffn_config']['moe_top_k'] = top_k
        self.config = to_huggingface(mpt_config, model_type, like)
        chosen = self.config['model_type']
        found = parts(mpt_config, chosen, multipliers(self.config))
        _check_total(source, mpt_shapes(found))
        self._parts: dict[str, list[Part]] = {}
        for part in found:
            self._parts.setdefault(part.hf, []).append(part)
        self.tensors = {
            name: TensorInfo(shape, self._dtype(name))
            for name, shape in hf_shapes(found).items()
        }
        dtype = common_dtype(i.dtype for i in self.tensors.values())
        for name, shape in zero_shapes(mpt_config, chosen).items():
            self.tensors[name] = TensorInfo(shape, dtype)
        self.config['torch_dtype'] = dtype_name(dtype)

    def read(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        shape, dtype = self.tensors[name]
        if name not in self._parts:
            return torch.zeros(
                shape, dtype=dtype
            ).narrow(
                dim,
                start,
                stop - start,
            )
        pieces = []
        for part in self._parts[name]:
            first, last = start, stop
            if dim == 0:
                first = max(start, part.hf_start) - part.hf_start
                last = min(stop, part.hf_stop) - part.hf_start
            if first < last:
                rows = self._read_part(part, dim, first, last)
                pieces.append(part.to_huggingface(rows).to(dtype))
        if not pieces:
            return torch.empty(shape, dtype=dtype).narrow(dim, 0, 0)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _read_part(
        self,
        part: Part,
        dim: int,
        start: int,
        stop: int,
    ) -> torch.Tensor:
        mpt_dim = 1 - dim if part.transposed else dim
        if mpt_dim == 0:
            start, stop = part.start + start, part.start + stop
            return self._source.read(part.mpt, 0, start, stop)
        # Only this tensor's rows, then its columns of them.
        rows = self._source.read(part.mpt, 0, part.start, part.stop)
        return rows.narrow(1, start, stop - start)

    def _dtype(self, name: str) -> torch.dtype:
        return common_dtype(
            part.dtype(self._source.tensors[part.mpt].dtype)
            for part in self._parts[name]
        )


def _check_top_k(settings: Mapping[str, Any], top_k: int) -> None:
    if settings['ffn_config.ffn_type'] != 'upcycled_dmoe':
        raise ConfigError(
            'top_k',
            top_k,
            'the model is dense.',
            'leave it out (--top-k).',
        )
    n_experts = settings['ffn_config.moe_num_experts']
    if not (is_whole(top_k) and 1 <= top_k <= n_experts):
        raise ConfigError(
            'top_k',
            top_k,
            f'the model has {n_experts} experts.',
            'write how many of them a token goes to (--top-k).',
        )


def _check_total(
    source: Checkpoint,
    expected: Mapping[str, tuple[int, ...]],
) -> None:
    fix = 'export a checkpoint whose config is that of its weights.'
    for name in (*expected, *source.tensors):
        require_tensor(source, name, expected.get(name), fix)
