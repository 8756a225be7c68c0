"""Hugging Face folder or GGUF file in, Composer checkpoint and YAML out."""

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

import torch
import yaml

from foundry_upcycle.checkpoints.base import dtype_name
from foundry_upcycle.checkpoints.huggingface.gguf import unpack_gguf
from foundry_upcycle.checkpoints.huggingface.reader import HuggingFaceReader
from foundry_upcycle.checkpoints.names import is_mixture
from foundry_upcycle.checkpoints.writers.monolithic import write_monolithic
from foundry_upcycle.checkpoints.writers.output import Progress
from foundry_upcycle.conversion.companions import (
    check_vocabulary,
    copy_companions,
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

    Raises:
        CheckpointError: The source can't be read, its tokenizer has more
            tokens than the model, or ``out`` can't be written.
        ConfigError: MPT can't express the model.
    """
    place = check_output(out, source, overwrite)
    with _as_folder(source) as folder:
        reader = HuggingFaceReader(folder)
        reader.narrowing.allow_overflow = allow_overflow
        reader.require_exact(dtype)
        check_vocabulary(folder, reader.section['vocab_size'])
        sections = _sections(reader, f'{out}/hf')

        def write(path: Path, progress: Progress) -> None:
            (path / 'hf').mkdir(parents=True)
            copy_companions(folder, path / 'hf')
            (path / 'model.yaml').write_text(
                _HEADER.format(source=source, out=out) +
                yaml.safe_dump(sections, sort_keys=False),
            )
            write_monolithic(reader, path / 'checkpoint.pt', dtype, progress)

        settings = {
            'dtype': dtype_name(dtype),
            'allow_overflow': allow_overflow,
        }
        provenance = Provenance('import-hf', source, settings)
        save(place, write, n_bytes(reader, dtype), provenance, overwrite)
        reader.narrowing.warn_of_zeros()


def _sections(reader: HuggingFaceReader, tokenizer: str) -> dict[str, Any]:
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
def _as_folder(source: str) -> Iterator[str]:
    if not os.path.isfile(source):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix='gguf-') as folder:
        try:
            unpack_gguf(source, folder)
        except OSError as error:
            raise CheckpointError(
                folder,
                f'{source} could not be unpacked there ({error}).',
                'set TMPDIR to a folder with room for its float32 weights.',
            ) from error
        yield folder
