"""Prompts: exact lengths, paired, and new for each measurement."""

import json
from pathlib import Path
from typing import Optional

import pytest

from benchmarks.inference.engine.prompts import (
    random_prompts,
    seed_of,
    write_prompts,
)
from benchmarks.inference.errors import HarnessError


def read(path: Path) -> list[list[int]]:
    return [json.loads(line)['prompt'] for line in path.open()]


def write(
    folder: Path,
    n: int = 20,
    seed: int = 5,
    source: Optional[Path] = None,
) -> list[list[int]]:
    path = folder / 'prompts' / f'{n} {seed}.jsonl'
    write_prompts(path, n, 30, 50, seed, source)
    return read(path)


def test_lengths_and_range(tmp_path: Path):
    prompts = write(tmp_path)
    assert [len(prompt) for prompt in prompts] == [30] * 20
    ids = {token for prompt in prompts for token in prompt}
    # 600 tokens: each of the 47 is there.
    assert ids == set(range(3, 50))


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
    assert seed_of(17, None, 0) != seed_of(17, None, 0, 'warm-up')


def write_source(folder: Path, lines: list[str]) -> Path:
    path = folder / 'text.jsonl'
    path.write_text('\n'.join(lines) + '\n')
    return path


def test_prompts_of_text(tmp_path: Path):
    # Line k: 35 tokens of k, k + 1, ...
    source = write_source(
        tmp_path,
        [json.dumps({'prompt': list(range(k, k + 35))}) for k in range(12)],
    )
    prompts = write(tmp_path, 10, source=source)
    assert all(
        prompt == list(range(prompt[0], prompt[0] + 30)) for prompt in prompts
    )
    drawn = [prompt[0] for prompt in prompts]
    assert len(set(drawn)) == 10
    # In no order of the file, by the seed alone, and paired.
    assert drawn != sorted(drawn)
    assert write(tmp_path, 4, source=source) == prompts[:4]
    assert write(tmp_path, 10, seed=6, source=source) != prompts


@pytest.mark.parametrize(
    ('line', 'problem'),
    [
        ('{"prompt": [1, 2]}', 'it has 1 prompts; a point needs 2'),
        ('{"prompt": [1]}', 'line 1 has 1 tokens, not 2'),
        ('{"prompt": [1, 2]}\n{"prompt": [9, 7]}', 'line 2 has token 9; .* 9'),
        ('{"prompt": [1, -2]}', 'line 1 has something else than token ids'),
        ('{"prompt": "a text"}', 'line 1 has something else than token ids'),
        ('{"prompt": [1, 0.5]}', 'line 1 has something else than token ids'),
        ('{"prompt": []}', 'line 1 has something else than token ids'),
        ('{"prompt": [1, [2]]}', 'line 1 is no prompt: ValueError'),
        ('{"text": [1, 2]}', 'line 1 is no prompt: KeyError'),
        ('[1, 2]', 'line 1 is no prompt: TypeError'),
        ('1, 2', 'line 1 is no prompt: JSONDecodeError'),
    ],
)
def test_text_that_is_none(tmp_path: Path, line: str, problem: str):
    source = write_source(tmp_path, [line])
    with pytest.raises(HarnessError, match=rf'workload.prompts=.*{problem}'):
        write_prompts(tmp_path / 'p.jsonl', 2, 2, 9, 1, source)


def test_text_that_is_missing(tmp_path: Path):
    source = tmp_path / 'text.jsonl'
    with pytest.raises(HarnessError, match="can't be read: FileNotFoundError"):
        write_prompts(tmp_path / 'p.jsonl', 2, 2, 9, 1, source)


def test_not_a_jsonl_file(tmp_path: Path):
    with pytest.raises(HarnessError, match='not a .jsonl file'):
        write_prompts(tmp_path / 'p.json', 1, 1, 50, 1)


def test_a_vocabulary_without_words():
    problem = 'vocab_size=3: leaves no ordinary token'
    with pytest.raises(HarnessError, match=problem):
        random_prompts(1, 1, 3, 1)
