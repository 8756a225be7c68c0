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
from foundry_upcycle.checkpoints.source import SourceFiles
from foundry_upcycle.documents import DocumentError, parse_json
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
        self.files = SourceFiles(path)
        self.hf_config = _read_json(self.files, _CONFIG)
        stored = _stored_tensors(path, self.files)
        self._file_of = {name: tensor.file for name, tensor in stored.items()}
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
        file = self._file_of[name]
        self.files.check(file)
        try:
            # Closed after each read, so that its mapped pages are released.
            with safe_open(self.files.path(file), framework='pt') as stream:
                tensor = stream.get_slice(name)[where]
        except (SafetensorError, OSError) as error:
            raise self.files.changed(file, error) from error
        # That it was not another one, which took its name meanwhile.
        self.files.check(file)
        return self._finite(name, tensor)


def is_huggingface_folder(path: str) -> bool:
    """Whether a folder is a saved Hugging Face model, of whatever kind."""
    return os.path.isfile(os.path.join(path, _CONFIG))


def read_config(folder: str) -> dict[str, Any]:
    """Content of a folder's ``config.json``.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    return _read_json(SourceFiles(folder), _CONFIG)


def weight_files(folder: str) -> list[str]:
    """Names of the files that make up the model in a Hugging Face folder.

    Only ``config.json`` and the index are read: shards may be missing yet.

    Raises:
        CheckpointError: The folder has no safetensors, or a damaged index.
    """
    if os.path.isfile(os.path.join(folder, SINGLE)):
        return [_CONFIG, SINGLE]
    if os.path.isfile(os.path.join(folder, INDEX)):
        shards = sorted(set(_weight_map(SourceFiles(folder)).values()))
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


def _read_json(files: SourceFiles, name: str) -> dict[str, Any]:
    try:
        content = parse_json(files.read(name))
    except DocumentError as error:
        raise CheckpointError(
            files.path(name),
            str(error),
            _COPY_AGAIN,
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            files.path(name),
            'it holds no mapping.',
            _COPY_AGAIN,
        )
    return content


def _weight_map(files: SourceFiles) -> dict[str, str]:
    """Tensor name -> file, of an index."""
    path = files.path(INDEX)
    weight_map = _read_json(files, INDEX).get('weight_map')
    if not isinstance(weight_map, dict):
        raise CheckpointError(path, 'it has no weight_map.', _COPY_AGAIN)
    for name, file in weight_map.items():
        is_inside = isinstance(file, str) and os.path.basename(file) == file
        if not is_inside or file in ('', '.', '..'):
            raise CheckpointError(
                path,
                f'{name} is said to be in {file!r}, which is not a file of '
                'this folder.',
                'do not use a folder that you do not trust; copy it again.',
            )
    return weight_map


def _stored_tensors(folder: str, files: SourceFiles) -> dict[str, _Stored]:
    """All tensors by Hugging Face name; every file's header is checked."""
    names = [n for n in weight_files(folder) if not n.endswith('.json')]
    stored: dict[str, _Stored] = {}
    for file in names:
        header = _read_header(files, file)
        for name in header.keys() & stored.keys():
            raise CheckpointError(
                files.path(file),
                f'it holds {name}, and so does {stored[name].file}.',
                _COPY_AGAIN,
            )
        stored.update(header)
    if names != [SINGLE]:
        _check_index(files, stored)
    found = {n: s for n, s in stored.items() if not n.endswith(_HARMLESS)}
    for name, tensor in found.items():
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(
                files.path(tensor.file),
                f'{name} has dtype {tensor.dtype}: the model is quantised, or '
                'no language model.',
                'start from the unquantised weights.',
            )
    return found


def _read_header(files: SourceFiles, file: str) -> dict[str, _Stored]:
    # By ourselves first: safe_open calls all that it can't open missing.
    files.open(file).close()
    stored = {}
    try:
        with safe_open(files.path(file), framework='pt') as stream:
            for name in stream.keys():
                tensor = stream.get_slice(name)
                shape = tuple(tensor.get_shape())
                stored[name] = _Stored(file, shape, tensor.get_dtype())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            files.path(file),
            f'it is truncated or not a safetensors file ({error}).',
            _COPY_AGAIN,
        ) from error
    return stored


def _check_index(files: SourceFiles, stored: Mapping[str, _Stored]) -> None:
    listed = _weight_map(files)
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
                files.path(INDEX),
                f'it says that {name} is in {listed.get(name)}, and it is in '
                f'{found}.',
                _COPY_AGAIN,
            )
