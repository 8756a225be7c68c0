"""Brings a checkpoint from an object store to a folder of each node."""

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from composer.utils import (
    dist,
    get_file,
    maybe_create_object_store_from_uri,
    parse_uri,
)
from composer.utils.file_helpers import extract_path_from_symlink, is_uri
from composer.utils.object_store import ObjectStore

from foundry_upcycle.checkpoints.sync import raise_together
from foundry_upcycle.errors import CheckpointError

__all__ = ['local_checkpoint']


@contextmanager
def local_checkpoint(path: str) -> Iterator[str]:
    """Yields a local path of the checkpoint at ``path``.

    A local path is yielded as it is. A URI is downloaded once a node, to a
    temporary folder that is removed at the end. Every rank must call this.

    Args:
        path: As Composer's ``load_path``; ``{rank}`` becomes 0.

    Raises:
        CheckpointError: The path has an unknown placeholder, or the download
            failed on some node.
    """
    path = _format(path)
    if not is_uri(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix='upcycling-') as folder:
        # One folder a node: that of its first rank.
        folders = dist.all_gather_object(folder)
        folder = folders[dist.get_global_rank() - dist.get_local_rank()]
        local = os.path.join(folder, 'checkpoint')
        with raise_together():
            if dist.get_local_rank() == 0:
                _download(path, local)
        yield local
        dist.barrier()


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


def _download(uri: str, local: str) -> None:
    try:
        store = maybe_create_object_store_from_uri(uri)
        assert store is not None  # Only a local path has none.
        _, _, remote = parse_uri(uri)
        if remote.endswith('.symlink'):
            remote = extract_path_from_symlink(remote, object_store=store)
        shards = _list_folder(store, remote)
        if not shards:
            get_file(remote, local, object_store=store)
            return
        os.mkdir(local)
        for name in shards:
            get_file(name, str(Path(local, Path(name).name)), store)
    except Exception as error:  # Each store has exceptions of its own.
        raise CheckpointError(
            uri,
            f'it could not be downloaded ({type(error).__name__}: {error}).',
            'check the URI and the credentials; Composer must be able to load '
            'it as a load_path.',
        ) from error


def _list_folder(store: ObjectStore, remote: str) -> list[str]:
    prefix = remote.rstrip('/') + '/'
    try:
        names = store.list_objects(prefix)
    except NotImplementedError:
        return []
    return [name for name in names if name.endswith(('.metadata', '.distcp'))]
