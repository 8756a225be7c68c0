"""What ``torch.save`` wrote, without any tensor's data.

The zip archive is read here and not by torch, which believes it: of a record
that is compressed, or shorter than its tensor, torch's own lazy loading gives
the bytes of something else.
"""

import datetime
import io
import pickle
import struct
import sys
import zipfile
import zlib
from contextlib import nullcontext
from typing import IO, Any, Optional

import numpy as np
import torch
from torch import _weights_only_unpickler
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._utils import _sparse_tensors_to_validate
from torch.torch_version import TorchVersion

__all__ = ['UnsafePickle', 'load_structure']

_PICKLE = 'data.pkl'
# A header before a record: signature, ..., lengths of its name and extra.
_HEADER = struct.Struct('<4s22xHH')
_SIGNATURE = b'PK\3\4'


class UnsafePickle(ValueError):
    """It could be read only by executing what the message names."""


def load_structure(
    file: IO[bytes],
    start: int = 0,
    stop: Optional[int] = None,
) -> Any:
    """Unpickles what ``torch.save`` wrote, without any tensor's data.

    The storage of each tensor has two attributes: ``_checkpoint_offset``, where
    its bytes start in the file, and ``_checkpoint_bytes``, how many there are.

    Args:
        file: Holds the archive.
        start: Where the archive starts in the file, in bytes.
        stop: Where it ends; None for the end of the file.

    Raises:
        UnsafePickle: It could be read only by executing code.
        Exception: It is damaged, compressed, or of a machine with another byte
            order. Damaged bytes make an unpickler raise almost anything.
    """
    archive = _Archive(file, start, file.seek(0, 2) if stop is None else stop)
    if 'byteorder' in archive:
        order = archive.read('byteorder').decode()
        if order != sys.byteorder:
            raise ValueError(f'its byte order is {order}-endian')
    pickled = archive.read(_PICKLE)
    unpickler: Any = _weights_only_unpickler.Unpickler(
        io.BytesIO(pickled),
        encoding='utf-8',
    )
    unpickler.persistent_load = _Storages(archive).load
    with (
            # A sharded folder has a value for each token of a tokenizer; to
            # begin this mode takes half of the time.
            FakeTensorMode() if archive.has_tensors else nullcontext(),
            torch.serialization.safe_globals(_safe_globals()),
    ):
        try:
            return unpickler.load()
        except pickle.UnpicklingError as error:
            raise UnsafePickle(_unsafe_globals(pickled)) from error
        finally:
            # Of sparse ones, which the next torch.load would check instead.
            _sparse_tensors_to_validate.clear()


class _Window(io.RawIOBase):
    """A part of a file as if it were a file of its own."""

    def __init__(self, file: IO[bytes], start: int, stop: int):
        self._file, self._start, self._length = file, start, stop - start
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        position = (0, self._position, self._length)[whence] + offset
        if position < 0:
            raise OSError('it starts before its first byte')
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        left = max(0, self._length - self._position)
        self._file.seek(self._start + self._position)
        data = self._file.read(min(len(buffer), left))
        buffer[:len(data)] = data
        self._position += len(data)
        return len(data)


class _Archive:
    """Records of a zip archive, none of them compressed."""

    def __init__(self, file: IO[bytes], start: int, stop: int):
        self._start = start
        self._stream: Any = _Window(file, start, stop)
        with zipfile.ZipFile(self._stream) as directory:
            infos = directory.infolist()
            end = directory.start_dir
        infos.sort(key=lambda info: info.header_offset)
        # Where at the latest a record must end.
        limits = [*(info.header_offset for info in infos[1:]), end]
        self._records = {
            info.filename: (info, limit)
            for info, limit in zip(infos, limits, strict=True)
        }
        names = [name for name in self._records if name.endswith(_PICKLE)]
        if len(self._records) < len(infos) or len(names) != 1:
            raise ValueError(f'it has {len(names)} records {_PICKLE}')
        self._prefix = names[0].removesuffix(_PICKLE)

    @property
    def has_tensors(self) -> bool:
        return any(
            name.startswith(f'{self._prefix}data/') for name in self._records
        )

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._records

    def locate(self, name: str) -> tuple[int, int]:
        """Where a record starts in the file, and how many bytes it has."""
        info, limit = self._records[self._prefix + name]
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise ValueError(
                'its records are compressed; torch.load still reads it, and '
                'torch.save writes it without',
            )
        self._stream.seek(info.header_offset)
        header = self._stream.read(_HEADER.size) or b''
        signature, n_name, n_extra = _HEADER.unpack(header)
        start = info.header_offset + _HEADER.size + n_name + n_extra
        if signature != _SIGNATURE or start + info.file_size > limit:
            raise ValueError(f'its record {name} is not where it should be')
        return self._start + start, info.file_size

    def read(self, name: str) -> bytes:
        start, n_bytes = self.locate(name)
        self._stream.seek(start - self._start)
        data = self._stream.read(n_bytes) or b''
        checksum = self._records[self._prefix + name][0].CRC
        # Torch may have been told to write none.
        if checksum and checksum != zlib.crc32(data):
            raise ValueError(f'the checksum of its record {name} is wrong')
        return data


class _Storages:
    """Storages without data, that know where it is."""

    def __init__(self, archive: _Archive):
        self._archive = archive
        self._loaded: dict[str, torch.UntypedStorage] = {}

    def load(self, persistent_id: tuple[Any, ...]) -> Any:
        _, kind, key, _, numel = persistent_id
        dtype = torch.uint8 if kind is torch.UntypedStorage else kind.dtype
        if key not in self._loaded:
            start, n_bytes = self._archive.locate(f'data/{key}')
            if n_bytes != numel * dtype.itemsize:
                raise ValueError(
                    f'its record data/{key} has {n_bytes} bytes, not '
                    f'{numel * dtype.itemsize}',
                )
            storage: Any = torch.UntypedStorage(n_bytes, device='meta')
            # The fake storage itself has twice the size, or more, in torch
            # 2.7.
            storage._checkpoint_offset = start
            storage._checkpoint_bytes = n_bytes
            storage._fake_device = 'cpu'
            self._loaded[key] = storage
        return torch.storage.TypedStorage(
            wrap_storage=self._loaded[key],
            dtype=dtype,
            _internal=True,
        )


def _safe_globals() -> list[Any]:
    # What a Composer checkpoint holds beside tensors: timestamps, the torch
    # version and numpy's random state.
    try:
        from numpy._core.multiarray import _reconstruct  # type: ignore
    except ImportError:  # numpy < 2
        from numpy.core.multiarray import _reconstruct  # type: ignore
    dtypes = [type(np.dtype(name)) for name in ('uint32', 'int64', 'float64')]
    return [
        datetime.timedelta,
        TorchVersion,
        _reconstruct,
        np.ndarray,
        np.dtype,
        *dtypes,
    ]


def _unsafe_globals(pickled: bytes) -> str:
    # Parses the pickle without running it.
    try:
        names = _weights_only_unpickler.get_globals_in_pkl(io.BytesIO(pickled))
    except Exception:  # Of another protocol, or damaged.
        names = set()
    safe = {
        *_weights_only_unpickler._get_allowed_globals(),
        *_weights_only_unpickler._get_user_allowed_globals(),
    }
    return ', '.join(sorted(names - safe)) or 'a pickle of unknown content'
