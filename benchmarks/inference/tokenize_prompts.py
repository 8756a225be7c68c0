r"""Cuts texts into prompts of token ids, for ``workload.prompts`` of a study.

Usage: .venv-vllm/bin/python benchmarks/inference/tokenize_prompts.py \
    FOLDER LENGTH OUT.jsonl TEXT_FILE ...
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

__all__ = ['main']


def main(folder: str, length: str, out: str, *texts: str) -> None:
    """Writes ``{"prompt": [token ids]}`` lines.

    Texts are cut one after another, without overlap and without what is left
    at the end of each. A piece that was there before is left out.

    Args:
        folder: Of a model, with its tokenizer.
        length: Tokens of each prompt.
        out: A ``.jsonl`` file.
        texts: Files of text.
    """
    path = Path(folder) / 'tokenizer.json'
    if not path.is_file():
        sys.exit(
            f'{path}: there is no tokenizer. Fix: name a model folder '
            'that has one.'
        )
    tokenizer = Tokenizer.from_file(str(path))
    # A tokenizer may have been saved with settings of its training.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # As a dict, in their order: each once.
    prompts = dict.fromkeys(
        piece for text in texts
        for piece in _pieces(tokenizer, Path(text), int(length))
    )
    if not prompts:
        sys.exit(
            f'LENGTH={length}: no text has so many tokens. Fix: name '
            'longer texts, or lower it.'
        )
    with open(out, 'w') as file:
        for prompt in prompts:
            file.write(json.dumps({'prompt': prompt}) + '\n')
    print(f'{len(prompts)} prompts of {length} tokens')


def _pieces(
    tokenizer: Tokenizer,
    text: Path,
    length: int,
) -> Iterator[tuple[int, ...]]:
    ids = tokenizer.encode(text.read_text(), add_special_tokens=False).ids
    for end in range(length, len(ids) + 1, length):
        yield tuple(ids[end - length:end])


if __name__ == '__main__':
    main(*sys.argv[1:])
