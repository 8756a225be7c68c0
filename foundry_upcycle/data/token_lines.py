"""Held-out tokens as lines, for ``quality.texts`` of a serving study.

``python -m foundry_upcycle.data.token_lines MODEL TEXTS OUT.jsonl`` writes
``{"prompt": [token ids]}`` for each sequence of an MDS folder (or of text files,
in the model's own tokens), as a run evaluates them. The serving harness, which
imports nothing of this package, reads it.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Optional, Sequence

from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.conversion.texts import token_batches
from foundry_upcycle.errors import CheckpointError, ConfigError
from foundry_upcycle.files import write_whole

__all__ = ['main', 'write_token_lines']


def write_token_lines(model: str, texts: str, out: Path, n_tokens: int) -> int:
    """Writes sequences of two tokens or more.

    Args:
        model: Checkpoint whose tokens they are.
        texts: As ``token_batches`` takes it.
        out: A ``.jsonl`` file; replaced if it is there.
        n_tokens: Tokens after which to stop.

    Returns:
        The number of sequences.

    Raises:
        CheckpointError: The model or the texts can't be read.
    """
    batches = token_batches(open_checkpoint(model), texts, n_tokens)
    lines = [
        json.dumps({'prompt': ids}) + '\n'
        for batch_BT in batches
        for ids in batch_BT.tolist()
        if len(ids) > 1
    ]
    write_whole(out, ''.join(lines))
    return len(lines)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """See the module's docstring; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('model')
    parser.add_argument('texts')
    parser.add_argument('out', type=Path)
    parser.add_argument('--tokens', type=int, default=32768)
    args = parser.parse_args(arguments)
    try:
        n = write_token_lines(args.model, args.texts, args.out, args.tokens)
    except (CheckpointError, ConfigError) as error:
        print(f'token_lines: {error}', file=sys.stderr)
        return 1
    print(f'{n} sequences')
    return 0


if __name__ == '__main__':
    sys.exit(main())
