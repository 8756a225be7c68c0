"""Weights in a dtype of less range: none becomes infinite, few become 0."""

import warnings
from collections import Counter
from typing import Optional

import torch

from foundry_upcycle.errors import CheckpointError, UpcyclingWarning

__all__ = ['Narrowing', 'overflowing']

# Of a tensor's weights that are not 0, how many may become 0 without a word.
# Of a usual one, normal with deviation 0.02, float16 loses 1 in a million.
_UNTOLD_SHARE = 0.001


class Narrowing:
    """Casts a checkpoint's weights, and knows what that lost.

    A checkpoint and the views of it share one.

    Args:
        path: Of the checkpoint, for messages.

    Attributes:
        allow_overflow: Whether finite weights may become infinite.
    """

    def __init__(self, path: str):
        self.path = path
        self.allow_overflow = False
        # By tensor and dtype: weights that were not 0, and those of them that
        # became 0.
        self._weights: Counter[tuple[str, torch.dtype]] = Counter()
        self._zeros: Counter[tuple[str, torch.dtype]] = Counter()

    def cast(
        self,
        name: str,
        tensor: torch.Tensor,
        dtype: torch.dtype,
        out: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """``tensor.to(dtype)``, or that in ``out``.

        Args:
            name: The tensor's, for messages.
            tensor: All of it, or a part.
            dtype: The result's.
            out: Where to write the result, of this dtype.

        Raises:
            CheckpointError: A finite weight would become infinite, and may not.
        """
        cast = tensor.to(dtype) if out is None else out.copy_(tensor)
        if not self.allow_overflow:
            value = overflowing(tensor, cast)
            if value is not None:
                raise CheckpointError(
                    self.path,
                    f'{name} has the weight {value:g}, and the largest that '
                    f'{_name(dtype)} holds is {torch.finfo(dtype).max:g}.',
                    'choose float32; or give convert, import-hf or export-hf '
                    '--allow-overflow, and it becomes infinite.',
                )
        if _may_become_0(tensor.dtype, dtype):
            n_weights = int(tensor.count_nonzero())
            self._weights[name, dtype] += n_weights
            # As float32, of which it is quicker.
            n_left = int(cast.float().count_nonzero())
            self._zeros[name, dtype] += n_weights - n_left
        return cast

    def warn_of_zeros(self) -> None:
        """Warns once if of any tensor many weights became 0."""
        shares = {
            key: zeros / self._weights[key]
            for key, zeros in self._zeros.items()
            if zeros
        }
        many = [key for key in shares if shares[key] > _UNTOLD_SHARE]
        if many:
            name, dtype = worst = max(many, key=lambda key: shares[key])
            warnings.warn(
                f'{self.path}: weights that are not 0 are 0 in {_name(dtype)}: '
                f'{shares[worst]:.1%} of {name}, and more than '
                f'{_UNTOLD_SHARE:.1%} of {len(many)} tensors in all. Fix: '
                'choose bfloat16 or float32, which hold smaller ones.',
                UpcyclingWarning,
                stacklevel=2,
            )


def overflowing(tensor: torch.Tensor, cast: torch.Tensor) -> Optional[float]:
    """The largest finite value of a tensor that is not so after a cast."""
    if not (tensor.is_floating_point() and cast.is_floating_point()):
        return None
    limit = torch.finfo(cast.dtype).max
    if not tensor.numel() or limit >= torch.finfo(tensor.dtype).max:
        return None
    # As Python's numbers: a tensor would round the limit to its dtype.
    lowest, highest = (value.item() for value in tensor.aminmax())
    if -limit <= lowest and highest <= limit:  # False also with a NaN.
        return None
    lost = tensor[tensor.isfinite() & ~cast.float().isfinite()]
    return lost[lost.abs().argmax()].item() if len(lost) else None


def _may_become_0(dtype: torch.dtype, to: torch.dtype) -> bool:
    # Of float32's and bfloat16's, which are the same, only subnormal values
    # could, below 1e-38.
    return (
        dtype.is_floating_point and to.is_floating_point
        and torch.finfo(to).smallest_normal > torch.finfo(dtype).smallest_normal
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix('torch.')
