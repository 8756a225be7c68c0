"""Reads a Hugging Face folder: ``config.json`` and safetensors files.

No pickle is ever loaded: a folder with only ``pytorch_model.bin`` is refused.
"""

import copy
import json
import os
import warnings
from typing import Any, Iterable, Mapping, NamedTuple, Optional

import torch
from llmfoundry.models.mpt.configuration_mpt import MPTConfig
from safetensors import SafetensorError, safe_open

from foundry_upcycle.checkpoints.base import (
    Checkpoint,
    TensorInfo,
    dtype_name,
    flatten,
)
from foundry_upcycle.checkpoints.huggingface.names import (
    Part,
    mpt_shapes,
    parts,
)
from foundry_upcycle.checkpoints.huggingface.to_mpt import to_mpt
from foundry_upcycle.errors import CheckpointError, ConfigError

__all__ = [
    'INDEX',
    'SINGLE',
    'HuggingFaceReader',
    'is_huggingface_folder',
    'read_config',
    'weight_files',
]

_CONFIG = 'config.json'
SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'

_DTYPES = {
    'F64': torch.float64,
    'F32': torch.float32,
    'F16': torch.float16,
    'BF16': torch.bfloat16,
}

# Buffers that transformers once saved, and computes from the config.
_HARMLESS = '.rotary_emb.inv_freq'

_EMBEDDING = 'model.embed_tokens.weight'
_HEAD = 'lm_head.weight'

_COPY_AGAIN = 'copy the folder again, or save the model again.'


class _Stored(NamedTuple):
    """A stored tensor: its file, shape and safetensors dtype."""
    file: str
    shape: tuple[int, ...]
    dtype: str


class HuggingFaceReader(Checkpoint):
    """A ``Checkpoint`` of a Hugging Face folder, under MPT's names.

    Each read opens the files it needs and touches only the rows or columns
    asked for. Weights of Gemma that MPT stores multiplied or shifted are
    computed, and have at least float32: in bfloat16 they would be rounded.

    Args:
        path: A local folder.

    Attributes:
        section: The ``model`` section of the same MPT, without ``name``.
        is_computed: Whether some tensors are computed, not only carried over.

    Raises:
        CheckpointError: A file is missing, damaged, quantised, or does not
            hold exactly the tensors that ``config.json`` describes.
        ConfigError: MPT can't express the model.
    """

    def __init__(self, path: str):
        self.path = path
        hf_config = read_config(path)
        self._stored = _stored_tensors(path)
        self.section = section = to_mpt(hf_config)
        self._parts: dict[str, list[Part]] = {}
        found = parts(section, hf_config['model_type'])
        for part in found:
            self._parts.setdefault(part.mpt, []).append(part)
        self._check_total(found)
        self.tensors = {
            name: TensorInfo(shape, self._dtype(name))
            for name, shape in mpt_shapes(found).items()
        }
        self.model_config = flatten(_as_saved(section))
        self.is_computed = any(part.is_affine for part in found)

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
                'sqrt(d_model), which this dtype would round.',
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
                stored_dim = 1 - dim if part.transposed else dim
                stored = self._read_stored(part.hf, stored_dim, first, last)
                pieces.append(part.to_mpt(stored))
        if not pieces:
            return torch.empty(shape, dtype=dtype).narrow(dim, 0, 0)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _read_stored(
        self,
        name: str,
        dim: int,
        start: int,
        stop: int,
    ) -> torch.Tensor:
        where = (slice(None), ) * dim + (slice(start, stop), )
        file = os.path.join(self.path, self._stored[name].file)
        try:
            # Closed after each read, so that its mapped pages are released.
            with safe_open(file, framework='pt') as stream:
                return self._finite(name, stream.get_slice(name)[where])
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                file,
                f'{name} can no longer be read ({error}).',
                _COPY_AGAIN,
            ) from error

    def _dtype(self, name: str) -> torch.dtype:
        stored = {self._stored[part.hf].dtype for part in self._parts[name]}
        if len(stored) > 1:
            names = ', '.join(part.hf for part in self._parts[name][:3])
            raise CheckpointError(
                self.path,
                f'{names} are one tensor in MPT, and have different dtypes '
                f'({", ".join(sorted(stored))}).',
                'save the model again in one dtype.',
            )
        return self._parts[name][0].dtype(_DTYPES[stored.pop()])

    def _check_total(self, expected: Iterable[Part]) -> None:
        shapes = {part.hf: part.shape for part in expected}
        for name, shape in shapes.items():
            if name not in self._stored:
                raise CheckpointError(
                    self.path,
                    f'it has no {name}.',
                    'set tie_word_embeddings: true in config.json if the '
                    'output layer is the embedding; else save the model again.'
                    if name == _HEAD else
                    'make config.json that of these weights, or save the '
                    'model again.',
                )
            if self._stored[name].shape != shape:
                raise CheckpointError(
                    self.path,
                    f'{name} has shape {self._stored[name].shape}, config.json '
                    f'says {shape}.',
                    'make config.json that of these weights.',
                )
        for name in self._stored:
            if name == _HEAD and name not in shapes:
                self._check_tied()
            elif name not in shapes:
                raise CheckpointError(
                    self.path,
                    f'{name} would be lost: MPT has no place for it in the '
                    'model that config.json describes.',
                    'start from a plain causal language model, saved by '
                    'transformers 4 (one tensor per expert, no adapters).',
                )

    def _check_tied(self) -> None:
        """Checks a head that is stored though it is the embedding."""
        n_rows, n_columns = self._stored[_EMBEDDING].shape
        is_same = self._stored[_HEAD][1:] == self._stored[_EMBEDDING][1:]
        step = max(1, 2**24 // n_columns)
        for first in range(0, n_rows, step) if is_same else ():
            last = min(n_rows, first + step)
            head, embedding = (
                self._read_stored(name, 0, first, last)
                for name in (_HEAD, _EMBEDDING)
            )
            is_same = is_same and torch.equal(head, embedding)
        if not is_same:
            raise CheckpointError(
                self.path,
                f'{_HEAD} differs from {_EMBEDDING}, and config.json says that '
                'they are tied.',
                'set tie_word_embeddings: false in config.json if the model '
                'was trained untied.',
            )


def is_huggingface_folder(path: str) -> bool:
    """Whether a folder is a saved Hugging Face model, of whatever kind."""
    return os.path.isfile(os.path.join(path, _CONFIG))


def read_config(folder: str) -> dict[str, Any]:
    """Content of a folder's ``config.json``.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    return _read_json(folder, _CONFIG)


def weight_files(folder: str) -> list[str]:
    """Names of the files that make up the model in a Hugging Face folder.

    Only ``config.json`` and the index are read: shards may be missing yet.

    Raises:
        CheckpointError: The folder has no safetensors, or a damaged index.
    """
    if os.path.isfile(os.path.join(folder, SINGLE)):
        return [_CONFIG, SINGLE]
    if os.path.isfile(os.path.join(folder, INDEX)):
        shards = sorted(set(_weight_map(folder).values()))
        return [_CONFIG, INDEX, *shards]
    pickles = [name for name in os.listdir(folder) if name.endswith('.bin')]
    raise CheckpointError(
        folder,
        f'it has neither {SINGLE} nor {INDEX}' + (
            f', only pickles ({sorted(pickles)[0]}), which are not loaded.'
            if pickles else '.'
        ),
        'save the model with transformers: '
        'model.save_pretrained(folder, safe_serialization=True).',
    )


def _as_saved(section: Mapping[str, Any]) -> dict[str, Any]:
    """The config that Composer would save beside such a model."""
    with warnings.catch_warnings():
        # Foundry warns that rope replaces learned positions.
        warnings.simplefilter('ignore')
        return MPTConfig(**copy.deepcopy(dict(section))).to_dict()


def _read_json(folder: str, name: str) -> dict[str, Any]:
    path = os.path.join(folder, name)
    try:
        with open(path, encoding='utf-8') as stream:
            content = json.load(stream)
        if not isinstance(content, dict):
            raise ValueError('it holds no mapping')
        return content
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            path,
            f'it is missing or not JSON ({error}).',
            'name a Hugging Face folder, or copy it again.',
        ) from error


def _weight_map(folder: str) -> dict[str, str]:
    """Tensor name -> file, of an index."""
    path = os.path.join(folder, INDEX)
    files = _read_json(folder, INDEX).get('weight_map')
    if not isinstance(files, dict):
        raise CheckpointError(path, 'it has no weight_map.', _COPY_AGAIN)
    for name, file in files.items():
        is_inside = isinstance(file, str) and os.path.basename(file) == file
        if not is_inside or file in ('', '.', '..'):
            raise CheckpointError(
                path,
                f'{name} is said to be in {file!r}, which is not a file of '
                'this folder.',
                'do not use a folder that you do not trust; copy it again.',
            )
    return files


def _stored_tensors(folder: str) -> dict[str, _Stored]:
    """All tensors by Hugging Face name; every file's header is checked."""
    names = [n for n in weight_files(folder) if not n.endswith('.json')]
    stored: dict[str, _Stored] = {}
    for file in names:
        stored.update(_read_header(folder, file))
    if names != [SINGLE]:
        _check_index(folder, stored)
    found = {n: s for n, s in stored.items() if not n.endswith(_HARMLESS)}
    for name, tensor in found.items():
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(
                os.path.join(folder, tensor.file),
                f'{name} has dtype {tensor.dtype}: the model is quantised, or '
                'no language model.',
                'start from the unquantised weights.',
            )
    return found


def _read_header(folder: str, file: str) -> dict[str, _Stored]:
    path = os.path.join(folder, file)
    if not os.path.isfile(path):
        raise CheckpointError(path, 'the shard is missing.', _COPY_AGAIN)
    stored = {}
    try:
        with safe_open(path, framework='pt') as stream:
            for name in stream.keys():
                tensor = stream.get_slice(name)
                shape = tuple(tensor.get_shape())
                stored[name] = _Stored(file, shape, tensor.get_dtype())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            path,
            f'it is truncated or not a safetensors file ({error}).',
            _COPY_AGAIN,
        ) from error
    return stored


def _check_index(folder: str, stored: Mapping[str, _Stored]) -> None:
    listed = _weight_map(folder)
    for name in sorted({*listed, *stored}):
        found = stored[name].file if name in stored else None
        if listed.get(name) != found:
            raise CheckpointError(
                os.path.join(folder, INDEX),
                f'it says that {name} is in {listed.get(name)}, and it is in '
                f'{found}.',
                _COPY_AGAIN,
            )
