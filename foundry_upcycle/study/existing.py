"""A dense checkpoint that is there: second phases start from it."""

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Optional

from foundry_upcycle.conversion.manifest import files_in, fingerprint
from foundry_upcycle.errors import CheckpointError, ConfigError
from foundry_upcycle.files import reason_of

__all__ = ['ExistingCheckpoint']


@dataclass(frozen=True)
class ExistingCheckpoint:
    """A dense model that was trained elsewhere, and what that took.

    Args:
        path: Composer's ``.pt`` file or sharded folder, as ``load_path`` has
            it.
        tokens: That it has seen; or None, with ``flops``.
        flops: That its training took; or None, with ``tokens``.
    """

    path: str
    tokens: Optional[float] = None
    flops: Optional[float] = None

    @classmethod
    def named(
        cls,
        key: str,
        path: str,
        tokens: Optional[float] = None,
        flops: Optional[float] = None,
    ) -> 'ExistingCheckpoint':
        """What a study YAML names.

        Raises:
            ConfigError: It is in a store, or a model of Hugging Face, which no
                dense run can load.
        """
        if '://' in path:
            raise ConfigError(
                key,
                path,
                'a study reads it before anything is trained, and it is in a '
                'store.',
                'copy it to a disk that the machines share, and name it there.',
            )
        is_folder = os.path.isfile(os.path.join(path, 'config.json'))
        if is_folder or path.endswith('.gguf'):
            raise ConfigError(
                key,
                path,
                'it is a model of Hugging Face, which Composer does not load.',
                f'run `foundry-upcycle import-hf {path} FOLDER`, and name '
                'FOLDER/checkpoint.pt.',
            )
        return cls(path, tokens, flops)

    @cached_property
    def identity(self) -> Optional[str]:
        """What tells it from others, as long as this object is used.

        None where there is nothing. Files are told apart by their sizes and
        ends, not read whole.

        Raises:
            CheckpointError: A file of it can't be read.
        """
        path = Path(self.path)
        if not path.exists():
            return None
        names = files_in(path) if path.is_dir() else ['']
        try:
            prints = {name: fingerprint(path / name) for name in names}
        except OSError as error:
            raise CheckpointError(
                self.path,
                f"it can't be read ({reason_of(error)}).",
                'make it one that you may read.',
            ) from error
        digest = hashlib.sha256(json.dumps(prints).encode()).hexdigest()
        # Not to be taken for a number.
        return f'sha256 {digest[:16]}'
