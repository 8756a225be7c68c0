"""Random tokens, as a stream for Foundry and as a tensor for the plain loop."""

from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from streaming import MDSWriter

from foundry_upcycle.data.tokenizer import train_tokenizer

__all__ = ['random_tokens', 'write_run_folder']

_N_STEPS = 200  # Of an epoch.
_SEED = 17


def random_tokens(config: DictConfig) -> torch.Tensor:
    """Sequences of an epoch, each token as probable as any: (N, S)."""
    generator = np.random.default_rng(_SEED)
    shape = (_N_STEPS * config.global_train_batch_size, config.max_seq_len)
    return torch.from_numpy(
        generator.integers(config.model.vocab_size, size=shape)
    )


def write_run_folder(config: DictConfig, folder: Path) -> None:
    """Writes what a run reads: a tokenizer, and the tokens as ``train``."""
    text = [path.read_text() for path in Path(__file__).parent.glob('*.py')]
    train_tokenizer(text, 400, folder / 'tokenizer')
    with MDSWriter(
            out=str(folder / 'train'),
            columns={'tokens': 'ndarray:uint16'},
    ) as writer:
        for tokens in random_tokens(config).numpy().astype(np.uint16):
            writer.write({'tokens': tokens})
