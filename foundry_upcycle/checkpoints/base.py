"""What every reader gives: tensors of a checkpoint by name and slice."""

from typing import Any, Mapping, NamedTuple, Protocol

import torch

__all__ = ['CONFIG_KEY', 'CheckpointReader', 'TensorInfo', 'flatten']

# Where Composer keeps the config of a Hugging Face model.
CONFIG_KEY = 'state.integrations.huggingface.model.config.content'


class TensorInfo(NamedTuple):
    """Shape and dtype of a stored tensor."""
    shape: tuple[int, ...]
    dtype: torch.dtype


class CheckpointReader(Protocol):
    """Model tensors of a checkpoint, under the names of Composer's model.

    Attributes:
        path: Where the checkpoint is.
        tensors: Every model tensor it holds.
        model_config: The MPT config of the run that saved it, nested keys
            joined by dots; empty where the checkpoint carries none.
    """
    path: str
    tensors: dict[str, TensorInfo]
    model_config: dict[str, Any]

    def read(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        """Reads ``tensor.narrow(dim, start, stop - start)``, on the CPU.

        The result may be a view of the file: do not write to it.
        """
        ...


def flatten(nested: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Leaves of nested mappings, their keys joined by dots."""
    leaves = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            leaves.update(flatten(value, f'{prefix}{key}.'))
        else:
            leaves[f'{prefix}{key}'] = value
    return leaves
