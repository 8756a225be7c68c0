"""What every checkpoint gives: its tensors, by name and slice."""

import abc
import warnings
from functools import cached_property, reduce
from typing import Any, Iterable, Iterator, Mapping, NamedTuple, Optional

import torch

from foundry_upcycle.checkpoints.companions import Companions
from foundry_upcycle.checkpoints.narrowing import Narrowing
from foundry_upcycle.checkpoints.source import SourceFiles
from foundry_upcycle.errors import CheckpointError, UpcyclingWarning

__all__ = [
    'CONFIG_KEY',
    'FLOAT_DTYPES',
    'HUGGINGFACE_KEY',
    'Checkpoint',
    'CheckpointView',
    'StoredCheckpoint',
    'TensorInfo',
    'common_dtype',
    'dtype_name',
    'flatten',
    'flatten_config',
    'nest',
    'require_tensor',
]

# Below ``ffn_config``: a number, or a mapping that is one value.
_TOP_K = 'moe_top_k'

# Where Composer keeps tokenizer and config of a Hugging Face model.
HUGGINGFACE_KEY = 'state.integrations.huggingface'
CONFIG_KEY = f'{HUGGINGFACE_KEY}.model.config.content'

# Dtypes of weights; others are quantised, or no weights.
FLOAT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

_BLOCK_BYTES = 64 * 2**20


class TensorInfo(NamedTuple):
    """Shape and dtype of a stored tensor."""
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def n_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Checkpoint(abc.ABC):
    """Model tensors under the names of Composer's model, read lazily.

    Files, or a view of another checkpoint (such as a dense one seen as a
    mixture of experts).

    Attributes:
        path: Where the checkpoint is, for messages.
        tensors: Every model tensor it holds.
        model_config: The MPT config of the model, nested keys joined by dots;
            empty where the checkpoint carries none.
    """
    path: str
    tensors: dict[str, TensorInfo]
    model_config: dict[str, Any]

    @cached_property
    def narrowing(self) -> Narrowing:
        """Casts what is read of it."""
        return Narrowing(self.path)

    @abc.abstractmethod
    def read(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        """Reads ``tensor.narrow(dim, start, stop - start)``, on the CPU.

        The result may be a view of the file: do not write to it.
        """

    def companions(self, with_tokenizer: bool = True) -> Companions:
        """Tokenizer and generation config that lie beside the weights.

        Args:
            with_tokenizer: Whether the tokenizer is wanted. One that can't be
                read does no harm where it is not.

        Raises:
            CheckpointError: They can't be read.
        """
        return Companions(self.path, {}, self.model_config)

    def check_tokens(  # noqa: B027 - most know nothing of it.
        self,
        path: str,
        ids: Mapping[str, int],
    ) -> None:
        """Checks a tokenizer of elsewhere, where the model's own is known.

        Args:
            path: Where it is, for messages.
            ids: Every token -> id.

        Raises:
            CheckpointError: It is another model's.
        """

    def rows(self, name: str, start: int, stop: int) -> Iterator[torch.Tensor]:
        """Reads the same along dimension 0, block after block.

        A block is small beside the tensor wherever the tensor is large, so
        whoever lets go of each before the next needs little memory.
        """
        shape, dtype = self.tensors[name]
        row_bytes = torch.Size(shape[1:]).numel() * dtype.itemsize
        step = max(1, _BLOCK_BYTES // max(1, row_bytes))
        for first in range(start, stop, step):
            yield self.read(name, 0, first, min(stop, first + step))


class CheckpointView(Checkpoint):
    """A ``Checkpoint`` whose tensors are computed from those of another.

    Casts and whatever lies beside the weights are that one's.

    Args:
        source: The other.
        model_config: The MPT config of what it is seen as, flat.
    """

    def __init__(self, source: Checkpoint, model_config: Mapping[str, Any]):
        self.path = source.path
        self.model_config = dict(model_config)
        self._source = source

    @cached_property
    def narrowing(self) -> Narrowing:
        return self._source.narrowing

    def companions(self, with_tokenizer: bool = True) -> Companions:
        return self._source.companions(with_tokenizer)

    def check_tokens(self, path: str, ids: Mapping[str, int]) -> None:
        self._source.check_tokens(path, ids)


class StoredCheckpoint(Checkpoint):
    """A ``Checkpoint`` of files.

    Attributes:
        files: Those that were opened. Tensors that were read are of one model
            if ``files.check()`` passes afterwards.
    """
    files: SourceFiles

    def _finite(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Warns, once for each name, if ``tensor`` has NaN or infinite values.

        For subclasses to return what they read through.
        """
        # Any of them spoils the sum, which is quick.
        is_float = tensor.dtype in FLOAT_DTYPES
        if tensor.numel() and is_float and not tensor.sum().isfinite():
            warned = self.__dict__.setdefault('_warned_of', set())
            if name not in warned and not tensor.isfinite().all():
                warned.add(name)
                warnings.warn(
                    f'{self.path}: {name} has NaN or infinite values; what is '
                    'made of it will have them too.',
                    UpcyclingWarning,
                    stacklevel=3,
                )
        return tensor


def require_tensor(
    checkpoint: Checkpoint,
    name: str,
    shape: Optional[tuple[int, ...]],
    fix: str,
) -> None:
    """Refuses a tensor that is not the one its checkpoint's config describes.

    Args:
        checkpoint: Holds it, or not.
        name: Of the tensor.
        shape: What the config describes; None: no such tensor.
        fix: What to do about another shape.

    Raises:
        CheckpointError: It has another shape, or is quantised.
    """
    info: Any = checkpoint.tensors.get(name)
    found = info.shape if info else None
    if found != shape:
        raise CheckpointError(
            checkpoint.path,
            f'{name} has shape {found}, and the config beside it describes '
            f'{shape} (None: no such tensor).',
            fix,
        )
    if info.dtype not in FLOAT_DTYPES:
        raise CheckpointError(
            checkpoint.path,
            f'{name} has dtype {info.dtype}.',
            'start from weights in float32, bfloat16 or float16.',
        )


def common_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The smallest that holds the values of all."""
    return reduce(torch.promote_types, dtypes)


def dtype_name(dtype: torch.dtype) -> str:
    """``bfloat16`` and the like."""
    return str(dtype).removeprefix('torch.')


def flatten(nested: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Leaves of nested mappings, their keys joined by dots.

    ``moe_top_k`` is a leaf, as keys such as 0.7dur have dots.
    """
    leaves = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value and key != _TOP_K:
            leaves.update(flatten(value, f'{prefix}{key}.'))
        else:
            leaves[f'{prefix}{key}'] = value
    return leaves


def flatten_config(path: str, config: Any) -> dict[str, Any]:
    """``flatten`` of the config that a file holds.

    Sharded checkpoints hold it flat.

    Raises:
        CheckpointError: It is none.
    """
    try:
        return _with_whole_top_k(flatten(config))
    except (AttributeError, RecursionError) as error:
        raise CheckpointError(
            path,
            f'its model config is damaged ({error}).',
            'copy it again, or save the checkpoint again.',
        ) from error


def _with_whole_top_k(leaves: dict[str, Any]) -> dict[str, Any]:
    key = f'ffn_config.{_TOP_K}'
    parts = [name for name in leaves if name.startswith(f'{key}.')]
    for name in parts:
        kind, _, inner = name.removeprefix(f'{key}.').partition('.')
        whole = leaves.setdefault(key, {})
        whole.setdefault(kind, {})[inner] = leaves.pop(name)
    return leaves


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of ``flatten``."""
    nested: dict[str, Any] = {}
    for name, value in leaves.items():
        *outer, key = name.split('.')
        inner = nested
        for part in outer:
            inner = inner.setdefault(part, {})
        inner[key] = value
    return nested
