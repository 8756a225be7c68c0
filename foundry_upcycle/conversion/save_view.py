"""Writes a view of a checkpoint, in any format."""

from typing import Optional

import torch

from foundry_upcycle.checkpoints.base import Checkpoint
from foundry_upcycle.checkpoints.companions import Companions
from foundry_upcycle.checkpoints.writers.monolithic import write_monolithic
from foundry_upcycle.config import FileFormat
from foundry_upcycle.conversion.companions import choose_companions
from foundry_upcycle.conversion.export_hf import huggingface_writer
from foundry_upcycle.conversion.manifest import Provenance
from foundry_upcycle.conversion.save import Writer, n_bytes, save
from foundry_upcycle.errors import ConfigError

__all__ = ['save_view']


def save_view(
    view: Checkpoint,
    out: str,
    file_format: FileFormat,
    provenance: Provenance,
    dtype: Optional[torch.dtype] = None,
    like: Optional[str] = None,
    overwrite: bool = False,
    tokenizer: Optional[str] = None,
    with_tokenizer: bool = True,
) -> None:
    """Writes what a view computes, whole or not at all, with its manifest.

    Args:
        view: What is to be written.
        out: The ``.pt`` file, or the folder, to write.
        file_format: ``pt`` or ``dcp`` (a sharded folder) for ``load_path``, or
            ``safetensors``: the Hugging Face folder that ``export_hf`` would
            make of them.
        provenance: Goes into the manifest.
        dtype: Of all that is written; None keeps that of the view.
        like: See ``export_hf``; for a Hugging Face folder only.
        overwrite: Whether ``out`` may exist.
        tokenizer: See ``export_hf``.
        with_tokenizer: Whether the output holds a tokenizer.

    Raises:
        CheckpointError: ``out`` can't be written. What was there still is.
        ConfigError: A Hugging Face folder can't hold the model.
    """
    if file_format == 'safetensors':
        write = huggingface_writer(view, like, dtype, tokenizer, with_tokenizer)
    else:
        _refuse_like(file_format, like)
        companions = choose_companions(view, None, tokenizer, with_tokenizer)
        write = _composer_writer(view, companions, file_format, dtype)
    save(
        out,
        write,
        n_bytes(view, dtype),
        provenance,
        overwrite,
        is_file=file_format == 'pt',
    )
    view.narrowing.warn_of_zeros()


def _refuse_like(file_format: FileFormat, like: Optional[str]) -> None:
    if like is not None:
        raise ConfigError(
            'like',
            like,
            f'a {file_format} output is no Hugging Face folder.',
            'choose the format safetensors; for its tokenizer alone, give the '
            'folder as --tokenizer.',
        )


def _composer_writer(
    view: Checkpoint,
    companions: Companions,
    file_format: FileFormat,
    dtype: Optional[torch.dtype],
) -> Writer:
    write = write_monolithic
    if file_format == 'dcp':
        from foundry_upcycle.checkpoints.writers.sharded import write_sharded
        write = write_sharded
    return lambda path, progress: write(
        view,
        path,
        dtype,
        progress,
        companions,
    )
