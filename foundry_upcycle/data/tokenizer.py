"""A small byte-level BPE tokenizer, trained on the corpus at hand."""

from pathlib import Path
from typing import Any, Iterable

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    trainers,
)
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

__all__ = [
    'train_tokenizer',
]

_EOS = '<|endoftext|>'
_PAD = '<|padding|>'


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    folder: Path,
) -> PreTrainedTokenizerFast:
    """Trains a tokenizer and saves it where Foundry can name it.

    The folder is a value for ``tokenizer.name`` in a YAML. Padding has a token
    of its own: Foundry's in-context tasks mask every padding token, and would
    mask the ends of documents if the two were one. Every closing bracket is a
    token too: Foundry compares choices by their loss per token, which favors
    the longer of `))` and `)` + `]`.

    Args:
        texts: Training text; the result depends on nothing else.
        vocab_size: Tokens, the two special ones included.
        folder: Where to save it, in Hugging Face's format.

    Returns:
        The tokenizer.

    Raises:
        ValueError: The text is too small for the vocabulary.
    """
    tokenizer: Any = Tokenizer(models.BPE())  # its stubs lack the setters
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.Split(Regex(r'[)\]}]'), behavior='isolated'),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(  # pyright: ignore[reportGeneralTypeIssues]
        vocab_size=vocab_size,
        special_tokens=[_EOS, _PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(
            f'{vocab_size=} but the text yields ' +
            f'{tokenizer.get_vocab_size()} tokens. Give more text, or lower ' +
            'vocab_size.',
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_EOS,
        pad_token=_PAD,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
    return fast
