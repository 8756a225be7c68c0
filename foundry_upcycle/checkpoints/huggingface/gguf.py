"""A GGUF file to the Hugging Face folder that it was made from.

transformers dequantises the weights. Its conversion of the tokenizer is not
used: for byte-level BPE it takes another end-of-text token and other digits
than the file says, and adds a token at the start (transformers 4.51).
"""

from pathlib import Path
from typing import Any, Mapping, NamedTuple, Optional

import torch
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
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.modeling_gguf_pytorch_utils import (
    get_gguf_hf_weights_map,
    read_field,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from foundry_upcycle.errors import CheckpointError

__all__ = ['unpack_gguf']

# What transformers dequantises and MPT can express.
_ARCHITECTURES = ('llama', 'qwen2')

# Settings that only repeat what transformers derives from others.
_HEAD_DIMS = ('rope.dimension_count', 'attention.key_length')
_REPEATED = {*_HEAD_DIMS, 'attention.value_length', 'vocab_size'}

_ORIGINAL = "give the model's original Hugging Face folder."

# Kinds of token (llama.cpp's `llama_token_type`).
_CONTROL, _USER_DEFINED = 3, 4

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


_WORDS = {
    'gpt-2': _Words(),
    'smollm': _Words(splits_digits=True),
    'llama-bpe': _Words(_LLAMA3_WORDS, keeps_known_words=True, adds_bos=True),
    'qwen2': _Words(_LLAMA3_WORDS.replace('{1,3}', ''), normalises=True),
}


class _File(NamedTuple):
    """Metadata and names of tensors of a GGUF file."""
    path: str
    fields: dict[str, list[Any]]
    tensors: list[str]

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a field that is not a list."""
        return self.fields[key][0] if key in self.fields else default

    def require(self, key: str) -> list[Any]:
        if key not in self.fields:
            raise self.error(f'it has no {key}.', _ORIGINAL)
        return self.fields[key]

    def error(self, problem: str, fix: str) -> CheckpointError:
        return CheckpointError(self.path, problem, fix)


def unpack_gguf(file: str, folder: str) -> None:
    """Writes config, weights in float32 and tokenizer of a GGUF file.

    The whole model is in memory for a moment. Nothing is written unless all
    of the file could be read.

    Args:
        file: A GGUF file of a Llama or Qwen2, whose tokenizer is a byte-level
            BPE. Quantised weights become the values that they stand for.
        folder: Where to write; made if it is missing.

    Raises:
        CheckpointError: The package ``gguf`` is missing, the file is damaged,
            or it holds what transformers can't carry over.
    """
    content = _open(file)
    _check_settings(content)
    tokenizer = _tokenizer(content)
    model = _model(content)
    _set_special_tokens(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _open(path: str) -> _File:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise CheckpointError(
            path,
            'GGUF files need the package gguf.',
            'run `pip install gguf`.',
        ) from error
    try:
        reader = GGUFReader(path)
        fields = {name: read_field(reader, name) for name in reader.fields}
    # Random bytes make the reader raise almost anything.
    except Exception as error:
        raise CheckpointError(
            path,
            f'it is not a GGUF file, or damaged ({error}).',
            'copy or download it again.',
        ) from error
    return _File(path, fields, [tensor.name for tensor in reader.tensors])


def _check_settings(file: _File) -> None:
    """Refuses what transformers would leave out without a word."""
    (architecture, ) = file.require('general.architecture')
    if architecture not in _ARCHITECTURES:
        raise file.error(
            f'general.architecture is {architecture!r}.',
            f'use a model of {", ".join(_ARCHITECTURES)}.',
        )
    prefix = f'{architecture}.'
    settings = {
        key.removeprefix(prefix): value
        for key, (value, *_) in file.fields.items()
        if key.startswith(prefix)
    }
    for name, value in settings.items():
        if name not in _REPEATED | GGUF_CONFIG_MAPPING[architecture].keys():
            raise file.error(
                f'{prefix}{name} is {value!r}, which transformers does not '
                'read.',
                _ORIGINAL,
            )
    _check_head_dims(file, prefix, settings)


def _check_head_dims(
    file: _File,
    prefix: str,
    settings: Mapping[str, Any],
) -> None:
    n_heads = file.require(f'{prefix}attention.head_count')[0]
    head_dim = file.require(f'{prefix}embedding_length')[0] // n_heads
    for name in (*_HEAD_DIMS, 'attention.value_length'):
        found = settings.get(name, head_dim)
        if found != head_dim:
            raise file.error(
                f'{prefix}{name} is {found}, and the heads have {head_dim} '
                'dimensions.',
                _ORIGINAL,
            )


def _model(file: _File) -> PreTrainedModel:
    path = Path(file.path)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            torch_dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
        )
    # It meets the file's inconsistencies wherever it happens to.
    except Exception as error:
        raise file.error(
            f'transformers could not load it ({error!r}).',
            _ORIGINAL,
        ) from error
    unused = sorted({*file.tensors} - get_gguf_hf_weights_map(model).keys())
    missing = sorted(info['missing_keys'])
    if unused or missing:
        raise file.error(
            f'transformers has no place for its tensors {unused} and found '
            f'none for {missing}.',
            _ORIGINAL,
        )
    return model


def _set_special_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    for name in ('bos_token_id', 'eos_token_id', 'pad_token_id'):
        token_id = getattr(tokenizer, name)
        setattr(model.config, name, token_id)
        setattr(model.generation_config, name, token_id)
    # transformers puts these two there, and knows neither of them.
    for name in ('_model_name_or_path', 'unk_token_id'):
        vars(model.config).pop(name, None)


def _tokenizer(file: _File) -> PreTrainedTokenizerFast:
    (kind, ) = file.require('tokenizer.ggml.model')
    if kind != 'gpt2':
        raise file.error(
            f'its tokenizer is of the kind {kind!r}; only byte-level BPE '
            "('gpt2') can be taken from a GGUF file.",
            _ORIGINAL,
        )
    special = {role: _token(file, key) for role, key in _SPECIAL_TOKENS.items()}
    # transformers can guess none of this from the tokens.
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level_bpe(file, special['bos_token']),
        clean_up_tokenization_spaces=False,
        model_input_names=['input_ids', 'attention_mask'],
        model_max_length=file.require(
            f'{file.get("general.architecture")}.context_length',
        )[0],
        chat_template=file.get('tokenizer.chat_template'),
        **special,
    )


def _token(file: _File, key: str) -> Optional[str]:
    tokens = file.require('tokenizer.ggml.tokens')
    token_id = file.get(f'tokenizer.ggml.{key}')
    if token_id is None:
        return None
    if token_id >= len(tokens):
        raise file.error(
            f'tokenizer.ggml.{key} is {token_id}, and there are {len(tokens)} '
            'tokens.',
            _ORIGINAL,
        )
    return tokens[token_id]


def _byte_level_bpe(file: _File, bos_token: Optional[str]) -> Tokenizer:
    words = _words(file)
    tokens = file.require('tokenizer.ggml.tokens')
    kinds = file.require('tokenizer.ggml.token_type')
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
    adds_bos = file.get('tokenizer.ggml.add_bos_token', words.adds_bos)
    if adds_bos and bos_token:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f'{bos_token} $A',
            pair=f'{bos_token} $A {bos_token}:1 $B:1',
            special_tokens=[(bos_token, tokens.index(bos_token))],
        )
    return tokenizer


def _words(file: _File) -> _Words:
    (name, ) = file.require('tokenizer.ggml.pre')
    if name not in _WORDS:
        raise file.error(
            f'tokenizer.ggml.pre is {name!r}; known are {", ".join(_WORDS)}.',
            _ORIGINAL,
        )
    if file.get('tokenizer.ggml.add_eos_token'):
        raise file.error(
            'tokenizer.ggml.add_eos_token is True, which is for embeddings.',
            'use a model that generates text.',
        )
    return _WORDS[name]


def _merging(file: _File, tokens: list[str], words: _Words) -> models.BPE:
    merges = file.require('tokenizer.ggml.merges')
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
            _ORIGINAL,
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
