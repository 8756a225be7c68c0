"""``study/config.py``: what a study YAML may say."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_serving import (
    REMOVED,
    SHAPE,
    SHIPPED,
    STUDIES,
    STUDY,
    write_real_models,
    write_study,
)

from benchmarks.inference.errors import HarnessError
from benchmarks.inference.study.config import read_study
from benchmarks.inference.study.settings import (
    Engine,
    Rates,
    Routing,
    Shape,
    Workload,
)


def read(folder: Path, keys: str = '', value: Any = None):
    changes = [(keys, value)] if keys else []
    return read_study(write_study(folder, changes))


def test_everything_is_read(tmp_path: Path):
    study = read(tmp_path)
    assert (study.name, study.folder) == ('tiny', Path('runs/tiny'))
    assert (study.seed, study.runs) == (17, 2)
    assert study.load_format == 'dummy'
    assert study.routing == Routing('uniform')
    assert study.top_k == (1, 2)
    assert study.variants == ('base', )
    size, = study.sizes
    assert size.name == 'tiny'
    assert size.dense == Shape(**SHAPE)
    assert size.moe == (8, )
    assert size.workload == Workload(16, 4, 8, 1, seconds=0.0)
    assert size.rates == Rates(0.5, 0.5, 2.0, unbounded=True, fine=3)
    assert size.engine == Engine('bfloat16', 32, True, 1, max_num_seqs=2)


def test_a_size_changes_what_it_sets(tmp_path: Path):
    study = read(tmp_path, 'sizes tiny engine', {'tensor_parallel_size': 4})
    assert study.sizes[0].engine == Engine(
        'bfloat16', 32, True, 4, max_num_seqs=2
    )
    study = read(tmp_path, 'sizes tiny rates', {'stop': 3})
    assert study.sizes[0].rates.grid == (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
    study = read(tmp_path, 'sizes tiny workload', {'seconds': 60})
    assert study.sizes[0].workload == Workload(16, 4, 8, 1, 60.0)


def test_prompts_from_a_file(tmp_path: Path):
    path = tmp_path / 'prompts.jsonl'
    path.write_text('{"prompt": [5]}')
    study = read(tmp_path, 'workload prompts', str(path))
    assert study.sizes[0].workload.prompts == path


def test_several_numbers_of_experts(tmp_path: Path):
    study = read(tmp_path, 'sizes tiny moe experts', [4, 8, 16])
    assert study.sizes[0].moe == (4, 8, 16)


def test_kinds_of_routing(tmp_path: Path):
    zipf = read(tmp_path, 'routing', {'kind': 'zipf', 'exponent': 1})
    assert zipf.routing == Routing('zipf', exponent=1.0)
    shares = tmp_path / 'shares.json'
    shares.write_text('{"shares": [[1.0]]}')
    recorded = {'kind': 'recorded', 'file': str(shares)}
    study = read(tmp_path, 'routing', recorded)
    assert study.routing == Routing('recorded', file=shares)


def test_real_weights(tmp_path: Path):
    content = copy.deepcopy(STUDY)
    del content['routing']
    content['load_format'] = 'real'
    content['sizes']['tiny'] = {
        'dense': {
            'folder': 'a',
        },
        'moe': {
            'folder': 'b',
        },
    }
    path = tmp_path / 'study.yaml'
    path.write_text(yaml.safe_dump(content))
    study = read_study(path)
    assert study.routing is None
    assert (study.sizes[0].dense, study.sizes[0].moe) == (Path('a'), Path('b'))
    content['routing'] = {'kind': 'uniform'}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(
            HarnessError,
            match=r"^routing=\{'kind': 'uniform'\}: real weights have routers of "
            'their own. Fix: remove it, or set load_format: dummy.$',
    ):
        read_study(path)


MISSING = 'it is missing, empty or of another type. Fix: set it to a '
NO_NAME = 'it cannot name anything. Fix: use letters'
LOW = 'it is out of range. Fix: set it to a number '


@pytest.mark.parametrize(
    ('keys', 'value', 'message'),
    [
        ('speed', 3, 'speed=3: there is no such setting. Fix: remove it; '),
        ('name', REMOVED, f'name=None: {MISSING}str'),
        ('name', 'a b', f"name='a b': {NO_NAME}"),
        ('folder', 3, f'folder=3: {MISSING}str'),
        ('seed', True, f'seed=True: {MISSING}int'),
        ('seed', -1, f'seed=-1: {LOW}of at least 0.'),
        ('runs', 0, f'runs=0: {LOW}of at least 1.'),
        ('runs', 1.5, f'runs=1.5: {MISSING}int'),
        (
            'load_format',
            'gguf',
            "load_format='gguf': there is no such choice. Fix: set it to "
            'dummy or real.',
        ),
        (
            'routing kind',
            'even',
            "routing.kind='even': there is no such choice. Fix: set it to "
            'uniform or zipf or recorded.',
        ),
        ('routing', REMOVED, f'routing.kind=None: {MISSING}str'),
        ('routing exponent', 1.0, 'routing.exponent=1.0: there is no such'),
        (
            'routing', {
                'kind': 'zipf',
            }, f'routing.exponent=None: {MISSING}float'
        ),
        (
            'routing', {
                'kind': 'zipf',
                'exponent': 0,
            }, f'routing.exponent=0: {LOW}above 0.'
        ),
        (
            'routing',
            {
                'kind': 'recorded',
                'file': 'gone.json',
            },
            "routing.file='gone.json': there is no such file. Fix: name one "
            'that holds {"shares"',
        ),
        (
            'workload prompts',
            'gone.jsonl',
            "workload.prompts='gone.jsonl': there is no such file. Fix: name "
            'one that tokenize_prompts.py wrote',
        ),
        (
            'engine max_num_seqs',
            REMOVED,
            'engine.max_num_seqs=None: the unbounded rate is measured in '
            'whole batches of so many. Fix: set it, or set rates.unbounded: ',
        ),
        (
            'workload greedy',
            True,
            'workload.greedy=True: the likeliest tokens of dummy weights are '
            'a few, again and again. Fix: remove it',
        ),
        ('workload', 3, f'workload=3: {MISSING}dict'),
        (
            'workload warmup_requests',
            0,
            f'workload.warmup_requests=0: {LOW}of at least 1.',
        ),
        ('workload requests', 1, f'workload.requests=1: {LOW}of at least 2.'),
        ('workload batch', 1, 'workload.batch=1: there is no such setting.'),
        ('rates step', 0, f'rates.step=0: {LOW}above 0.'),
        ('rates step', float('inf'), f'rates.step=inf: {LOW}above 0.'),
        ('rates start', '1', f"rates.start='1': {MISSING}float"),
        (
            'rates stop',
            0.25,
            'rates.stop=0.25: it is below start=0.5. Fix: set it to the '
            'highest rate',
        ),
        ('rates fine', 0, f'rates.fine=0: {LOW}of at least 1.'),
        ('rates unbounded', 1, f'rates.unbounded=1: {MISSING}bool'),
        (
            'engine dtype',
            'bf16',
            "engine.dtype='bf16': there is no such choice. Fix: set it to "
            'bfloat16 or float16 or float32.',
        ),
        (
            'engine max_model_len',
            19,
            'engine.max_model_len=19: a request has 20 tokens with its '
            'answer. Fix: raise it',
        ),
        (
            'engine enforce_eager',
            REMOVED,
            f'engine.enforce_eager=None: {MISSING}bool',
        ),
        ('engine kv_cache_gib', 0, f'engine.kv_cache_gib=0: {LOW}above 0.'),
        ('engine swap', 1, 'engine.swap=1: there is no such setting.'),
        ('top_k', [], f'top_k=[]: {MISSING}list'),
        ('top_k', [0], 'top_k=0: it is not a whole number from 1 on.'),
        ('top_k', [1, 1], 'top_k=1: it stands there twice. Fix: write it once'),
        (
            'top_k',
            [9],
            'top_k=9: sizes.tiny has 8 experts at the most. Fix: lower it',
        ),
        ('variants', 'base', f"variants='base': {MISSING}list"),
        ('variants', [3], f'variants=3: {NO_NAME}'),
        ('sizes', {}, f'sizes={{}}: {MISSING}dict'),
        ('sizes', {
            7: {},
        }, f'sizes=7: {NO_NAME}'),
        ('sizes tiny', None, 'sizes.tiny=None: it is not a mapping of keys'),
        ('sizes tiny paper', 1, 'sizes.tiny.paper=1: there is no such setting'),
        (
            'sizes tiny dense',
            {
                'folder': 'a',
            },
            f'sizes.tiny.dense.d_model=None: {MISSING}int',
        ),
        (
            'sizes tiny dense n_heads',
            5,
            'sizes.tiny.dense.n_heads=5: it does not divide d_model=64. Fix: ',
        ),
        (
            'sizes tiny dense kv_n_heads',
            3,
            'sizes.tiny.dense.kv_n_heads=3: it does not divide n_heads=4.',
        ),
        (
            'sizes tiny moe experts',
            [8, 8],
            'sizes.tiny.moe.experts=8: it stands there twice.',
        ),
        (
            'sizes tiny moe',
            {
                'folder': 'b',
            },
            f'sizes.tiny.moe.experts=None: {MISSING}list',
        ),
        (
            'sizes tiny engine',
            {
                'dtype': 8,
            },
            f'sizes.tiny.engine.dtype=8: {MISSING}str',
        ),
    ],
)
def test_bad_settings(tmp_path: Path, keys: str, value: Any, message: str):
    with pytest.raises(HarnessError) as error:
        read(tmp_path, keys, value)
    assert str(error.value).startswith(message)


def test_file_that_is_no_study(tmp_path: Path):
    path = tmp_path / 'study.yaml'
    with pytest.raises(HarnessError, match=r"can't be read \(.*No such file"):
        read_study(path)
    path.write_text('a: [1')
    with pytest.raises(HarnessError, match=r"it can't be read \("):
        read_study(path)
    path.write_text('- a')
    with pytest.raises(HarnessError, match='it holds no mapping'):
        read_study(path)


def test_a_key_that_stands_there_twice(tmp_path: Path):
    path = tmp_path / 'study.yaml'
    path.write_text('name: a\nrates: {stop: 1, stop: 2}\n')
    with pytest.raises(HarnessError, match="'stop' stands there twice"):
        read_study(path)


@pytest.mark.parametrize('name', SHIPPED)
def test_shipped_studies_can_be_read(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    write_real_models(tmp_path)
    monkeypatch.chdir(tmp_path)
    study = read_study(STUDIES / f'{name}.yaml')
    assert study.name == name
    is_real = study.load_format == 'real'
    folder = f'{name}/serving' if is_real else f'serving_{name}'
    assert study.folder == Path('runs') / folder
