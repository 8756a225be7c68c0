"""What lies beside a Hugging Face folder's weights: tokenizer and configs."""

import shutil
from pathlib import Path

from transformers.models.auto.tokenization_auto import AutoTokenizer

from foundry_upcycle.errors import CheckpointError

__all__ = [
    'check_vocabulary',
    'copy_companions',
    'copy_configs',
    'copy_tokenizer',
]

_CONFIGS = ('config.json', 'generation_config.json')
_TOKENIZER = (
    'tokenizer.json',
    'tokenizer.model',
    'tokenizer_config.json',
    'special_tokens_map.json',
    'added_tokens.json',
    'vocab.json',
    'merges.txt',
    'chat_template.jinja',
    'chat_template.json',
)


def copy_companions(source: str, folder: Path) -> None:
    """Copies configs and tokenizer, whatever there is of them.

    What ``folder`` has already stays.
    """
    copy_configs(source, folder)
    copy_tokenizer(source, folder)


def copy_configs(source: str, folder: Path) -> None:
    _copy(source, _CONFIGS, folder)


def copy_tokenizer(source: str, folder: Path) -> None:
    _copy(source, _TOKENIZER, folder)


def _copy(source: str, names: tuple[str, ...], folder: Path) -> None:
    for name in names:
        file = Path(source, name)
        if file.is_file() and not (folder / name).exists():
            shutil.copyfile(file, folder / name)


def check_vocabulary(folder: str, vocab_size: int) -> dict[str, int]:
    """Checks that the model has a row for every token of a tokenizer.

    More rows than tokens are usual: sizes are padded. A folder without a
    tokenizer passes.

    Returns:
        The ids of the tokens.

    Raises:
        CheckpointError: The tokenizer has more tokens, or can't be loaded.
    """
    names = ('tokenizer.json', 'tokenizer.model', 'vocab.json')
    if not any(Path(folder, name).is_file() for name in names):
        return {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
        )
    # A damaged tokenizer makes its libraries raise almost anything.
    except Exception as error:
        raise CheckpointError(
            folder,
            f'its tokenizer could not be loaded ({error}).',
            'copy it again, or name a folder without one.',
        ) from error
    vocabulary = tokenizer.get_vocab()
    largest = max(vocabulary.values())
    if largest >= vocab_size:
        raise CheckpointError(
            folder,
            f'its tokenizer has ids up to {largest}, the model a vocabulary '
            f'of {vocab_size}.',
            'name the tokenizer that the model was trained with.',
        )
    return vocabulary
