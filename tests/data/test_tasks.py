import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from foundry_upcycle.data.tasks import TASKS, write_tasks
from foundry_upcycle.data.tokenizer import train_tokenizer

_GAUNTLET = Path(__file__).parents[2] / 'eval_gauntlet'
_N_EXAMPLES = 6


def _text() -> list[str]:
    passage = 'The norm of a vector is the root of a sum of its squares. ' * 3
    return [
        f'{passage}Of matrix {n} we take the {word}.\n\nThat is all.'
        for n, word in enumerate(['trace', 'rank', 'kernel', 'image'] * 5)
    ]


def _code() -> list[str]:
    return [
        f'class Case{n}:\n' + ''.join(
            f'        value_{line} = function_{n}({line}, other[{n}])\n'
            for line in range(12)
        )
        for n in range(8)
    ]


def _documents() -> dict[str, list[str]]:
    return {
        'documentation': _text(),
        'headers': _code(),
        'python': _code(),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tasks(_documents(), tmp_path, _N_EXAMPLES, seed=17)
    return tmp_path


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_same_seed_same_tasks(folder: Path, tmp_path: Path):
    other = tmp_path / 'other'
    write_tasks(_documents(), other, _N_EXAMPLES, seed=17)
    for name in TASKS:
        path = f'{name}.jsonl'
        assert (folder / path).read_text() == (other / path).read_text()


def test_last_word_ends_its_passage(folder: Path):
    for example in _read(folder / 'last_word.jsonl'):
        assert example['context'].endswith('we take the')
        assert example['continuation'] in ('trace', 'rank', 'kernel', 'image')


def test_arithmetic_adds_up(folder: Path):
    for example in _read(folder / 'arithmetic.jsonl'):
        a, _, b, _ = example['query'].split()
        sums = [int(choice) == int(a) + int(b) for choice in example['choices']]
        assert sums.index(True) == example['gold'] and sum(sums) == 1


def test_arithmetic_cannot_be_told_by_size():
    _, make = TASKS['arithmetic']
    examples = list(make([], random.Random(17)))
    right, wrong = [], []
    for example in examples:
        numbers = list(map(int, example['choices']))
        right.append(numbers.pop(example['gold']))
        wrong += numbers
    assert (min(wrong), max(wrong)) == (min(right), max(right)) == (20, 98)
    # Who always takes the smallest, or the largest, scores as by chance.
    for extreme in (min, max):
        hits = sum(
            extreme(example['choices'], key=int) == example['choices'][
                example['gold']] for example in examples
        )
        assert hits / len(examples) == pytest.approx(0.25, abs=0.03)


def test_next_line_is_the_next_line(folder: Path):
    code = ''.join(_code())
    for example in _read(folder / 'next_line.jsonl'):
        answer = example['choices'][example['gold']]
        assert f"{example['query']}\n{answer}\n" in code


def test_brackets_close(folder: Path):
    for example in _read(folder / 'brackets.jsonl'):
        answer = example['choices'][example['gold']]
        assert answer.endswith('])')
        wrong = [c for c in example['choices'] if c != answer]
        assert all(
            len(w) == len(answer) and w[:-2] == answer[:-2] for w in wrong
        )


@pytest.mark.parametrize('task', ['next_line', 'brackets', 'arithmetic'])
def test_four_different_choices(folder: Path, task: str):
    for example in _read(folder / f'{task}.jsonl'):
        assert len(set(example['choices'])) == 4


def test_too_few_examples(tmp_path: Path):
    with pytest.raises(ValueError, match=r'last_word: n_examples=500 but the'):
        write_tasks(_documents(), tmp_path, 500, seed=17)


def test_gauntlet_names_every_task():
    config = yaml.safe_load((_GAUNTLET / 'quickstart.yaml').read_text())
    named = [
        benchmark['name']
        for category in config['eval_gauntlet']['categories']
        for benchmark in category['benchmarks']
    ]
    assert sorted(named) == sorted(TASKS)


@pytest.mark.parametrize('task', TASKS)
def test_foundry_reads_the_task(folder: Path, tmp_path: Path, task: str):
    from llmfoundry.eval.datasets import get_icl_task_dataloader

    tokenizer = train_tokenizer(_text() + _code(), 300, tmp_path / 'tok')
    tasks = yaml.safe_load((_GAUNTLET / 'quickstart_tasks.yaml').read_text())
    [config] = [t for t in tasks['icl_tasks'] if t['label'] == task]
    assert config['dataset_uri'] == f'{task}.jsonl'
    kwargs = {
        key: config[key]
        for key in ('max_seq_len', 'strip_dataset', 'continuation_delimiter')
        if key in config
    }
    loader = get_icl_task_dataloader(
        config['icl_task_type'],
        dataset_uri=str(folder / f'{task}.jsonl'),
        tokenizer=tokenizer,
        batch_size=4,
        has_categories=False,
        hf_loading_vars={},
        hf_parsing_map={},
        destination_path=str(tmp_path / f'{task}_copy.jsonl'),
        kwargs={
            **kwargs,
            'pad_tok_id': tokenizer.pad_token_id,
            'num_fewshot': 0,
        },
    )
    batch = next(iter(loader.dataloader))
    ids = batch['input_ids'][0][batch['attention_mask'][0]]
    text = tokenizer.decode(ids)
    # What the model sees is what stood in the document.
    example = _read(folder / f'{task}.jsonl')[0]
    if task == 'last_word':
        expected = f"{example['context']} {example['continuation']}"
    else:
        delimiter = '\n' if task == 'next_line' else ''
        expected = example['query'] + delimiter + example['choices'][0]
    assert expected.endswith(text) and len(text) > 8
