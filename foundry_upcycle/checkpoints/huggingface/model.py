"""A Hugging Face model under MPT's names, wherever its tensors lie."""

import abc
from dataclasses import replace
from typing import Any, Mapping, Optional

import torch

from foundry_upcycle.checkpoints.base import (
    StoredCheckpoint,
    TensorInfo,
    common_dtype,
    dtype_name,
    flatten,
)
from foundry_upcycle.checkpoints.foundry_config import (
    CONFIG_DEFAULTS,
    with_defaults,
)
from foundry_upcycle.checkpoints.huggingface.folding import multipliers
from foundry_upcycle.checkpoints.huggingface.names import (
    Part,
    hf_shapes,
    mpt_shapes,
    parts,
)
from foundry_upcycle.checkpoints.huggingface.own import MPT
from foundry_upcycle.checkpoints.huggingface.to_mpt import to_mpt
from foundry_upcycle.checkpoints.huggingface.zeros import without_zeros
from foundry_upcycle.config import is_whole
from foundry_upcycle.errors import CheckpointError, ConfigError

__all__ = ['HuggingFaceModel']

_EMBEDDING = 'model.transformer.wte.weight'
_HEAD = 'lm_head.weight'


class HuggingFaceModel(StoredCheckpoint):
    """A ``Checkpoint`` of a Hugging Face model, under MPT's names.

    Subclasses read the stored tensors, of the files that they have opened.
    Weights that MPT stores multiplied or shifted (Gemma, Granite) are computed,
    and have at least float32: in bfloat16 they would be rounded. Zeros that add
    nothing are left out.

    Args:
        path: Where it is, for messages.
        hf_config: The content of its ``config.json``.
        stored: Every stored tensor, under its stored name.

    Attributes:
        section: The ``model`` section of the same MPT, without ``name``.
        is_computed: Whether some tensors are computed, not only carried over.
        described_by: What says which tensors there are, for messages.
        repair: What to do where it does not describe those stored.

    Raises:
        CheckpointError: ``stored`` is not exactly what ``hf_config`` describes.
        ConfigError: MPT can't express the model.
    """
    described_by = 'config.json'
    repair = 'make config.json that of these weights, or save the model again.'

    def __init__(
        self,
        path: str,
        hf_config: Mapping[str, Any],
        stored: Mapping[str, TensorInfo],
    ):
        self.path = path
        self._stored = stored
        hf_config, self._stored = without_zeros(
            hf_config,
            stored,
            self._is_zero,
        )
        self._check_layers(hf_config)
        self.section = section = to_mpt(hf_config)
        self._check_experts()
        found = [
            replace(part, hf=self._stored_name(part.hf)) for part in parts(
                section,
                hf_config['model_type'],
                multipliers(hf_config),
            )
        ]
        self._parts: dict[str, list[Part]] = {}
        for part in found:
            self._parts.setdefault(part.mpt, []).append(part)
        self._check_total(found)
        self.tensors = {
            name: TensorInfo(shape, self._dtype(name))
            for name, shape in mpt_shapes(found).items()
        }
        self.model_config = flatten(_as_saved(section))
        self.is_computed = any(part.is_affine for part in found)

    @abc.abstractmethod
    def _read_stored(
        self,
        name: str,
        dim: int,
        start: int,
        stop: int,
    ) -> torch.Tensor:
        """As ``read``, of a stored tensor."""

    def _stored_name(self, name: str) -> str:
        """How a tensor that transformers calls ``name`` is stored."""
        return name

    def require_exact(self, dtype: Optional[torch.dtype]) -> None:
        """Refuses an MPT in a dtype that would round what is computed.

        Args:
            dtype: Of all weights; None keeps each one's own, which is exact.

        Raises:
            ConfigError: It would.
        """
        if self.is_computed and dtype is not None and dtype.itemsize < 4:
            raise ConfigError(
                'dtype',
                dtype_name(dtype),
                "MPT stores a Gemma's norms plus 1 and its embedding times "
                "sqrt(d_model), and a Granite's weights times its multipliers, "
                'which this dtype would round.',
                'use float32; export_hf gives back the original numbers in '
                'any.',
            )

    def read(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        shape, dtype = self.tensors[name]
        pieces = []
        for part in self._parts[name]:
            first, last = start, stop
            if dim == 0:
                first = max(start, part.start) - part.start
                last = min(stop, part.stop) - part.start
            if first < last:
                rows = self._read_part(part, dim, first, last)
                pieces.append(part.to_mpt(rows).to(dtype))
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
        hf_dim = 1 - dim if part.transposed else dim
        if hf_dim == 0:
            start, stop = part.hf_start + start, part.hf_start + stop
            return self._read_stored(part.hf, 0, start, stop)
        rows = self._read_stored(part.hf, 1, start, stop)
        return rows.narrow(0, part.hf_start, part.shape[0])

    def _is_zero(self, name: str) -> bool:
        n_rows = self._stored[name].shape[0]
        return not self._read_stored(name, 0, 0, n_rows).any()

    def _dtype(self, name: str) -> torch.dtype:
        stored = {self._stored[part.hf].dtype for part in self._parts[name]}
        if len(stored) > 1:
            names = ', '.join(part.hf for part in self._parts[name][:3])
            dtypes = ', '.join(sorted(map(dtype_name, stored)))
            raise CheckpointError(
                self.path,
                f'{names} are one tensor in MPT, and have different dtypes '
                f'({dtypes}).',
                'save the model again in one dtype.',
            )
        found = stored.pop()
        return common_dtype(part.dtype(found) for part in self._parts[name])

    def _check_layers(self, hf_config: Mapping[str, Any]) -> None:
        # Before that many names are made.
        n_layers: Any = hf_config.get(
            'num_hidden_layers',
            hf_config.get('n_layers'),
        )
        if is_whole(n_layers) and n_layers > len(self._stored):
            raise self._too_many(f'{n_layers} layers')

    def _check_experts(self) -> None:
        # As above; only some of the layers may have them.
        ffn = self.section['ffn_config']
        n_experts = ffn.get('moe_num_experts', 0)
        layers = ffn.get('moe_layers')
        n_mixtures = self.section['n_layers'] if layers is None else len(layers)
        if n_mixtures * n_experts > len(self._stored):
            raise self._too_many(f'{n_mixtures} layers of {n_experts} experts')

    def _too_many(self, what: str) -> CheckpointError:
        return CheckpointError(
            self.path,
            f'it has {len(self._stored)} tensors, and {self.described_by} '
            f'says {what}.',
            self.repair,
        )

    def _check_total(self, expected: list[Part]) -> None:
        shapes = hf_shapes(expected)
        head = self._stored_name(_HEAD)
        for name, shape in shapes.items():
            if name not in self._stored:
                raise CheckpointError(
                    self.path,
                    f'it has no {name}.',
                    'set tie_word_embeddings: true in config.json if the '
                    'output layer is the embedding; else save the model again.'
                    if name == head else self.repair,
                )
            if self._stored[name].shape != shape:
                raise CheckpointError(
                    self.path,
                    f'{name} has shape {self._stored[name].shape}, '
                    f'{self.described_by} says {shape}.',
                    self.repair,
                )
        for name in self._stored:
            if name == head and name not in shapes:
                self._check_tied()
            elif name not in shapes:
                raise CheckpointError(
                    self.path,
                    f'{name} would be lost: MPT has no place for it in the '
                    f'model that {self.described_by} describes.',
                    'start from a plain causal language model, saved by '
                    'transformers 4 (one tensor per expert, no adapters).',
                )

    def _check_tied(self) -> None:
        """Checks a head that is stored though it is the embedding."""
        names = self._stored_name(_HEAD), self._parts[_EMBEDDING][0].hf
        head, embedding = (self._stored[name] for name in names)
        n_rows, n_columns = embedding.shape
        is_same = head.shape == embedding.shape
        step = max(1, 2**24 // n_columns)
        for first in range(0, n_rows, step) if is_same else ():
            last = min(n_rows, first + step)
            is_same = is_same and _is_same(
                *(self._read_stored(name, 0, first, last) for name in names),
            )
        if not is_same:
            raise CheckpointError(
                self.path,
                f'{names[0]} differs from {names[1]}, and {self.described_by} '
                'says that they are tied.',
                'set tie_word_embeddings: false in config.json if the model '
                'was trained untied.',
            )


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether they are equal, or one is what the other was rounded to."""
    return torch.equal(one, other.to(
        one.dtype
    )) or torch.equal(one.to(other.dtype), other)


def _as_saved(section: Mapping[str, Any]) -> dict[str, Any]:
    """The config that Composer would save beside such a model."""
    from transformers.configuration_utils import PretrainedConfig

    of_mpt = with_defaults(section)
    of_all = PretrainedConfig(
        tie_word_embeddings=of_mpt.pop('tie_word_embeddings'),
        **{
            key: of_mpt.pop(key)
            for key in of_mpt.keys() - CONFIG_DEFAULTS.keys()
        },
    ).to_dict()
    return {**of_mpt, **of_all, 'model_type': MPT}
