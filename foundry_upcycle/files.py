"""Files and folders that are there whole or not at all.

What is being written lies in a folder of its own beside its place, with a lock
that the kernel takes back however its process ends. So the remains of one that
was killed can be told from what is at work, and go with the next.
"""

import errno
import fcntl
import os
import re
import shutil
import socket
import stat
import tempfile
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Iterator, Mapping, Optional

__all__ = [
    'LOCK',
    'NO_LOCKS',
    'NO_ROOM',
    'fix_for',
    'lock_folder',
    'reason_of',
    'require_place',
    'scratch_folder',
    'unlock_folder',
    'write_together',
    'write_whole',
]

# The file of a folder that is locked.
LOCK = '.lock'
# Of a file system that has no locks, and of a full one.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PATH_BYTES = 4096  # Linux takes no longer one.
_MOUNTS = Path('/proc/self/mountinfo')


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file, over what is there, in one step.

    Folders that are not there are made. Whoever reads ``path`` meanwhile, or
    after a crash, finds what was there before or all of ``content``. A link is
    replaced, and what it points to stays.

    Raises:
        OSError: It can't be written.
    """
    write_together(path.parent, {path.name: content})


def write_together(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """The same of several files: all are complete before one has its place.

    Args:
        folder: Where to.
        files: Contents by path below ``folder``.

    Raises:
        OSError: They can't be written.
    """
    for name in files:
        require_place(folder / name)
        if (folder / name).is_dir():
            code = errno.EISDIR
            raise OSError(code, 'it is a folder', str(folder / name))
    # A folder that is not there is made last, so that nothing is left of it.
    near = folder
    while not near.is_dir():
        near = near.parent
    with scratch_folder('.unfinished-', near) as scratch:
        new = scratch / 'new'
        for name, content in files.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            is_text = isinstance(content, str)
            (new / name).write_bytes(content.encode() if is_text else content)
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).replace(folder / name)


@contextmanager
def scratch_folder(
    prefix: str,
    parent: Optional[Path] = None,
) -> Iterator[Path]:
    """Yields a new folder, which is removed at the end.

    So are those of the same prefix that processes left which were killed.

    Args:
        prefix: Of its name.
        parent: Where it is to be; None: where temporary files are.

    Raises:
        OSError: It can't be made.
    """
    parent = parent or Path(tempfile.gettempdir())
    # Another machine's locks may not be seen, so its folders stay.
    prefix = f'{prefix}{socket.gethostname()[:64]}-'
    _sweep(parent, prefix)
    folder, lock = _new_scratch(parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _sweep(parent: Path, prefix: str) -> None:
    with suppress(OSError):
        for entry in list(os.scandir(parent)):
            is_scratch = entry.name.startswith(prefix)
            if is_scratch and entry.is_dir(follow_symlinks=False):
                # It is at work, or another user's.
                with suppress(OSError):
                    lock = lock_folder(Path(entry.path))
                    shutil.rmtree(entry.path, ignore_errors=True)
                    os.close(lock)


def _new_scratch(parent: Path, prefix: str) -> tuple[Path, Optional[int]]:
    while True:
        folder = parent / f'{prefix}{uuid.uuid4().hex}'
        try:
            return folder, lock_folder(folder, mode=0o700)
        except BlockingIOError:
            continue  # Another process took it for remains.
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return folder, None  # Nobody sweeps here.


def lock_folder(folder: Path, mode: int = 0o777) -> int:
    """Keeps other processes from a folder, which is made if need be.

    Returns:
        The descriptor of its lock, for ``unlock_folder``; it ends also with
        the process.

    Raises:
        BlockingIOError: Another has the lock.
        OSError: The folder can't be made, or there are no locks here.
    """
    path = folder / LOCK
    while True:
        # Not exist_ok, which fails if another process removes it now.
        with suppress(FileExistsError):
            folder.mkdir(mode)
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:
            if folder.is_symlink():
                raise  # It points to nowhere.
            continue  # Another process has just finished.
        except OSError:
            with suppress(OSError):
                folder.rmdir()  # If it is empty.
            raise
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, lock):
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def unlock_folder(folder: Path, lock: int) -> None:
    """Ends a lock of ``lock_folder``; the folder goes if it is empty."""
    # In this order: whoever opens the next lock makes the folder stay.
    (folder / LOCK).unlink(missing_ok=True)
    os.close(lock)
    with suppress(OSError):
        folder.rmdir()


def _is_at(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def require_place(path: Path, suffix: str = '') -> None:
    """Checks that a file or folder can be put at ``path``, beforehand.

    Args:
        path: Where it is to be, perhaps over another.
        suffix: What the longest name beside it adds to its own.

    Raises:
        OSError: A name is too long, a parent is no folder, or what is there is
            neither a file nor a folder, or a mount point.
    """
    _require_name(path, suffix)
    try:
        mode = os.stat(path).st_mode  # Of what a link points to.
    except OSError:
        return
    # What /dev/stdout points to.
    is_stream = path.is_symlink() and os.readlink(path).startswith('/proc/')
    if is_stream or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        problem = 'it is neither a file nor a folder'
        raise OSError(errno.EEXIST, problem, str(path))
    if _is_mount_point(path):
        raise OSError(errno.EBUSY, 'it is a mount point', str(path))


def _require_name(path: Path, suffix: str) -> None:
    missing, parent = [path.name + suffix], path.parent
    while not os.path.lexists(parent):
        missing.append(parent.name)
        parent = parent.parent
    if not parent.is_dir():
        code = errno.ENOTDIR
        raise OSError(code, os.strerror(code), str(parent))
    longest = os.pathconf(parent, 'PC_NAME_MAX')
    for name in missing:
        n_bytes = len(os.fsencode(name))
        if n_bytes > longest:
            with_it = f' with {suffix}' if suffix and name == missing[0] else ''
            raise OSError(
                errno.ENAMETOOLONG,
                f'a name of {n_bytes} bytes{with_it}, and {longest} are the '
                'most',
                str(path),
            )
    if len(os.fsencode(path)) + len(suffix) >= _PATH_BYTES:
        code = errno.ENAMETOOLONG
        raise OSError(code, os.strerror(code), str(path))


def _is_mount_point(path: Path) -> bool:
    """Whether anything is mounted there: ``ismount`` sees no bind mounts."""
    place = os.fsencode(Path(os.path.realpath(path.parent), path.name))
    try:
        lines = _MOUNTS.read_bytes().splitlines()
    except OSError:
        return os.path.ismount(path)
    return place in {_unescaped(line.split()[4]) for line in lines}


def _unescaped(text: bytes) -> bytes:
    r"""What the kernel writes as ``\040``: spaces and the like."""
    return re.sub(rb'\\(\d{3})', lambda code: bytes([int(code[1], 8)]), text)


def reason_of(
    error: OSError,
    path: str | os.PathLike[str] = '',
) -> str:
    """Why something can't be written, in words.

    Args:
        error: The system's, or of ``require_place``.
        path: What need not be named again.
    """
    if error.strerror is None:
        return str(error)
    name = error.filename
    is_known = name is None or str(name) == str(path)
    return error.strerror if is_known else f'{error.strerror}: {name}'


def fix_for(error: OSError) -> str:
    """What to do where an output can't be written."""
    if error.errno in NO_ROOM:
        return (
            'free space (or raise the quota or the limit on file sizes), or '
            'write to another disk.'
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return 'choose an output in a folder that you may write to.'
    return {
        errno.ENAMETOOLONG: 'choose a shorter name.',
        errno.EBUSY: 'choose another output, such as a folder in it.',
    }.get(error.errno or 0, 'choose another output.')
