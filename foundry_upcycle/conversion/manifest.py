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

from foundry_upcycle.checkpoints.source import SourceFiles
from foundry_upcycle.documents import DocumentError, read_json
from foundry_upcycle.files import write_whole

__all__ = [
    'Provenance',
    'chain_of_manifests',
    'files_in',
    'find_manifest',
    'fingerprint',
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

_WEIGHTS = ('.pt', '.safetensors', '.distcp')
_END_BYTES = 2**20


def manifest_path(path: str | Path) -> Path:
    """In a folder ``manifest.json``, beside a file ``NAME.manifest.json``."""
    path = Path(path)
    return path / 'manifest.json' if path.is_dir() else manifest_beside(path)


def manifest_beside(file: str | Path) -> Path:
    """Where the manifest of a file is, or will be when there is the file."""
    file = Path(file)
    return file.with_name(f'{file.name}.manifest.json')


def read_manifest(path: str | Path) -> Optional[dict[str, Any]]:
    """The manifest of a checkpoint; None where it has none."""
    return find_manifest(path)[0]


def find_manifest(path: str | Path) -> tuple[Optional[dict[str, Any]], str]:
    """The manifest of a checkpoint; or None, and why it has none.

    A file may also be part of a folder that has one (what ``import_hf``
    writes). A manifest is of the very files that were written with it, and not
    of others that came in their place.
    """
    path = Path(path)
    own, of_folder = manifest_path(path), path.with_name('manifest.json')
    manifest, reason = _read(own), 'there is no manifest beside it'
    if manifest is not None:
        changed = _changed_file(manifest, path)
        if changed is None:
            return manifest, ''
        reason = f'{own.name} is not of this {changed}, but of another'
    elif os.path.lexists(own):
        reason = f'{own.name} is none that this version writes'
    if not path.is_dir():
        manifest = _read(of_folder) or {'outputs': ()}
        is_listed = path.name in manifest['outputs']
        if is_listed and _is_as_written(manifest, path.name, path):
            return manifest, ''
    return None, reason


def _changed_file(manifest: Mapping[str, Any], path: Path) -> Optional[str]:
    if path.is_dir():
        for name in manifest['outputs']:
            # Other files, such as a tokenizer's, may be edited.
            is_weights = name.endswith(_WEIGHTS)
            if is_weights and not _is_as_written(manifest, name, path / name):
                return name
        return None
    # It may have been renamed together with its manifest.
    names = manifest['outputs']
    is_same = any(_is_as_written(manifest, name, path) for name in names)
    return None if is_same else path.name


def _is_as_written(
    manifest: Mapping[str, Any],
    name: str,
    file: Path,
) -> bool:
    outputs = manifest['outputs']
    if isinstance(outputs, list):
        return True  # Written before manifests had fingerprints.
    try:
        return outputs[name] == fingerprint(file)
    except OSError:
        return False


def fingerprint(file: Path) -> dict[str, Any]:
    """What tells a file from others, without reading it all.

    The end of a ``.pt`` file has the checksums of all its tensors.
    """
    with file.open('rb') as stream:
        n_bytes = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, n_bytes - _END_BYTES))
        end = hashlib.sha256(stream.read()).hexdigest()
    return {'bytes': n_bytes, 'sha256_of_last_mib': end}


def _read(file: Path) -> Optional[dict[str, Any]]:
    """A manifest of ours; other tools call their files so as well."""
    if not file.is_file():
        return None  # A pipe would be waited for.
    try:
        manifest = read_json(file)
    except DocumentError:
        return None
    return manifest if _is_ours(manifest) else None


def _is_ours(manifest: Any) -> bool:
    """Whether it has what is read of one."""
    try:
        source = manifest['source']
        texts = [
            manifest['command'],
            manifest['created'],
            manifest['versions']['foundry_upcycle'],
            source['path'],
            *source['sha256'].values(),
            *manifest['outputs'],
        ]
        mappings = [manifest['settings'], source['sha256']]
        return (
            bool(source['sha256'] and manifest['outputs'])
            and all(isinstance(text, str) for text in texts)
            and all(isinstance(mapping, dict) for mapping in mappings)
            and isinstance(manifest['outputs'], (dict, list))
        )
    except (KeyError, TypeError, AttributeError):
        return False


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
    while manifest and _is_ours(manifest):
        chain.append(manifest)
        manifest = manifest['source'].get('manifest')
    return chain


def hash_files(files: SourceFiles) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint that is read, by name.

    Raises:
        CheckpointError: One can't be read, or is another than was opened.
    """
    hashes = {}
    for name in sorted(files.n_bytes):
        with files.open(name) as stream:
            try:
                digest = hashlib.file_digest(stream, 'sha256')
            except OSError as error:
                raise files.unreadable(name, error) from error
        hashes[name] = digest.hexdigest()
    files.check()
    return hashes


class Provenance:
    """Hashes the source in a thread of its own, while it is converted.

    Args:
        command: What is done.
        source: Path of the checkpoint that is read.
        settings: What the result depends on beside the source.
        files: Those of the checkpoint that were opened.
    """

    def __init__(
        self,
        command: str,
        source: str,
        settings: Mapping[str, Any],
        files: SourceFiles,
    ):
        self.command = command
        self.source = source
        self._settings = dict(settings)
        self._files = files
        # What the source itself came from, where that is known.
        self._origin = read_manifest(source)
        self._hashes: Future[dict[str, str]] = Future()

    def start(self) -> None:
        """Starts to hash."""
        # A daemon, so that a conversion that fails does not wait for it.
        threading.Thread(target=self._hash, daemon=True).start()

    def _hash(self) -> None:
        try:
            self._hashes.set_result(hash_files(self._files))
        except Exception as error:
            self._hashes.set_exception(error)

    def write(self, outputs: Mapping[str, Path], file: Path) -> None:
        """Writes the manifest, atomically, when the source is hashed.

        Args:
            outputs: The files that were made, by the names that they get.
            file: The manifest.

        Raises:
            CheckpointError: The source could not be read to its end, or changed
                while it was read.
        """
        hashes = self._hashes.result()
        self._files.check()
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
                'sha256': hashes,
                'manifest': self._origin,
            },
            'outputs': {
                name: fingerprint(made)
                for name, made in outputs.items()
            },
        }
        write_whole(file, json.dumps(manifest, indent=2) + '\n')
