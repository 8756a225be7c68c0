"""The files of a checkpoint: those that were opened, until it is read."""

import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from foundry_upcycle.errors import CheckpointError

__all__ = ['SourceFiles']

# What git keeps of a file that git-lfs has not fetched.
_LFS_POINTER = b'version https://git-lfs.github.com/spec/'


class _Identity(NamedTuple):
    """What is another when a file was replaced or written to."""
    device: int
    inode: int
    n_bytes: int
    mtime_ns: int


class SourceFiles:
    """Files of one folder, each of which must stay what it was.

    A folder that is replaced while it is read would give some tensors of the
    one model and some of the other.

    Args:
        folder: The folder.

    Attributes:
        n_bytes: Name of a file that was opened or looked at -> its size.
    """

    def __init__(self, folder: str | Path):
        self._folder = Path(folder)
        self._seen: dict[str, _Identity] = {}

    @property
    def n_bytes(self) -> dict[str, int]:
        return {name: file.n_bytes for name, file in self._seen.items()}

    def path(self, name: str) -> Path:
        return self._folder / name

    def open(self, name: str) -> BufferedReader:
        """Opens a file; it is the one that it was the first time.

        Raises:
            CheckpointError: It is missing, can't be opened, was replaced, or
                git-lfs has not fetched it.
        """
        self.check(name)  # Opening a pipe would wait for its writer.
        try:
            file = self.path(name).open('rb')
            start = file.peek(len(_LFS_POINTER))
        except OSError as error:
            raise self.unreadable(name, error) from error
        self.check_open(name, file)
        if start.startswith(_LFS_POINTER):
            file.close()
            raise CheckpointError(
                self.path(name),
                'it is a pointer of git-lfs, not the file itself.',
                'run `git lfs pull` in its repository.',
            )
        return file

    def read(self, name: str) -> bytes:
        """All that a file holds; raises as ``open`` does."""
        with self.open(name) as file:
            try:
                return file.read()
            except OSError as error:
                raise self.unreadable(name, error) from error

    def check(self, *names: str) -> None:
        """Checks that files are what they were; without names, all.

        Raises:
            CheckpointError: One is missing, no file, or was replaced.
        """
        for name in names or [*self._seen]:
            try:
                found = os.stat(self.path(name))
            except OSError as error:
                raise self.unreadable(name, error) from error
            except ValueError as error:  # A name that no file can have.
                missing = FileNotFoundError(error)
                raise self.unreadable(name, missing) from error
            self._compare(name, found)

    def check_open(self, name: str, file: BufferedReader) -> None:
        """Checks that nothing was written to a file since it was opened."""
        self._compare(name, os.fstat(file.fileno()))

    def _compare(self, name: str, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointError(
                self.path(name),
                'it is not a file.',
                'copy the checkpoint again.',
            )
        identity = _Identity(
            found.st_dev,
            found.st_ino,
            found.st_size,
            found.st_mtime_ns,
        )
        if self._seen.setdefault(name, identity) != identity:
            raise self.changed(name, 'it was replaced or written to')

    def changed(self, name: str, problem: object) -> CheckpointError:
        """What to raise for a file that is another than it was."""
        return CheckpointError(
            self.path(name),
            f'it changed while it was read ({problem}).',
            'see that nothing changes or removes it meanwhile (as a run does '
            'that keeps only its last checkpoints), or copy it first.',
        )

    def unreadable(self, name: str, error: OSError) -> CheckpointError:
        """What to raise for an error of the system."""
        if name in self._seen and isinstance(error, FileNotFoundError):
            return self.changed(name, 'it was removed')
        if isinstance(error, FileNotFoundError):
            return CheckpointError(
                self.path(name),
                'it is missing.',
                'copy the checkpoint again; every one of its files is needed.',
            )
        return CheckpointError(
            self.path(name),
            f'it cannot be opened or read ({error.strerror or error}).',
            'make it one that you may read, on a disk that works.',
        )
