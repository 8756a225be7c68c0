"""Hugging Face folder or GGUF file in, Composer checkpoint and YAML out."""

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

import torch
import yaml

from foundry_upcycle.checkpoints.base import Checkpoint, dtype_name
from foundry_upcycle.checkpoints.huggingface.gguf import unpack_gguf
from foundry_upcycle.checkpoints.huggingface.reader import HuggingFaceReader
from foundry_upcycle.checkpoints.huggingface.to_mpt import to_mpt
from foundry_upcycle.checkpoints.names import is_moe_name
from foundry_upcycle.checkpoints.writers.monolithic import write_monolithic
from foundry_upcycle.checkpoints.writers.output import Progress
from foundry_upcycle.conversion.companions import (
    check_vocabulary,
    copy_companions,
    read_config,
)
from foundry_upcycle.conversion.manifest import Provenance
from foundry_upcycle.conversion.save import n_bytes, save

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
) -> None:
    """Writes a folder that an LLM Foundry run starts from.

    It holds ``checkpoint.pt`` (Composer's), ``model.yaml`` (the sections
    ``model`` and ``tokenizer`` of a train YAML) and ``hf`` (config, generation
    config and tokenizer of the source, as the tokenizer's name and for
    ``export_hf``).

    Args:
        source: A Hugging Face folder with safetensors, or a GGUF file.
        out: The folder.
        dtype: Of all weights; training keeps them in float32.
        overwrite: Whether ``out`` may exist.

    Raises:
        CheckpointError: The source can't be read, its tokenizer has more
            tokens than the model, or ``out`` can't be written.
        ConfigError: MPT can't express the model.
    """
    with _as_folder(source) as folder:
        reader = HuggingFaceReader(folder)
        config = read_config(folder)
        check_vocabulary(folder, config['vocab_size'])
        sections = _sections(reader, to_mpt(config), f'{out}/hf')

        def write(path: Path, progress: Progress) -> None:
            (path / 'hf').mkdir(parents=True)
            copy_companions(folder, path / 'hf')
            (path / 'model.yaml').write_text(
                _HEADER.format(source=source, out=out) +
                yaml.safe_dump(sections, sort_keys=False),
            )
            write_monolithic(reader, path / 'checkpoint.pt', dtype, progress)

        provenance = Provenance(
            'import-hf', source, {'dtype': dtype_name(dtype)}
        )
        save(out, write, n_bytes(reader, dtype), provenance, overwrite)


def _sections(
    reader: Checkpoint,
    model: dict[str, Any],
    tokenizer: str,
) -> dict[str, Any]:
    is_mixture = any(is_moe_name(name) for name in reader.tensors)
    return {
        'max_seq_len': model['max_seq_len'],
        'model': {
            'name': 'upcycled_mpt' if is_mixture else 'mpt_causal_lm',
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
        unpack_gguf(source, folder)
        yield folder
