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

__all__ = [
    'Provenance',
    'chain_of_manifests',
    'hash_files',
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
    if path.is_dir():
        return path / 'manifest.json'
    return path.with_name(f'{path.name}.manifest.json')


def read_manifest(path: str | Path) -> Optional[dict[str, Any]]:
    """The manifest of a checkpoint; None where it has none.

    A file may also be part of a folder that has one (what ``import_hf``
    writes).

    Raises:
        CheckpointError: It is not one of ours.
    """
    candidates = [manifest_path(path), manifest_path(Path(path).parent)]
    file = next((f for f in candidates if f.is_file()), None)
    if file is None:
        return None
    try:
        manifest = json.loads(file.read_bytes())
        manifest['source']['sha256'], manifest['settings']
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            file,
            f'it is no manifest of foundry-upcycle ({error!r}).',
            'remove it; nothing but the provenance is lost.',
        ) from error
    return manifest


def chain_of_manifests(path: str) -> list[dict[str, Any]]:
    """Those of a checkpoint, of its source, of the source's source ...

    Raises:
        CheckpointError: The first is not one of ours.
    """
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
        except Exception as error:
            self._hashes.set_exception(error)

    def write(self, file: Path) -> None:
        """Writes the manifest, atomically, when the source is hashed."""
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
        }
        partial = file.with_name(f'{file.name}.partial')
        partial.write_text(json.dumps(manifest, indent=2) + '\n')
        partial.replace(file)
