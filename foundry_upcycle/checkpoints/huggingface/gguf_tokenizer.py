"""The tokenizer in a GGUF file, or one of a folder that must be the same.

The conversion of transformers is not used: for byte-level BPE it takes another
end-of-text token and other digits than the file says, and adds a token at the
start (transformers 4.51).
"""

from pathlib import Path
from typing import Any, Mapping, NamedTuple, Optional

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from foundry_upcycle.checkpoints.huggingface.gguf_file import GGUFFile
from foundry_upcycle.errors import CheckpointError

__all__ = ['check_tokenizer', 'write_tokenizer']

_GIVE_TOKENIZER = (
    "give the folder of the model's own tokenizer by --tokenizer FOLDER, or "
    'leave it out by --no-tokenizer.'
)

_TOKENS = 'tokenizer.ggml.tokens'
_KINDS = 'tokenizer.ggml.token_type'

# Kinds of token (llama.cpp's `llama_token_type`).
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4

# Role in transformers -> its key in a GGUF file.
_SPECIAL_TOKENS = {
    'bos_token': 'bos_token_id',
    'eos_token': 'eos_token_id',
    'pad_token': 'padding_token_id',
    'unk_token': 'unknown_token_id',
}

_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)


class _Words(NamedTuple):
    """What `tokenizer.ggml.pre` stands for.

    Attributes:
        pattern: Regular expression of the words that no merge crosses; None
            for GPT-2's, which is that of ``ByteLevel``.
        splits_digits: Whether each digit is a word.
        keeps_known_words: Whether a word that is a token is not merged.
        normalises: Whether text is brought into Unicode's form C.
        adds_bos: Whether a text starts with the bos token, where the file
            does not say.
    """
    pattern: Optional[str] = None
    splits_digits: bool = False
    keeps_known_words: bool = False
    normalises: bool = False
    adds_bos: bool = False


_LLAMA3 = _Words(_LLAMA3_WORDS, keeps_known_words=True, adds_bos=True)
_WORDS = {
    'gpt-2': _Words(),
    'smollm': _Words(splits_digits=True),
    'llama-bpe': _LLAMA3,
    'llama-v3': _LLAMA3,
    'llama3': _LLAMA3,
    'qwen2': _Words(_LLAMA3_WORDS.replace('{1,3}', ''), normalises=True),
}


def write_tokenizer(file: GGUFFile, max_length: int, folder: Path) -> None:
    """Writes the tokenizer of a GGUF file into a folder.

    Args:
        file: Of a model whose tokenizer is a byte-level BPE.
        max_length: Of its texts, in tokens.
        folder: Where.

    Raises:
        CheckpointError: It is of another kind, or damaged.
    """
    from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

    kind = file.require('tokenizer.ggml.model', 'a text', _GIVE_TOKENIZER)
    if kind != 'gpt2':
        raise file.error(
            f'its tokenizer is of the kind {kind!r}; only byte-level BPE '
            "('gpt2') can be taken from a GGUF file.",
            _GIVE_TOKENIZER,
        )
    special = {role: _token(file, key) for role, key in _SPECIAL_TOKENS.items()}
    # transformers can guess none of this from the tokens.
    PreTrainedTokenizerFast(
        tokenizer_object=_byte_level_bpe(file, special['bos_token']),
        clean_up_tokenization_spaces=False,
        model_input_names=['input_ids', 'attention_mask'],
        model_max_length=max_length,
        chat_template=file.get('tokenizer.chat_template', 'a text'),
        **special,
    ).save_pretrained(folder)


def check_tokenizer(
    file: GGUFFile,
    path: str,
    vocabulary: Mapping[str, int],
) -> None:
    """Refuses another model's tokenizer: the file lists its own's tokens.

    Only what was learned from text is compared; converters rename tokens that
    were added.

    Args:
        file: The model's.
        path: Where the tokenizer lies, for messages.
        vocabulary: Its tokens' ids.

    Raises:
        CheckpointError: A token has another id, or none.
    """
    tokens = file.get(_TOKENS, 'a list of texts', [])
    kinds = file.get(_KINDS, 'a list of numbers', [_NORMAL] * len(tokens))
    learned = [i for i, kind in enumerate(kinds) if kind == _NORMAL]
    for i in learned[:len(tokens)]:
        if vocabulary.get(tokens[i]) != i:
            raise CheckpointError(
                path,
                f'in {file.path} the token {tokens[i]!r} has the id {i}, in '
                f'this tokenizer {vocabulary.get(tokens[i])}.',
                "give the folder of the model's own tokenizer.",
            )


def _token(file: GGUFFile, key: str) -> Optional[str]:
    tokens = file.require(_TOKENS, 'a list of texts', _GIVE_TOKENIZER)
    token_id = file.get(f'tokenizer.ggml.{key}', 'a whole number')
    if token_id is None:
        return None
    if not 0 <= token_id < len(tokens):
        raise file.error(
            f'tokenizer.ggml.{key} is {token_id}, and there are {len(tokens)} '
            'tokens.',
            _GIVE_TOKENIZER,
        )
    return tokens[token_id]


def _byte_level_bpe(file: GGUFFile, bos_token: Optional[str]) -> Tokenizer:
    words = _words(file)
    tokens = file.require(_TOKENS, 'a list of texts', _GIVE_TOKENIZER)
    kinds = file.require(_KINDS, 'a list of numbers', _GIVE_TOKENIZER)
    if len({*tokens}) != len(tokens) or len(kinds) != len(tokens):
        raise file.error(
            f'{_TOKENS} has {len(tokens)} tokens, {len({*tokens})} of them '
            f'different, and {_KINDS} {len(kinds)} kinds.',
            _GIVE_TOKENIZER,
        )
    tokenizer: Any = Tokenizer(_merging(file, tokens, words))
    if words.normalises:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(words)
    tokenizer.decoder = decoders.ByteLevel()
    # They are found in the text as it is, before it is normalised.
    tokenizer.add_tokens([
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(tokens, kinds)
        if kind in (_CONTROL, _USER_DEFINED)
    ])
    adds_bos = file.get(
        'tokenizer.ggml.add_bos_token',
        'true or false',
        words.adds_bos,
    )
    if adds_bos and bos_token:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f'{bos_token} $A',
            pair=f'{bos_token} $A {bos_token}:1 $B:1',
            special_tokens=[(bos_token, tokens.index(bos_token))],
        )
    return tokenizer


def _words(file: GGUFFile) -> _Words:
    name = file.require('tokenizer.ggml.pre', 'a text', _GIVE_TOKENIZER)
    if name not in _WORDS:
        raise file.error(
            f'tokenizer.ggml.pre is {name!r}; known are {", ".join(_WORDS)}.',
            _GIVE_TOKENIZER,
        )
    if file.get('tokenizer.ggml.add_eos_token', 'true or false'):
        raise file.error(
            'tokenizer.ggml.add_eos_token is True, which is for embeddings.',
            'use a model that generates text.',
        )
    return _WORDS[name]


def _merging(file: GGUFFile, tokens: list[str], words: _Words) -> models.BPE:
    merges = file.require(
        'tokenizer.ggml.merges', 'a list of texts', _GIVE_TOKENIZER
    )
    try:
        return models.BPE(
            vocab={
                token: i
                for i, token in enumerate(tokens)
            },
            merges=[tuple(merge.split(' ')) for merge in merges],
            ignore_merges=words.keeps_known_words,
        )
    # What the library raises has no type of its own.
    except Exception as error:
        raise file.error(
            f'its tokens and merges do not fit together ({error}).',
            _GIVE_TOKENIZER,
        ) from error


def _pre_tokenizer(words: _Words) -> Any:
    steps = []
    if words.splits_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if words.pattern:
        steps.append(
            pre_tokenizers.Split(Regex(words.pattern), behavior='isolated'),
        )
    use_regex = words.pattern is None
    steps.append(pre_tokenizers.ByteLevel(False, use_regex=use_regex))
    return pre_tokenizers.Sequence(steps)
