"""Texts that a user names, as a checkpoint's own tokens."""

import os
from itertools import islice
from pathlib import Path
from typing import Any, Iterator, Optional, Sequence

import numpy as np
import torch
from streaming import LocalDataset
from transformers.models.auto.tokenization_auto import AutoTokenizer

from foundry_upcycle.checkpoints.base import Checkpoint
from foundry_upcycle.conversion.companions import choose_companions
from foundry_upcycle.documents import DocumentError, read_json
from foundry_upcycle.errors import CheckpointError
from foundry_upcycle.files import scratch_folder

__all__ = ['token_batches']

_MAX_SEQ_LEN = 2048
# Tokens of a batch: weights are read anew for each.
_BATCH_TOKENS = 8192


def token_batches(
    checkpoint: Checkpoint,
    path: str,
    max_tokens: int,
    tokenizer: Optional[str] = None,
) -> Iterator[torch.Tensor]:
    """Token ids of texts, in the order of the texts.

    Args:
        checkpoint: Whose tokenizer, vocabulary and length it is.
        path: A text file (UTF-8), a folder of them, whose texts are joined by
            end-of-text tokens, or an MDS folder with a column ``tokens``, as
            Foundry's ``convert_dataset_hf.py`` writes it.
        max_tokens: What comes after them is left out.
        tokenizer: See ``export_hf``.

    Yields:
        Ids (B, T), of B sequences of one length.

    Raises:
        CheckpointError: There are no texts, they can't be read or no tokenizer
            is there for them, or the model has no such ids.
    """
    T = min(checkpoint.model_config['max_seq_len'], _MAX_SEQ_LEN)
    if os.path.exists(os.path.join(path, 'index.json')):
        sequences = _mds_sequences(path, T)
    else:
        sequences = _split(_text_ids(checkpoint, path, tokenizer), T)
    V, n_tokens, waiting = checkpoint.model_config['vocab_size'], 0, []
    for ids in sequences:
        ids = ids[:max_tokens - n_tokens]
        n_tokens += len(ids)
        _check_ids(path, ids, V)
        is_same = not waiting or len(waiting[0]) == len(ids)
        if waiting and not (is_same and len(waiting) * T < _BATCH_TOKENS):
            yield torch.tensor(np.stack(waiting))
            waiting = []
        waiting.append(ids)
        if n_tokens == max_tokens:
            break
    if not waiting:
        raise CheckpointError(
            path,
            'it holds no text.',
            'name a text file, a folder of them, or an MDS folder.',
        )
    yield torch.tensor(np.stack(waiting))


def _split(texts: Iterator[Sequence[int]], T: int) -> Iterator[np.ndarray]:
    """Sequences of T of all texts joined; the last may be shorter."""
    ids = (token for text in texts for token in text)
    while sequence := [*islice(ids, T)]:
        yield np.array(sequence, dtype=np.int64)


def _text_ids(
    checkpoint: Checkpoint,
    path: str,
    tokenizer: Optional[str],
) -> Iterator[list[int]]:
    files = _text_files(path)
    encode: Any = _load_tokenizer(checkpoint, tokenizer) if files else None
    for file in files:
        text = _read(file)
        if text.strip():
            ids = encode(text, verbose=False)['input_ids']
            end = encode.eos_token_id
            yield ids if end is None or ids[-1:] == [end] else [*ids, end]


def _text_files(path: str) -> list[Path]:
    root = Path(path)
    if not root.exists():
        raise CheckpointError(
            path,
            'there is no such file or folder.',
            'name a text file, a folder of them, or an MDS folder.',
        )
    if not root.is_dir():
        return [root]
    return sorted(
        file for file in root.rglob('*')
        if file.is_file() and not file.name.startswith('.')
    )


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            file,
            f'it is not a text in UTF-8 ({error}).',
            'leave it out, or save it as UTF-8.',
        ) from error


def _load_tokenizer(checkpoint: Checkpoint, tokenizer: Optional[str]) -> Any:
    companions = choose_companions(checkpoint, None, tokenizer)
    if not companions.has_tokenizer:
        raise CheckpointError(
            checkpoint.path,
            'it holds no tokenizer, to make tokens of texts.',
            'name a Hugging Face folder that has it with --tokenizer, or texts '
            'that are tokens already (an MDS folder).',
        )
    with scratch_folder('foundry-upcycle-tokenizer-') as folder:
        companions.write(folder)
        try:
            return AutoTokenizer.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
            )
        # A tokenizer makes its libraries raise almost anything.
        except Exception as error:
            raise CheckpointError(
                companions.path,
                f'its tokenizer cannot be loaded ({error}).',
                'name another folder with --tokenizer, or texts that are '
                'tokens already (an MDS folder).',
            ) from error


def _mds_sequences(path: str, T: int) -> Iterator[np.ndarray]:
    encoding = _encoding(path)
    for sample in LocalDataset(path):
        tokens = sample['tokens']
        # As Foundry reads them.
        if encoding == 'bytes':
            tokens = np.frombuffer(tokens, dtype=np.int64)
        tokens = np.asarray(tokens).ravel().astype(np.int64)
        for start in range(0, len(tokens), T):
            yield tokens[start:start + T]


def _encoding(path: str) -> str:
    """Of the column ``tokens``; a pickle would run whatever it says."""
    problem, encodings = 'it has no column tokens', {}
    try:
        for shard in read_json(os.path.join(path, 'index.json'))['shards']:
            columns = zip(shard['column_names'], shard['column_encodings'])
            encodings.update(columns)
    except (DocumentError, KeyError, TypeError) as error:
        problem = f'its index.json is none of MDS ({error!r})'
    encoding = str(encodings.get('tokens'))
    others = {*encodings.values()} & {'pkl'}
    if encoding != 'bytes' and not encoding.startswith('ndarray') or others:
        raise CheckpointError(
            path,
            'it has pickles, which are not executed.'
            if others else f'{problem} of numbers.',
            "write it with Foundry's scripts/data_prep/convert_dataset_hf.py "
            'and --concat_tokens.',
        )
    return encoding


def _check_ids(path: str, ids: np.ndarray, V: int) -> None:
    if len(ids) and not 0 <= ids.min() <= ids.max() < V:
        raise CheckpointError(
            path,
            f'it has the token {ids.max() if ids.max() >= V else ids.min()}, '
            f'and the model a vocabulary of {V}.',
            "take tokens of the model's own tokenizer.",
        )
