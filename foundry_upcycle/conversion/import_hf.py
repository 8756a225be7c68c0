"""Hugging Face folder or GGUF file in, Composer checkpoint and YAML out."""

import os
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Iterator, Optional

import torch
import yaml

from foundry_upcycle.checkpoints.base import dtype_name
from foundry_upcycle.checkpoints.huggingface.gguf import GGUFReader
from foundry_upcycle.checkpoints.huggingface.gguf_config import write_configs
from foundry_upcycle.checkpoints.huggingface.gguf_tokenizer import (
    check_tokenizer,
    write_tokenizer,
)
from foundry_upcycle.checkpoints.huggingface.model import HuggingFaceModel
from foundry_upcycle.checkpoints.huggingface.reader import HuggingFaceReader
from foundry_upcycle.checkpoints.names import is_mixture
from foundry_upcycle.checkpoints.writers.monolithic import write_monolithic
from foundry_upcycle.checkpoints.writers.output import Progress
from foundry_upcycle.conversion.companions import (
    check_vocabulary,
    copy_configs,
    copy_tokenizer,
)
from foundry_upcycle.conversion.manifest import Provenance
from foundry_upcycle.conversion.save import check_output, n_bytes, save
from foundry_upcycle.errors import CheckpointError

__all__ = ['import_hf']

_HEADER = '''\
# Written by foundry-upcycle import-hf from {source}.
# For a train YAML of LLM Foundry; the weights come by
#
#   load_path: {out}/checkpoint.pt
#   load_weights_only: true
#
# On GPUs, attn_config.attn_impl: flash is faster than torch.
'''


def import_hf(
    source: str,
    out: str,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
    allow_overflow: bool = False,
    tokenizer: Optional[str] = None,
    with_tokenizer: bool = True,
) -> None:
    """Writes a folder that an LLM Foundry run starts from.

    It holds ``checkpoint.pt`` (Composer's), ``model.yaml`` (of a train
    YAML: ``max_seq_len``, ``model`` and ``tokenizer``) and ``hf`` (config,
    generation config and tokenizer of the source, as the tokenizer's name and
    for ``export_hf``).

    Args:
        source: A Hugging Face folder with safetensors, or a GGUF file.
        out: The folder.
        dtype: Of all weights; training keeps them in float32.
        overwrite: Whether ``out`` may exist.
        allow_overflow: Whether weights that are too large for ``dtype`` may
            become infinite.
        tokenizer: Folder of the tokenizer, where it is not the source's.
        with_tokenizer: Whether there is to be one.

    Raises:
        CheckpointError: The source can't be read, its tokenizer has more
            tokens than the model or is another's, or ``out`` can't be written.
        ConfigError: MPT can't express the model.
    """
    place = check_output(out, source, overwrite)
    reader = _open(source)
    reader.narrowing.allow_overflow = allow_overflow
    reader.require_exact(dtype)
    has_own = with_tokenizer and tokenizer is None
    with _folder_of(reader, has_own) as folder:
        tokens_from = (tokenizer or folder) if with_tokenizer else None
        if tokens_from is not None:
            _check_tokenizer(reader, tokens_from, is_own=has_own)
        sections = _sections(reader, f'{out}/hf')

        def write(path: Path, progress: Progress) -> None:
            (path / 'hf').mkdir(parents=True)
            copy_configs(folder, path / 'hf')
            if tokens_from is not None:
                copy_tokenizer(tokens_from, path / 'hf')
            (path / 'model.yaml').write_text(
                _HEADER.format(source=source, out=out) +
                yaml.safe_dump(sections, sort_keys=False),
            )
            write_monolithic(reader, path / 'checkpoint.pt', dtype, progress)

        settings = {
            'dtype': dtype_name(dtype),
            'allow_overflow': allow_overflow,
            'tokenizer': tokenizer,
            'with_tokenizer': with_tokenizer,
        }
        provenance = Provenance('import-hf', source, settings)
        save(place, write, n_bytes(reader, dtype), provenance, overwrite)
        reader.narrowing.warn_of_zeros()


def _open(source: str) -> HuggingFaceModel:
    is_file = os.path.isfile(source)
    return GGUFReader(source) if is_file else HuggingFaceReader(source)


def _check_tokenizer(
    reader: HuggingFaceModel,
    folder: str,
    is_own: bool,
) -> None:
    vocabulary = check_vocabulary(folder, reader.section['vocab_size'])
    if is_own:
        return
    if not vocabulary:
        raise CheckpointError(
            folder,
            'it has no tokenizer.',
            'name a folder that has one, or leave it out by --no-tokenizer.',
        )
    if isinstance(reader, GGUFReader):
        check_tokenizer(reader.file, folder, vocabulary)


def _sections(reader: HuggingFaceModel, tokenizer: str) -> dict[str, Any]:
    model = reader.section
    name = 'upcycled_mpt' if is_mixture(reader.tensors) else 'mpt_causal_lm'
    return {
        'max_seq_len': model['max_seq_len'],
        'model': {
            'name': name,
            **model,
        },
        'tokenizer': {
            'name': tokenizer,
            'kwargs': {
                'model_max_length': model['max_seq_len'],
            },
        },
    }


@contextmanager
def _folder_of(
    reader: HuggingFaceModel,
    with_tokenizer: bool,
) -> Iterator[str]:
    """A Hugging Face folder with configs, and the tokenizer, of the model."""
    if not isinstance(reader, GGUFReader):
        yield reader.path
        return
    with ExitStack() as stack:
        try:
            temporary = tempfile.TemporaryDirectory(prefix='gguf-')
            folder = stack.enter_context(temporary)
            write_configs(reader.hf_config, Path(folder))
            if with_tokenizer:
                length = reader.section['max_seq_len']
                write_tokenizer(reader.file, length, Path(folder))
        except CheckpointError:
            raise
        # The library of tokenizers raises no OSError.
        except Exception as error:
            raise CheckpointError(
                reader.path,
                f'its tokenizer and config could not be written to a temporary '
                f'folder ({error}).',
                'set TMPDIR to a folder with room.',
            ) from error
        yield folder
