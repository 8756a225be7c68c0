"""Brings a checkpoint from an object store to a folder of each node."""

from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Iterator, Optional

from composer.utils import (
    dist,
    get_file,
    maybe_create_object_store_from_uri,
    parse_uri,
)
from composer.utils.object_store import ObjectStore

from foundry_upcycle.checkpoints.huggingface.reader import (
    INDEX,
    SINGLE,
    weight_files,
)
from foundry_upcycle.checkpoints.readers.sharded import shard_files
from foundry_upcycle.checkpoints.sync import raise_together
from foundry_upcycle.errors import CheckpointError
from foundry_upcycle.files import NO_ROOM, reason_of, scratch_folder

__all__ = ['local_checkpoint']


@contextmanager
def local_checkpoint(path: str) -> Iterator[str]:
    """Yields a local path of the checkpoint at ``path``.

    A local path is yielded as it is. From a URI, the first rank of each node
    downloads what is needed to a temporary folder, which is removed at the
    end. Every rank must call this.

    Args:
        path: As Composer's ``load_path``; ``{rank}`` becomes 0. In a store,
            a name that ends in ``.symlink``, or has such a twin, is followed.

    Raises:
        CheckpointError: The path has an unknown placeholder, or the download
            failed on some node.
    """
    path = _format(path)
    # On every rank: for some stores this is a collective.
    store = _open_store(path)
    if store is None:
        yield path
        return
    with ExitStack() as stack:
        with raise_together():
            own_folder = stack.enter_context(_own_folder())
        folders = dist.all_gather_object(str(own_folder))
        folder = Path(folders[dist.get_global_rank() - dist.get_local_rank()])
        with raise_together():
            if dist.get_local_rank() == 0:
                _download_and_signal(store, path, folder)
            # Not a barrier: a download may take longer than collectives are
            # allowed to.
            with dist.local_rank_zero_download_and_wait(_signal(folder)):
                pass
        yield str(folder / 'checkpoint')
        dist.barrier()


@contextmanager
def _own_folder() -> Iterator[Path]:
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(scratch_folder('upcycling-'))
        except OSError as error:
            raise CheckpointError(
                'TMPDIR',
                f'there can be no folder for downloads ({reason_of(error)}).',
                'set TMPDIR to a folder that you may write to.',
            ) from error
        yield folder


def _format(path: str) -> str:
    try:
        return path.format(rank=0, local_rank=0, node_rank=0)
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(
            path,
            f'its placeholder {error} has no value here.',
            'write the path out; only {rank}, {local_rank} and {node_rank} '
            'are replaced, by 0.',
        ) from error


def _open_store(path: str) -> Optional[ObjectStore]:
    try:
        return maybe_create_object_store_from_uri(path)
    except Exception as error:  # Each store has exceptions of its own.
        raise _failed(path, error) from error


def _failed(uri: str, error: Exception) -> CheckpointError:
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return CheckpointError(
            uri,
            f'it could not be downloaded ({reason_of(error)}).',
            'set TMPDIR to a folder with room for it.',
        )
    return CheckpointError(
        uri,
        f'it could not be downloaded ({type(error).__name__}: {error}).',
        'check the URI and the credentials; it must name a .pt file, the '
        'sharded folder of one saved batch, or a .symlink to one.',
    )


def _signal(folder: Path) -> str:
    return str(folder / 'finished')


def _download_and_signal(store: ObjectStore, uri: str, folder: Path) -> None:
    _, _, remote = parse_uri(uri)
    try:
        _download(store, remote.rstrip('/'), folder / 'checkpoint')
    except Exception as error:  # As above.
        raise _failed(uri, error) from error
    finally:
        Path(_signal(folder)).touch()


def _download(store: ObjectStore, remote: str, local: Path) -> None:
    remote = _follow_symlink(store, remote, local.with_name('link'))
    local.mkdir()
    if _fetch_if_there(store, f'{remote}/.metadata', local / '.metadata'):
        names = shard_files(str(local))
    elif _fetch_if_there(store, f'{remote}/config.json', local / 'config.json'):
        for name in (INDEX, SINGLE):
            _fetch_if_there(store, f'{remote}/{name}', local / name)
        names = weight_files(str(local))
    else:
        local.rmdir()
        _fetch(store, remote, local)
        return
    for name in sorted(names):
        if not (local / name).exists():
            _fetch(store, f'{remote}/{name}', local / name)


def _follow_symlink(store: ObjectStore, remote: str, local: Path) -> str:
    link = remote if remote.endswith('.symlink') else f'{remote}.symlink'
    try:
        store.download_object(link, str(local))
    except FileNotFoundError:
        if link == remote:
            raise
        return remote
    return local.read_text().strip()


def _fetch_if_there(store: ObjectStore, remote: str, local: Path) -> bool:
    try:
        _fetch(store, remote, local)
    except FileNotFoundError:
        return False
    return True


def _fetch(store: ObjectStore, remote: str, local: Path) -> None:
    # get_file, for its progress bar.
    get_file(remote, str(local), object_store=store)
