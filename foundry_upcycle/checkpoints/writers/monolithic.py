"""Writes Composer's ``.pt`` file, one block of a tensor at a time."""

import io
import pickle
import struct
import sys
import zipfile
import zlib
from collections import OrderedDict
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Callable, Mapping, Optional

import torch
from torch._utils import _rebuild_tensor_v2, _rebuild_tensor_v3
from torch.storage import _dtype_to_storage_type_map

from foundry_upcycle.checkpoints.base import Checkpoint, TensorInfo, nest
from foundry_upcycle.checkpoints.companions import Companions
from foundry_upcycle.checkpoints.composer_files import to_composer
from foundry_upcycle.checkpoints.names import is_mixture
from foundry_upcycle.checkpoints.writers.output import (
    Progress,
    stored_tensors,
    stream_tensor,
)

__all__ = [
    'StreamedTensor',
    'composer_state',
    'streamed',
    'write_archive',
    'write_monolithic',
]

_DENSE_CLASS = 'llmfoundry.models.mpt.modeling_mpt.MPTForCausalLM'
_MOE_CLASS = 'foundry_upcycle.models.upcycled_mpt.UpcycledMPTForCausalLM'

# Where torch.save starts each tensor, in bytes.
_ALIGNMENT = 64


def write_monolithic(
    checkpoint: Checkpoint,
    path: Path,
    dtype: Optional[torch.dtype],
    progress: Progress,
    companions: Optional[Companions] = None,
) -> None:
    """Writes what a run's ``load_path`` takes with ``load_weights_only``.

    The same checkpoint gives the same bytes.

    Args:
        checkpoint: What to write; it is read once, block after block.
        path: The file.
        dtype: Of floating-point tensors; None keeps each one's own.
        progress: Is told the bytes of each block.
        companions: Tokenizer and generation config; None: the checkpoint's.

    Raises:
        CheckpointError: The checkpoint gives other rows than it promised.
        OSError: The file can't be written.
    """
    tensors = {
        name: streamed(checkpoint, name, stored, progress)
        for name, stored in stored_tensors(checkpoint, dtype).items()
    }
    companions = companions or checkpoint.companions()
    write_archive(path, composer_state(checkpoint, tensors, companions))


def composer_state(
    checkpoint: Checkpoint,
    tensors: Mapping[str, Any],
    companions: Companions,
    files_as_text: bool = False,
) -> dict[str, Any]:
    """What Composer saves with ``save_weights_only``.

    Args:
        checkpoint: Whose config it is.
        tensors: Name -> what stands for the tensor.
        companions: See ``to_composer``.
        files_as_text: See ``to_composer``.
    """
    content = nest(checkpoint.model_config)
    if content:
        token_ids = companions.token_ids(content.get('vocab_size', 0))
        # With a pad_token_id, an MPT would not train that row's embedding.
        del token_ids['pad_token_id']
        content |= {k: i for k, i in token_ids.items() if i is not None}
    huggingface = to_composer(companions, files_as_text)
    huggingface['model']['config'] = {
        'file_extension': '.json',
        'content': content,
        'class': _MOE_CLASS if is_mixture(tensors) else _DENSE_CLASS,
    }
    state = {
        'model': OrderedDict(tensors),
        'integrations': {
            'huggingface': huggingface,
        },
    }
    return {'state': state}


@dataclass(frozen=True)
class StreamedTensor:
    """Stands for a tensor while its bytes are still to come.

    Args:
        stored: Its shape and dtype.
        stream: Calls its argument with the tensor's bytes, block after block.
    """
    stored: TensorInfo
    stream: Callable[[Callable[[memoryview], None]], None]


def streamed(
    checkpoint: Checkpoint,
    name: str,
    stored: TensorInfo,
    progress: Progress,
) -> StreamedTensor:
    """A checkpoint's tensor; arguments as of ``stream_tensor``."""
    return StreamedTensor(
        stored,
        lambda write: stream_tensor(checkpoint, name, stored, write, progress),
    )


def write_archive(path: Path, content: Any) -> None:
    """``torch.save`` of something that holds ``StreamedTensor``.

    Args:
        path: The file.
        content: Is pickled; each ``StreamedTensor`` loads as a tensor.
    """
    pickled = io.BytesIO()
    pickler = _Pickler(pickled)
    pickler.dump(content)
    with (
            path.open('wb') as file,
            zipfile.ZipFile(file, 'w') as archive,
            ThreadPoolExecutor(1) as helper,
    ):
        # torch computes offsets from a record .format_version and its own
        # zip layout; without one, as here, it looks them up.
        _write_record(archive, 'data.pkl', pickled.getvalue())
        _write_record(archive, 'byteorder', sys.byteorder.encode())
        for key, tensor in enumerate(pickler.tensors):
            _write_tensor(archive, file, f'data/{key}', tensor, helper)
        _write_record(archive, 'version', b'3\n')


@dataclass(frozen=True)
class _Storage:
    persistent_id: tuple[Any, ...]


class _Pickler(pickle.Pickler):
    """Pickles as ``torch.save`` does, tensors by reference.

    Attributes:
        tensors: Those referred to, in the order of their keys.
    """

    def __init__(self, stream: IO[bytes]):
        super().__init__(stream, protocol=2)
        self.tensors: list[StreamedTensor] = []

    def persistent_id(self, obj: Any) -> Any:
        return obj.persistent_id if isinstance(obj, _Storage) else None

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, StreamedTensor):
            return NotImplemented
        key = str(len(self.tensors))
        self.tensors.append(obj)
        shape, dtype = obj.stored
        # Dtypes as young as float8 have no storage class of their own.
        name = _dtype_to_storage_type_map().get(dtype)
        kind = getattr(torch, name) if name else torch.UntypedStorage
        numel = torch.Size(shape).numel() * (1 if name else dtype.itemsize)
        storage = _Storage(('storage', kind, key, 'cpu', numel))
        stride = torch.empty(shape, device='meta').stride()
        arguments = (storage, 0, shape, stride, False, OrderedDict())
        if name:
            return _rebuild_tensor_v2, arguments
        return _rebuild_tensor_v3, (*arguments, dtype)


def _zip_info(name: str) -> zipfile.ZipInfo:
    # Not with the present time: the same checkpoint gives the same bytes.
    return zipfile.ZipInfo(f'archive/{name}')


def _write_record(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(_zip_info(name), data)


def _write_tensor(
    archive: zipfile.ZipFile,
    file: IO[bytes],
    name: str,
    tensor: StreamedTensor,
    helper: Executor,
) -> None:
    """``ZipFile.open(..., 'w')``, aligned, with checksums on another thread.

    Checksums take a third of the time of writing to the page cache.
    """
    info = _zip_info(name)
    info.file_size = info.compress_size = tensor.stored.n_bytes
    info.header_offset = file.tell()
    info.CRC = 0
    is_large = info.file_size > zipfile.ZIP64_LIMIT
    end = info.header_offset + len(info.FileHeader(is_large))
    info.extra = _padding(end)
    file.write(info.FileHeader(is_large))

    def write(data: memoryview) -> None:
        checksum = helper.submit(zlib.crc32, data, info.CRC)
        file.write(data)
        info.CRC = checksum.result()

    tensor.stream(write)
    archive.start_dir = file.tell()
    file.seek(info.header_offset)
    file.write(info.FileHeader(is_large))
    file.seek(archive.start_dir)
    archive.filelist.append(info)
    archive.NameToInfo[info.filename] = info


def _padding(end: int) -> bytes:
    # A header's extra field: the two letters torch uses, length, zeros.
    n_zeros = -(end + 4) % _ALIGNMENT
    return struct.pack('<2sH', b'FB', n_zeros) + bytes(n_zeros)
