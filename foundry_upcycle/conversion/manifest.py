"""Where a converted checkpoint comes from, as JSON beside it."""

import datetime
import hashlib
import json
import os
import threading
from concurrent.futures import Future
from importlib.metadata import version
from pathlib import Path
from typing import Any, Mapping, Optional

from foundry_upcycle.checkpoints.open import checkpoint_files
from foundry_upcycle.errors import CheckpointError
from foundry_upcycle.files import write_whole

__all__ = [
    'Provenance',
    'chain_of_manifests',
    'files_in',
    'hash_files',
    'is_manifest',
    'is_output',
    'manifest_beside',
    'manifest_path',
    'read_manifest',
]

_DISTRIBUTIONS = (
    'foundry_upcycle',
    'llm-foundry',
    'mosaicml',
    'safetensors',
    'torch',
    'transformers',
)


def manifest_path(path: str | Path) -> Path:
    """In a folder ``manifest.json``, beside a file ``NAME.manifest.json``."""
    path = Path(path)
    return path / 'manifest.json' if path.is_dir() else manifest_beside(path)


def manifest_beside(file: str | Path) -> Path:
    """Where the manifest of a file is, or will be when there is the file."""
    file = Path(file)
    return file.with_name(f'{file.name}.manifest.json')


def read_manifest(path: str | Path) -> Optional[dict[str, Any]]:
    """The manifest of a checkpoint; None where it has none.

    A file may also be part of a folder that has one (what ``import_hf``
    writes).
    """
    path = Path(path)
    own = _read(manifest_path(path))
    if own is not None or path.is_dir():
        return own
    of_folder = _read(manifest_path(path.parent))
    is_listed = of_folder is not None and path.name in of_folder['outputs']
    return of_folder if is_listed else None


def _read(file: Path) -> Optional[dict[str, Any]]:
    """A manifest of ours; other tools call their files so as well."""
    try:
        manifest = json.loads(file.read_bytes())
        is_ours = manifest['source']['sha256'] and manifest['outputs']
        return manifest if is_ours else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_manifest(file: Path) -> bool:
    """Whether a file is a manifest of ours."""
    return _read(file) is not None


def is_output(folder: str | Path) -> bool:
    """Whether all that a folder holds was written by one conversion."""
    manifest = read_manifest(folder)
    if manifest is None:
        return False
    known = {*manifest['outputs'], manifest_path(folder).name}
    return known >= set(files_in(Path(folder)))


def files_in(folder: Path) -> list[str]:
    """Names of all files in a folder and below, sorted."""
    return sorted(
        str(file.relative_to(folder))
        for file in folder.rglob('*')
        if not file.is_dir()
    )


def chain_of_manifests(path: str) -> list[dict[str, Any]]:
    """Those of a checkpoint, of its source, of the source's source ..."""
    chain = []
    manifest: Any = read_manifest(path)
    while manifest:
        chain.append(manifest)
        manifest = manifest['source'].get('manifest')
    return chain


def hash_files(path: str) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint that is read, by name."""
    folder = Path(path) if os.path.isdir(path) else Path(path).parent
    hashes = {}
    for name in checkpoint_files(path):
        with (folder / name).open('rb') as stream:
            hashes[name] = hashlib.file_digest(stream, 'sha256').hexdigest()
    return hashes


class Provenance:
    """Hashes the source in a thread of its own, while it is converted.

    Args:
        command: What is done.
        source: Path of the checkpoint that is read.
        settings: What the result depends on beside the source.
    """

    def __init__(
        self,
        command: str,
        source: str,
        settings: Mapping[str, Any],
    ):
        self.command = command
        self.source = source
        self._settings = dict(settings)
        # What the source itself came from, where that is known.
        self._origin = read_manifest(source)
        self._hashes: Future[dict[str, str]] = Future()

    def start(self) -> None:
        """Starts to hash."""
        # A daemon, so that a conversion that fails does not wait for it.
        threading.Thread(target=self._hash, daemon=True).start()

    def _hash(self) -> None:
        try:
            self._hashes.set_result(hash_files(self.source))
        except OSError as error:
            self._hashes.set_exception(
                CheckpointError(
                    self.source,
                    f'it could not be read to its end ({error}).',
                    'see that nothing changes it, and convert again.',
                ),
            )
        except Exception as error:
            self._hashes.set_exception(error)

    def write(self, outputs: list[str], file: Path) -> None:
        """Writes the manifest, atomically, when the source is hashed.

        Args:
            outputs: Names of the files that were made.
            file: The manifest.

        Raises:
            CheckpointError: The source could not be read to its end.
        """
        manifest = {
            'command': self.command,
            'created': datetime.datetime.now(datetime.timezone.utc).isoformat(),
            'versions': {
                name: version(name)
                for name in _DISTRIBUTIONS
            },
            'settings': self._settings,
            'source': {
                'path': os.path.abspath(self.source),
                'sha256': self._hashes.result(),
                'manifest': self._origin,
            },
            'outputs': outputs,
        }
        write_whole(file, json.dumps(manifest, indent=2) + '\n')
