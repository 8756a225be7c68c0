"""MPT checkpoint in, Hugging Face folder out."""

from pathlib import Path
from typing import Any, Optional

import torch

from foundry_upcycle.checkpoints.base import Checkpoint, dtype_name
from foundry_upcycle.checkpoints.huggingface.architectures import TOKEN_IDS
from foundry_upcycle.checkpoints.huggingface.export import ExportedCheckpoint
from foundry_upcycle.checkpoints.huggingface.own import MPT
from foundry_upcycle.checkpoints.huggingface.reader import read_config
from foundry_upcycle.checkpoints.names import is_mixture
from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.checkpoints.writers.output import Progress
from foundry_upcycle.checkpoints.writers.safetensors import write_safetensors
from foundry_upcycle.conversion.companions import (
    check_vocabulary,
    copy_companions,
)
from foundry_upcycle.conversion.manifest import Provenance
from foundry_upcycle.conversion.save import Writer, n_bytes, save

__all__ = ['export_hf', 'huggingface_writer']


def export_hf(
    source: str,
    out: str,
    like: Optional[str] = None,
    dtype: Optional[torch.dtype] = None,
    overwrite: bool = False,
    allow_overflow: bool = False,
) -> None:
    """Writes a folder that transformers and vLLM load.

    Args:
        source: A dense or upcycled MPT checkpoint.
        out: The folder.
        like: A Hugging Face folder to take the tokenizer, the generation
            config and (for a dense model) the architecture from: the one
            that was imported, or ``hf`` in what ``import_hf`` wrote. None:
            no tokenizer, and the first architecture that can hold the model.
        dtype: Of all weights; None keeps theirs.
        overwrite: Whether ``out`` may exist.
        allow_overflow: Whether weights that are too large for ``dtype`` may
            become infinite.

    Raises:
        CheckpointError: The source can't be read, ``out`` not be written, or
            the tokenizer has more tokens than the model.
        ConfigError: No such architecture can hold the model; the message
            names the setting in the way.
    """
    checkpoint = open_checkpoint(source)
    checkpoint.narrowing.allow_overflow = allow_overflow
    writer = huggingface_writer(checkpoint, like, dtype)
    settings = {
        'dtype': dtype and dtype_name(dtype),
        'like': like,
        'allow_overflow': allow_overflow,
    }
    provenance = Provenance('export-hf', source, settings)
    save(out, writer, n_bytes(checkpoint, dtype), provenance, overwrite)
    checkpoint.narrowing.warn_of_zeros()


def huggingface_writer(
    checkpoint: Checkpoint,
    like: Optional[str],
    dtype: Optional[torch.dtype],
) -> Writer:
    """What writes ``checkpoint`` as a Hugging Face folder."""
    likes = read_config(like) if like else {}
    # A mixture takes another architecture than its dense parent's, and MPT's
    # own is what is left behind.
    is_dense = not is_mixture(checkpoint.tensors)
    model_type = likes.get('model_type') if is_dense else None
    model_type = None if model_type == MPT else model_type
    view = ExportedCheckpoint(checkpoint, model_type, likes)
    config: dict[str, Any] = dict(view.config)
    config.update({key: likes.get(key) for key in TOKEN_IDS})
    if dtype is not None:
        config['torch_dtype'] = dtype_name(dtype)
    if like:
        check_vocabulary(like, config['vocab_size'])

    def write(path: Path, progress: Progress) -> None:
        write_safetensors(view, path, config, dtype, progress)
        if like:
            copy_companions(like, path)

    return write
