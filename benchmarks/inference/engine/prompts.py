"""Prompts of token ids: exact in length, new for each measurement, paired.

Two measurements of the same rate and run have the same prompts whatever model
they measure, so that models are compared on the same work. Another rate or run
has others, so that nothing is measured that a cache may still hold.

Token ids are random, or of real text, where a file of it is given: routers and
drafts of real weights do something else with noise than with text.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import numpy as np

from benchmarks.inference.engine.token_lines import TokenFile
from benchmarks.inference.errors import HarnessError

__all__ = ['random_prompts', 'seed_of', 'write_prompts']

# Below are what most tokenizers have for padding, start and end.
_FIRST_TOKEN = 3


def seed_of(
    study_seed: int,
    rate: Optional[float],
    run: int,
    purpose: str = 'load',
) -> int:
    """A seed of 32 bits, which is what NumPy's older generator takes.

    Args:
        study_seed: The study's.
        rate: Requests/s; None: unbounded.
        run: Index of the repetition.
        purpose: What is drawn with it.
    """
    # 0.30000000000000004 and 0.3 are the same rate of a grid.
    written = 'unbounded' if rate is None else f'{rate:.6g}'
    name = json.dumps([study_seed, written, run, purpose])
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], 'big')


def write_prompts(
    path: Path,
    n: int,
    length: int,
    vocab_size: int,
    seed: int,
    source: Optional[Path] = None,
) -> None:
    """Writes ``{"prompt": [token ids]}`` lines, as `vllm bench serve` reads.

    Args:
        path: A ``.jsonl`` file.
        n: Prompts.
        length: Tokens of each.
        vocab_size: Token ids are below it.
        seed: See ``seed_of``. The first prompts of a longer file are the same.
        source: A file of the same form, of which n lines are drawn and cut to
            their first tokens; None: token ids are random.
    """
    if path.suffix != '.jsonl':
        raise HarnessError(
            'path', str(path), 'not a .jsonl file, so vLLM refuses it.',
            'name it *.jsonl.'
        )
    if source is None:
        prompts = random_prompts(n, length, vocab_size, seed)
    else:
        prompts = _drawn_prompts(source, n, length, vocab_size, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w') as file:
        for prompt in prompts:
            file.write(json.dumps({'prompt': prompt}) + '\n')


def random_prompts(
    n: int,
    length: int,
    vocab_size: int,
    seed: int,
) -> list[list[int]]:
    """Token ids, uniform between 3 and the vocabulary's end."""
    if vocab_size <= _FIRST_TOKEN:
        raise HarnessError(
            'vocab_size', vocab_size, 'leaves no ordinary token.',
            f'choose more than {_FIRST_TOKEN}.'
        )
    generator = np.random.default_rng(seed)
    ids = generator.integers(_FIRST_TOKEN, vocab_size, size=(n, length))
    return ids.tolist()


def _drawn_prompts(
    source: Path,
    n: int,
    length: int,
    vocab_size: int,
    seed: int,
) -> Iterator[list[int]]:
    """Different lines of a file; all are checked, whichever are drawn."""
    file = TokenFile('workload.prompts', source, 'tokenize_prompts.py')
    prompts = list(_cut_prompts(file, length, vocab_size))
    if len(prompts) < n:
        raise file.error(
            f'it has {len(prompts)} prompts; a point needs {n}.',
            'write more, or lower workload.requests or workload.seconds.',
        )
    order = np.random.default_rng(seed).permutation(len(prompts))
    return (prompts[index].tolist() for index in order[:n])


def _cut_prompts(
    file: TokenFile,
    length: int,
    vocab_size: int,
) -> Iterator[np.ndarray]:
    for line in file.lines(vocab_size):
        if len(line.ids) < length:
            raise file.error(
                f'line {line.number} has {len(line.ids)} tokens, not '
                f'{length}.',
                'write longer prompts, or lower workload.input_tokens.',
            )
        yield line.ids[:length]
