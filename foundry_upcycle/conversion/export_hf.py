"""MPT checkpoint in, Hugging Face folder out."""

from pathlib import Path
from typing import Any, Optional

import torch

from foundry_upcycle.checkpoints.base import Checkpoint, dtype_name
from foundry_upcycle.checkpoints.huggingface.export import ExportedCheckpoint
from foundry_upcycle.checkpoints.huggingface.own import MPT
from foundry_upcycle.checkpoints.huggingface.reader import read_config
from foundry_upcycle.checkpoints.names import is_mixture
from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.checkpoints.writers.output import Progress
from foundry_upcycle.checkpoints.writers.safetensors import write_safetensors
from foundry_upcycle.conversion.companions import (
    choose_companions,
    huggingface_folder,
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
    tokenizer: Optional[str] = None,
    with_tokenizer: bool = True,
    top_k: Optional[int] = None,
) -> None:
    """Writes a folder that transformers and vLLM load.

    Args:
        source: A dense or upcycled MPT checkpoint.
        out: The folder.
        like: A Hugging Face folder to take the tokenizer, the generation
            config and (for a dense model) the architecture from: the one
            that was imported, or what ``import_hf`` wrote. None: those that
            the checkpoint holds, and the first architecture that can hold the
            model.
        dtype: Of all weights; None keeps theirs.
        overwrite: Whether ``out`` may exist.
        allow_overflow: Whether weights that are too large for ``dtype`` may
            become infinite.
        tokenizer: A Hugging Face folder to take tokenizer and generation
            config from instead.
        with_tokenizer: Whether a tokenizer is written.
        top_k: Experts a token goes to; None keeps the checkpoint's, of one
            that varied in training the largest.

    Raises:
        CheckpointError: The source can't be read, ``out`` not be written, or
            the tokenizer that was named is another model's.
        ConfigError: No such architecture can hold the model; the message
            names the setting in the way.
    """
    checkpoint = open_checkpoint(source)
    checkpoint.narrowing.allow_overflow = allow_overflow
    writer = huggingface_writer(
        checkpoint,
        like,
        dtype,
        tokenizer,
        with_tokenizer,
        top_k,
    )
    settings = {
        'dtype': dtype and dtype_name(dtype),
        'like': like,
        'tokenizer': tokenizer if with_tokenizer else False,
        'allow_overflow': allow_overflow,
        'top_k': top_k,
    }
    provenance = Provenance('export-hf', source, settings, checkpoint.files)
    save(out, writer, n_bytes(checkpoint, dtype), provenance, overwrite)
    checkpoint.narrowing.warn_of_zeros()


def huggingface_writer(
    checkpoint: Checkpoint,
    like: Optional[str],
    dtype: Optional[torch.dtype],
    tokenizer: Optional[str] = None,
    with_tokenizer: bool = True,
    top_k: Optional[int] = None,
) -> Writer:
    """What writes ``checkpoint`` as a Hugging Face folder.

    Arguments as of ``export_hf``.
    """
    likes = {} if like is None else read_config(huggingface_folder(like))
    # A mixture takes another architecture than its dense parent's, and MPT's
    # own is what is left behind.
    is_dense = not is_mixture(checkpoint.tensors)
    model_type = likes.get('model_type') if is_dense else None
    model_type = None if model_type == MPT else model_type
    view = ExportedCheckpoint(checkpoint, model_type, likes, top_k)
    companions = choose_companions(checkpoint, like, tokenizer, with_tokenizer)
    config: dict[str, Any] = dict(view.config)
    config.update(companions.token_ids(config['vocab_size']))
    if dtype is not None:
        config['torch_dtype'] = dtype_name(dtype)

    def write(path: Path, progress: Progress) -> None:
        write_safetensors(view, path, config, dtype, progress)
        companions.write(path)

    return write
