"""Prompts of token ids: exact in length, new for each measurement, paired.

Two measurements of the same rate and run have the same prompts whatever model
they measure, so that models are compared on the same work. Another rate or run
has others, so that nothing is measured that a cache may still hold.
"""

import hashlib
import json
from pathlib import Path
from typing import Optional

import numpy as np

from benchmarks.inference.errors import HarnessError

__all__ = ['FIRST_TOKEN', 'seed_of', 'write_prompts']

# Below are what most tokenizers have for padding, start and end.
FIRST_TOKEN = 3


def seed_of(study_seed: int, rate: Optional[float], run: int) -> int:
    """A seed of 32 bits, which is what NumPy's older generator takes.

    Args:
        study_seed: The study's.
        rate: Requests/s; None: unbounded.
        run: Index of the repetition.
    """
    # 0.30000000000000004 and 0.3 are the same rate of a grid.
    written = 'unbounded' if rate is None else f'{rate:.6g}'
    name = json.dumps([study_seed, written, run])
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], 'big')


def write_prompts(
    path: Path,
    n: int,
    length: int,
    vocab_size: int,
    seed: int,
) -> None:
    """Writes ``{"prompt": [token ids]}`` lines, as `vllm bench serve` reads.

    Args:
        path: A ``.jsonl`` file.
        n: Prompts.
        length: Tokens of each.
        vocab_size: Token ids are uniform between ``FIRST_TOKEN`` and this.
        seed: See ``seed_of``. The first prompts of a longer file are the same.
    """
    if path.suffix != '.jsonl':
        raise HarnessError(
            'path', str(path), 'not a .jsonl file, so vLLM refuses it.',
            'name it *.jsonl.'
        )
    if vocab_size <= FIRST_TOKEN:
        raise HarnessError(
            'vocab_size', vocab_size, 'leaves no ordinary token.',
            f'choose more than {FIRST_TOKEN}.'
        )
    generator = np.random.default_rng(seed)
    ids = generator.integers(FIRST_TOKEN, vocab_size, size=(n, length))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w') as file:
        for row in ids.tolist():
            file.write(json.dumps({'prompt': row}) + '\n')
