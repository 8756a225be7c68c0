"""Hugging Face folder or GGUF file in, Composer checkpoint and YAML out."""

import json
import shutil
from pathlib import Path
from typing import Any, Optional

import torch
import yaml

from foundry_upcycle.checkpoints.base import dtype_name
from foundry_upcycle.checkpoints.companions import GENERATION, Companions
from foundry_upcycle.checkpoints.huggingface.gguf import GGUFReader
from foundry_upcycle.checkpoints.huggingface.gguf_config import write_configs
from foundry_upcycle.checkpoints.huggingface.model import HuggingFaceModel
from foundry_upcycle.checkpoints.names import is_mixture
from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.checkpoints.writers.monolithic import write_monolithic
from foundry_upcycle.checkpoints.writers.output import Progress
from foundry_upcycle.config import is_whole
from foundry_upcycle.conversion.companions import (
    choose_companions,
    warn_if_unloadable,
)
from foundry_upcycle.conversion.manifest import Provenance
from foundry_upcycle.conversion.save import check_output, n_bytes, save
from foundry_upcycle.errors import CheckpointError, ConfigError

__all__ = ['MAX_SEQ_LEN', 'import_hf']

# Longer sequences are asked for: they need memory that few runs mean to spend.
MAX_SEQ_LEN = 4096

_HEADER = '''\
# Written by foundry-upcycle import-hf from {source}.
# For a train YAML of LLM Foundry; the weights come by
#
#   load_path: {out}/checkpoint.pt
#   load_weights_only: true
#
# max_seq_len may be up to {longest}, which the model was made for.
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
    max_seq_len: Optional[int] = None,
) -> tuple[int, int]:
    """Writes a folder that an LLM Foundry run starts from.

    It holds ``checkpoint.pt`` (Composer's), ``model.yaml`` (of a train
    YAML: ``max_seq_len``, ``model`` and ``tokenizer``) and ``hf`` (config,
    generation config and tokenizer of the source, as the tokenizer's name and
    for ``export_hf``). ``checkpoint.pt`` holds the latter two as well.

    Args:
        source: A Hugging Face folder with safetensors, or a GGUF file.
        out: The folder.
        dtype: Of all weights; training keeps them in float32.
        overwrite: Whether ``out`` may exist.
        allow_overflow: Whether weights that are too large for ``dtype`` may
            become infinite.
        tokenizer: A Hugging Face folder to take tokenizer and generation
            config from instead.
        with_tokenizer: Whether a tokenizer is written.
        max_seq_len: Of ``model.yaml``; None: that of the model, at most
            ``MAX_SEQ_LEN``.

    Returns:
        ``max_seq_len`` of ``model.yaml``, and up to what it may be.

    Raises:
        CheckpointError: The source can't be read, ``tokenizer`` is another
            model's, or ``out`` can't be written.
        ConfigError: MPT can't express the model, or not with ``max_seq_len``.
    """
    place = check_output(out, source, overwrite)
    reader = _open(source)
    reader.narrowing.allow_overflow = allow_overflow
    reader.require_exact(dtype)
    longest = reader.section['max_seq_len']
    length = _checked_length(max_seq_len, longest)
    companions = choose_companions(
        reader,
        tokenizer=tokenizer,
        with_tokenizer=with_tokenizer,
    )
    name = f'{out}/hf' if companions.has_tokenizer else None
    sections = _sections(reader, name, length)
    header = _HEADER.format(source=source, out=out, longest=longest)

    def write(path: Path, progress: Progress) -> None:
        _write_hf(reader, path / 'hf', companions)
        (path / 'model.yaml'
        ).write_text(header + yaml.safe_dump(sections, sort_keys=False), )
        weights = path / 'checkpoint.pt'
        write_monolithic(reader, weights, dtype, progress, companions)

    settings = {
        'dtype': dtype_name(dtype),
        'allow_overflow': allow_overflow,
        'max_seq_len': length,
        'tokenizer': tokenizer,
        'with_tokenizer': with_tokenizer,
    }
    provenance = Provenance('import-hf', source, settings, reader.files)
    save(place, write, n_bytes(reader, dtype), provenance, overwrite)
    reader.narrowing.warn_of_zeros()
    return length, longest


def _open(source: str) -> HuggingFaceModel:
    checkpoint = open_checkpoint(source)
    if not isinstance(checkpoint, HuggingFaceModel):
        raise CheckpointError(
            source,
            "it is Composer's, not a Hugging Face model.",
            'give it to convert or sparse_upcycling as it is.',
        )
    return checkpoint


def _checked_length(wanted: Optional[int], longest: int) -> int:
    if wanted is None:
        return min(longest, MAX_SEQ_LEN)
    if not is_whole(wanted) or not 0 < wanted <= longest:
        raise ConfigError(
            '--max-seq-len',
            wanted,
            f'the model was made for sequences of 1 to {longest} tokens.',
            'choose a length in between.',
        )
    return wanted


def _sections(
    reader: HuggingFaceModel,
    tokenizer: Optional[str],
    max_seq_len: int,
) -> dict[str, Any]:
    name = 'upcycled_mpt' if is_mixture(reader.tensors) else 'mpt_causal_lm'
    sections = {
        'max_seq_len': max_seq_len,
        'model': {
            'name': name,
            **reader.section,
            'max_seq_len': max_seq_len,
        },
    }
    if tokenizer is not None:
        sections['tokenizer'] = {
            'name': tokenizer,
            'kwargs': {
                'model_max_length': max_seq_len,
            },
        }
    return sections


def _write_hf(
    reader: HuggingFaceModel,
    folder: Path,
    companions: Companions,
) -> None:
    """Writes the folder ``hf``; a config says the ids of its tokenizer."""
    folder.mkdir(parents=True)
    config = folder / 'config.json'
    if isinstance(reader, GGUFReader):
        write_configs(reader.hf_config, folder)
        (folder / GENERATION).unlink()
    else:
        shutil.copyfile(Path(reader.path, config.name), config)
    if companions.path != reader.path:
        content = json.loads(config.read_bytes())
        content |= companions.token_ids(reader.section['vocab_size'])
        config.write_text(json.dumps(content, indent=2) + '\n')
    companions.write(folder)
    if companions.has_tokenizer:
        warn_if_unloadable(folder, companions.runs_code)
