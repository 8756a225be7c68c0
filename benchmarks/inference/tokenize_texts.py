r"""Turns held-out texts into token ids, for ``quality.texts`` of a study.

Usage: .venv-vllm/bin/python -m benchmarks.inference.tokenize_texts \
    FOLDER OUT.jsonl TEXT_FILE ... [--documents N]

A TEXT_FILE is a document, or, if it ends in ``.jsonl``, a document a line:
``{"text": ...}``.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Optional, Sequence

from tokenizers import Tokenizer

from benchmarks.inference.engine.texts import vocabulary_digest

__all__ = ['main']


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Writes a line for each document, see engine/texts.py.

    Documents of less than two tokens are left out.
    """
    args = _parser().parse_args(arguments)
    vocabulary = vocabulary_digest(args.folder)
    if vocabulary is None:
        sys.exit(
            f'{args.folder}: it has no tokenizer.json. Fix: name a model '
            'folder that has one.'
        )
    tokenizer = Tokenizer.from_file(str(args.folder / 'tokenizer.json'))
    # A tokenizer may have been saved with settings of its training.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts = (text for path in args.texts for text in _documents(path))
    lines = list(islice(_lines(tokenizer, texts, vocabulary), args.documents))
    if not lines:
        sys.exit('no text has two tokens. Fix: name longer texts.')
    args.out.write_text(''.join(lines))
    print(f'{len(lines)} documents')


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.inference.tokenize_texts',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('folder', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('texts', type=Path, nargs='+')
    parser.add_argument(
        '--documents',
        type=int,
        help='the first so many; by default all',
    )
    return parser


def _documents(path: Path) -> Iterator[str]:
    text = path.read_text(encoding='utf-8')
    if path.suffix != '.jsonl':
        yield text
        return
    for number, line in enumerate(text.splitlines(), 1):
        try:
            yield json.loads(line)['text']
        except (ValueError, KeyError, TypeError) as error:
            sys.exit(
                f'{path}: line {number} is no document: {error!r}. Fix: write '
                '{"text": ...}.'
            )


def _lines(
    tokenizer: Tokenizer,
    texts: Iterator[str],
    vocabulary: str,
) -> Iterator[str]:
    for text in texts:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        if len(encoding.ids) < 2:
            continue
        # Where a token ends within a character, its bytes count as before it.
        n_bytes = len(text[encoding.offsets[0][1]:].encode())
        content = {
            'prompt': encoding.ids,
            'bytes': n_bytes,
            'vocabulary': vocabulary,
        }
        yield json.dumps(content) + '\n'


if __name__ == '__main__':
    main()
