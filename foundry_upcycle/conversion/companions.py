"""Which tokenizer goes with the weights that are written, and if it fits."""

import os
import warnings
from pathlib import Path
from typing import Optional

from foundry_upcycle.checkpoints.base import Checkpoint
from foundry_upcycle.checkpoints.companions import Companions
from foundry_upcycle.checkpoints.huggingface.reader import (
    is_huggingface_folder,
    read_config,
)
from foundry_upcycle.checkpoints.open import require_existing
from foundry_upcycle.errors import (
    CheckpointError,
    ConfigError,
    UpcyclingWarning,
)

__all__ = [
    'choose_companions',
    'huggingface_folder',
    'warn_if_unloadable',
]

_NAME_ONE = 'name a folder that has it with --tokenizer'


def choose_companions(
    checkpoint: Checkpoint,
    like: Optional[str] = None,
    tokenizer: Optional[str] = None,
    with_tokenizer: bool = True,
) -> Companions:
    """Tokenizer and generation config to write beside a checkpoint's weights.

    All of them come from one place, so that their ids agree.

    Args:
        checkpoint: Has its own, where no folder is named.
        like: A Hugging Face folder, or None.
        tokenizer: Another one, that comes before ``like``.
        with_tokenizer: Whether a tokenizer is wanted.

    Raises:
        CheckpointError: They can't be read, a folder's tokenizer is another
            model's, or ``tokenizer`` has none.
        ConfigError: ``tokenizer`` is named, and none is wanted.
    """
    folder = like if tokenizer is None else tokenizer
    if tokenizer is not None and not with_tokenizer:
        raise ConfigError(
            '--tokenizer',
            tokenizer,
            '--no-tokenizer contradicts it.',
            'leave one of them out.',
        )
    if folder is None:
        found = checkpoint.companions(with_tokenizer)
    else:
        found = _of_folder(folder, with_tokenizer)
    if tokenizer is not None and not found.has_tokenizer:
        raise CheckpointError(
            tokenizer,
            'it has no tokenizer.',
            'name a folder that has one, or leave it out by --no-tokenizer.',
        )
    if not with_tokenizer:
        return found
    n_rows = checkpoint.model_config['vocab_size']
    if found.has_tokenizer:
        if folder not in (None, checkpoint.path):
            _refuse_other_models(found, n_rows)
            if found.tokens.vocabulary:
                checkpoint.check_tokens(found.path, found.tokens.ids)
        _warn_of_tokens_without_rows(found, n_rows)
    _warn_if_missing(found, n_rows)
    return found


def huggingface_folder(folder: str) -> str:
    """The folder itself, or of what ``import_hf`` wrote ``hf``.

    Raises:
        CheckpointError: There is no such folder.
    """
    require_existing(folder, 'a Hugging Face folder')
    if not os.path.isdir(folder):
        raise CheckpointError(
            folder,
            'it is not a folder.',
            'name a Hugging Face folder.',
        )
    inner = os.path.join(folder, 'hf')
    is_import = os.path.isfile(os.path.join(folder, 'model.yaml'))
    if is_import and os.path.isdir(inner):
        return inner
    return folder


def warn_if_unloadable(folder: Path, runs_code: bool) -> None:
    """Warns of a tokenizer that a run would not load.

    Args:
        folder: Where it was written.
        runs_code: Whether it has a class of its own, which is not run.
    """
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    try:
        AutoTokenizer.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
        )
    # A tokenizer makes its libraries raise almost anything.
    except Exception as error:
        reason = 'it runs code of its own' if runs_code else ' '.join(
            str(error).split(),
        )
        fix = (
            'set tokenizer.kwargs.trust_remote_code: true in the YAML, if you '
            'trust that code'
        ) if runs_code else f'{_NAME_ONE}, as transformers 4.51 loads it'
        warnings.warn(
            f'the tokenizer is copied as it is, and a run will not load it: '
            f'{reason}. Fix: {fix}.',
            UpcyclingWarning,
            stacklevel=2,
        )


def _of_folder(folder: str, with_tokenizer: bool) -> Companions:
    folder = huggingface_folder(folder)
    has_config = is_huggingface_folder(folder)
    return Companions.of_folder(
        folder,
        read_config(folder) if has_config else {},
        with_tokenizer,
    )


def _refuse_other_models(companions: Companions, n_rows: int) -> None:
    largest = max(companions.tokens.vocabulary.values(), default=0)
    if largest >= n_rows:
        raise CheckpointError(
            companions.path,
            f'its tokenizer has ids up to {largest}, the model a vocabulary of '
            f'{n_rows}.',
            'name the tokenizer that the model was trained with.',
        )


def _warn_of_tokens_without_rows(companions: Companions, n_rows: int) -> None:
    ids = companions.tokens.ids
    beyond = {i: token for token, i in ids.items() if i >= n_rows}
    if not beyond:
        return
    first = min(beyond)
    warnings.warn(
        f'{companions.path}: {len(beyond)} of the tokens, from id {first} '
        f'({beyond[first]!r}), have no row in the model, which has {n_rows}: '
        'text with them fails, and Foundry adds rows to a model whose '
        'tokenizer is larger, which these weights then do not fit. Fix: to '
        'train or serve with this tokenizer, take these tokens out of it, or '
        'add rows with transformers (resize_token_embeddings), save, and '
        'import that.',
        UpcyclingWarning,
        stacklevel=3,
    )


def _warn_if_missing(companions: Companions, n_rows: int) -> None:
    if not companions.has_tokenizer:
        missing = 'it has no tokenizer, so none goes with the weights'
    elif companions.token_ids(n_rows)['eos_token_id'] is None:
        missing = 'nothing says which token ends a text (eos_token)'
    else:
        return
    warnings.warn(
        f'{companions.path}: {missing}: a run needs one, and what is served '
        f'does not know where to stop. Fix: {_NAME_ONE}; --no-tokenizer if '
        'none is wanted.',
        UpcyclingWarning,
        stacklevel=3,
    )
