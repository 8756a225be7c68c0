"""Documents to MDS folders that Foundry's ``text`` dataloader streams."""

from pathlib import Path
from typing import Iterator, Optional, Sequence, cast

import numpy as np
from streaming import MDSWriter
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from foundry_upcycle.checkpoints.writers.output import new_output
from foundry_upcycle.data.corpus import Documents

__all__ = ['write_splits', 'write_stream']

_DOCUMENTS_PER_BATCH = 256


def write_splits(
    documents: Documents,
    tokenizer: PreTrainedTokenizerBase,
    seq_len: int,
    folder: Path,
    n_held_out: int,
) -> int:
    """Writes a part of the corpus as the splits ``train`` and ``held_out``.

    Args:
        documents: Of the part.
        tokenizer: As ``write_stream`` takes it.
        seq_len: Tokens of a sample.
        folder: Gets the splits; they are replaced if they are there.
        n_held_out: Held-out samples, at the most.

    Returns:
        The number of samples to train on.

    Raises:
        CheckpointError, ValueError: As ``write_stream``.
    """
    n_train = write_stream(
        documents.train,
        tokenizer,
        seq_len,
        folder / 'train',
    )
    write_stream(
        documents.held_out,
        tokenizer,
        seq_len,
        folder / 'held_out',
        max_samples=n_held_out,
    )
    return n_train


def write_stream(
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    seq_len: int,
    folder: Path,
    max_samples: Optional[int] = None,
) -> int:
    """Writes documents as token sequences of equal length.

    Documents are joined, each closed by the end-of-text token, and cut every
    ``seq_len`` tokens; what is left after the last full sequence is dropped.
    The folder appears complete or not at all.

    Args:
        documents: Texts.
        tokenizer: A tokenizer of at most 65,536 tokens.
        seq_len: Tokens of a sample.
        folder: Where to write; replaced if it is there.
        max_samples: Samples after which to stop. None: at the text's end.

    Returns:
        The number of samples written.

    Raises:
        CheckpointError: The folder can't be written.
        ValueError: The documents do not fill one sample.
    """
    n_samples = 0
    with new_output(folder, overwrite=True) as unfinished:
        with MDSWriter(
                out=str(unfinished),
                columns={'tokens': 'ndarray:uint16'},
        ) as writer:
            for sample in _samples(documents, tokenizer, seq_len):
                writer.write({'tokens': sample})
                n_samples += 1
                if n_samples == max_samples:
                    break
        if not n_samples:
            raise ValueError(
                f'{folder}: {len(documents)} documents do not fill one sample '
                f'of {seq_len=} tokens. Give more text, or lower seq_len.',
            )
    return n_samples


def _samples(
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    seq_len: int,
) -> Iterator[np.ndarray]:
    tokens: list[int] = []
    for start in range(0, len(documents), _DOCUMENTS_PER_BATCH):
        batch = list(documents[start:start + _DOCUMENTS_PER_BATCH])
        encoded = tokenizer(batch, verbose=False)['input_ids']
        for ids in cast(list[list[int]], encoded):
            tokens.extend(ids)
            tokens.append(tokenizer.eos_token_id)
        n_full = len(tokens) // seq_len * seq_len
        block = np.array(tokens[:n_full], dtype=np.uint16)
        yield from block.reshape(-1, seq_len)
        del tokens[:n_full]
