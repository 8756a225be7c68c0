"""Reads a Hugging Face folder: ``config.json`` and safetensors files.

No pickle is ever loaded: a folder with only ``pytorch_model.bin`` is refused.
"""

import os
from typing import Any, Mapping, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from foundry_upcycle.checkpoints.base import TensorInfo
from foundry_upcycle.checkpoints.companions import Companions
from foundry_upcycle.checkpoints.huggingface.model import HuggingFaceModel
from foundry_upcycle.documents import DocumentError, read_json
from foundry_upcycle.errors import CheckpointError

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
_HEAD = 'lm_head.weight'

_COPY_AGAIN = 'copy the folder again, or save the model again.'


class _Stored(NamedTuple):
    """A stored tensor: its file, shape and safetensors dtype."""
    file: str
    shape: tuple[int, ...]
    dtype: str


class HuggingFaceReader(HuggingFaceModel):
    """The model in a Hugging Face folder.

    Each read opens the files it needs and touches only the rows or columns
    asked for.

    Args:
        path: A local folder.

    Raises:
        CheckpointError: A file is missing, damaged, quantised, or does not
            hold exactly the tensors that ``config.json`` describes.
        ConfigError: MPT can't express the model.
    """

    def __init__(self, path: str):
        self.hf_config = read_config(path)
        stored = _stored_tensors(path)
        self._files = {name: tensor.file for name, tensor in stored.items()}
        infos = {
            name: TensorInfo(tensor.shape, _DTYPES[tensor.dtype])
            for name, tensor in stored.items()
        }
        super().__init__(path, self.hf_config, infos)

    def companions(self, with_tokenizer: bool = True) -> Companions:
        return Companions.of_folder(self.path, self.hf_config, with_tokenizer)

    def _read_stored(
        self,
        name: str,
        dim: int,
        start: int,
        stop: int,
    ) -> torch.Tensor:
        where = (slice(None), ) * dim + (slice(start, stop), )
        file = os.path.join(self.path, self._files[name])
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


def _read_json(folder: str, name: str) -> dict[str, Any]:
    path = os.path.join(folder, name)
    try:
        content = read_json(path)
        if not isinstance(content, dict):
            raise DocumentError('it holds no mapping.')
        return content
    except (OSError, DocumentError) as error:
        raise CheckpointError(
            path,
            f'it is missing or not JSON: {error}',
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
    # Some list what was never saved: buffers, and a head that is the embedding.
    absent = {
        name
        for name in listed.keys() - stored.keys()
        if name == _HEAD or name.endswith(_HARMLESS)
    }
    for name in sorted({*listed, *stored} - absent):
        found = stored[name].file if name in stored else None
        if listed.get(name) != found:
            raise CheckpointError(
                os.path.join(folder, INDEX),
                f'it says that {name} is in {listed.get(name)}, and it is in '
                f'{found}.',
                _COPY_AGAIN,
            )
