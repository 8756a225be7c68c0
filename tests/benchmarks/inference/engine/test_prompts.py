"""Prompts: exact lengths, paired, and new for each measurement."""

import json
from pathlib import Path

import pytest

from benchmarks.inference.engine.prompts import (
    FIRST_TOKEN,
    seed_of,
    write_prompts,
)
from benchmarks.inference.errors import HarnessError


def read(path: Path) -> list[list[int]]:
    return [json.loads(line)['prompt'] for line in path.open()]


def write(folder: Path, n: int = 20, vocab_size: int = 50, seed: int = 5):
    path = folder / 'prompts' / f'{n} {seed}.jsonl'
    write_prompts(path, n, 30, vocab_size, seed)
    return read(path)


def test_lengths_and_range(tmp_path: Path):
    prompts = write(tmp_path)
    assert [len(prompt) for prompt in prompts] == [30] * 20
    ids = {token for prompt in prompts for token in prompt}
    # 600 tokens: each of the 47 is there.
    assert ids == set(range(FIRST_TOKEN, 50))


def test_the_same_for_each_model(tmp_path: Path):
    assert write(tmp_path) == write(tmp_path)
    # One with more requests has these first.
    assert write(tmp_path, n=30)[:20] == write(tmp_path)


def test_no_prompt_twice(tmp_path: Path):
    seeds = {
        seed_of(17, rate, run)
        for rate in (None, 0.1, 0.2, 0.3)
        for run in range(5)
    }
    assert len(seeds) == 20
    first, second = list(seeds)[:2]
    prompts = write(tmp_path, seed=first) + write(tmp_path, seed=second)
    assert len({tuple(prompt) for prompt in prompts}) == 40


def test_seeds():
    assert seed_of(17, 0.3, 0) == seed_of(17, 0.1 + 0.2, 0)
    assert 0 <= seed_of(17, None, 0) < 2**32
    assert seed_of(17, None, 0) != seed_of(18, None, 0)


@pytest.mark.parametrize(
    ('name', 'vocab_size', 'problem'),
    [
        ('p.json', 50, 'not a .jsonl file'),
        ('p.jsonl', 3, 'vocab_size=3: leaves no ordinary token'),
    ],
)
def test_errors(tmp_path: Path, name: str, vocab_size: int, problem: str):
    with pytest.raises(HarnessError, match=problem):
        write_prompts(tmp_path / name, 1, 1, vocab_size, 1)
