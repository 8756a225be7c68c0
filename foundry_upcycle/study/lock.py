"""Who works on a study: one runner on its folder, one process on a run."""

import fcntl
import os
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Iterator

from foundry_upcycle.errors import ConfigError

__all__ = ['exclusive', 'is_held', 'only_one']


@contextmanager
def exclusive(folder: Path) -> Iterator[int]:
    """Keeps others from the folder, which is made if need be.

    The kernel takes the lock back when the last process is gone that has its
    descriptor, however it ends: a process that gets it (``pass_fds``) keeps the
    lock when this one is killed.

    Yields:
        The descriptor.

    Raises:
        ConfigError: Another works on it, it can't be made, or its file system
            has no locks.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            'folder',
            str(folder),
            f"it can't be made ({error}).",
            'name a folder where you may write.',
        ) from error
    with (folder / '.lock').open('a+') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ConfigError(
                'folder',
                str(folder),
                f'another runner works on it ({lock.read().strip()}), or what '
                'that started before it was killed.',
                'wait for it, or name another folder and another name in the '
                'study YAML.',
            ) from None
        except OSError as error:
            raise ConfigError(
                'folder',
                str(folder),
                f"its file system can't lock files ({error}).",
                'name a folder on another file system.',
            ) from error
        lock.truncate(0)
        lock.write(f'process {os.getpid()} on {socket.gethostname()}\n')
        lock.flush()
        yield lock.fileno()


@contextmanager
def only_one(path: Path) -> Iterator[bool]:
    """Holds the lock of a file, which is made if need be.

    Yields:
        False where another holds it, alone or with others.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a') as lock:
        yield _took(lock)


def is_held(path: Path) -> bool:
    """Whether any process holds the lock of a file."""
    if not path.exists():
        return False
    try:
        lock = path.open('a')  # NFS locks what may be written.
    except OSError:
        lock = path.open()  # Another's study, to look at.
    with lock:
        return not _took(lock)


def _took(lock: IO[str]) -> bool:
    """Takes a file's lock, if no other has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
