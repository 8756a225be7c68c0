import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from study.report.synthetic import plain_study

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.study.report.serving import (
    Cost,
    Throughput,
    arm_costs,
    read_serving,
)
from foundry_upcycle.study.report.summary import Summary


def throughput(mean: float, low: float, high: float) -> dict[str, float]:
    return {'mean': mean, 'low': low, 'high': high}


CONTENT = {
    'format':
    'foundry_upcycle/serving/1',
    'labels': ['CPU', 'dummy weights'],
    'models': [
        {
            'size': 'small',
            'experts': 1,
            'top_k': 1,
            'max_throughput_tokens_per_s': throughput(1000, 900, 1200),
        },
        {
            'size': 'small',
            'experts': 8,
            'top_k': 2,
            'max_throughput_tokens_per_s': throughput(500, 400, 600),
        },
    ],
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / 'serving.json'


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def changed(keys: tuple[Any, ...], value: Any) -> Any:
    content: Any = copy.deepcopy(CONTENT)
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    if value is KeyError:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    return content


def test_read(path: Path):
    serving = read_serving(write(path, CONTENT))
    assert serving.labels == ('CPU', 'dummy weights')
    assert serving.models == {
        ('small', 1, 1): Throughput(1000.0, 900.0, 1200.0),
        ('small', 8, 2): Throughput(500.0, 400.0, 600.0),
    }


def test_cost_is_relative_to_the_dense_model(path: Path):
    serving = read_serving(write(path, CONTENT))
    # 1000 / 500; 900 / 600; 1200 / 400.
    assert serving.cost('small', 8, 2) == Cost(2.0, 1.5, 3.0)
    assert serving.cost('small', 1, 1) == Cost(1.0, 1.0, 1.0)
    assert serving.cost('small', 8, 1) is None
    assert serving.cost('large', 8, 2) is None


def test_no_cost_without_the_dense_model(path: Path):
    content = {**CONTENT, 'models': CONTENT['models'][1:]}
    serving = read_serving(write(path, content))
    assert serving.cost('small', 8, 2) is None


def test_costs_of_arms(path: Path, tmp_path: Path):
    summary = Summary(plain_study(tmp_path / 'study'))
    serving = read_serving(write(path, CONTENT))
    assert arm_costs(summary, summary.models[0], serving) == {
        'cpt': Cost(1.0, 1.0, 1.0),
        'upcycled': Cost(2.0, 1.5, 3.0),
    }


MODEL = ('models', 1)
RATE = (*MODEL, 'max_throughput_tokens_per_s')


@pytest.mark.parametrize(
    ('keys', 'value', 'message'),
    [
        (('format', ), KeyError, 'format=None: it is missing'),
        (
            ('format', ),
            'foundry_upcycle/serving/2',
            "format='foundry_upcycle/serving/2': this version does not know "
            'it. Fix: give a file of format foundry_upcycle/serving/1',
        ),
        (('other', ), 1, 'other=1: there is no such key. Fix: remove it'),
        (('labels', ), 'CPU', "labels='CPU': it is missing, or of another"),
        (('labels', ), [' '], "labels=' ': it is not a text"),
        (('labels', ), [3], 'labels=3: it is not a text'),
        (('models', ), {}, 'models={}: it is missing, or of another type'),
        (MODEL, 'x', "models[1]='x': it is not an object"),
        ((*MODEL, 'other'), 1, 'models[1].other=1: there is no such key'),
        ((*MODEL, 'size'), KeyError, 'models[1].size=None: it is missing'),
        ((*MODEL, 'size'), 430, 'models[1].size=430: it is missing, or of'),
        ((*MODEL, 'experts'), True, 'models[1].experts=True: it is missing'),
        ((*MODEL, 'experts'), 0, 'models[1].experts=0: it is less than 1'),
        ((*MODEL, 'top_k'), 1.5, 'models[1].top_k=1.5: it is missing, or'),
        (
            (*MODEL, 'top_k'),
            9,
            'models[1].top_k=9: there are 8 experts. Fix: write how many',
        ),
        (
            MODEL, CONTENT['models'][0],
            "models[1].size='small': it stands there"
        ),
        (RATE, 500, 'models[1].max_throughput_tokens_per_s=500: it is missing'),
        (
            (*RATE, 'low'),
            KeyError,
            'models[1].max_throughput_tokens_per_s.low=None: it is missing',
        ),
        ((*RATE, 'p99'), 1, 'tokens_per_s.p99=1: there is no such key'),
        ((*RATE, 'low'), 0, 'tokens_per_s.low=0: no model serves so many'),
        (
            (*RATE, 'high'),
            float('inf'),
            'tokens_per_s.high=inf: no model serves so many',
        ),
        (
            (*RATE, 'mean'),
            float('nan'),
            'tokens_per_s.mean=nan: no model serves so many',
        ),
        (
            (*RATE, 'mean'),
            700,
            'tokens_per_s.mean=700.0: it is not from low (400) to high (600)',
        ),
    ],
)
def test_what_cannot_be_used_is_refused(
    path: Path,
    keys: tuple[Any, ...],
    value: Any,
    message: str,
):
    write(path, changed(keys, value))
    with pytest.raises(ConfigError, match=re.escape(f'{path}: ')) as error:
        read_serving(path)
    assert message in str(error.value)


def test_what_is_no_json_is_refused(path: Path):
    with pytest.raises(ConfigError, match='serving=.*there is no such file'):
        read_serving(path)
    for text in ('{', 100_000 * '[', f'[1{400 * "0"}]'):
        path.write_text(text)
        with pytest.raises(ConfigError, match='serving=.*serving.json'):
            read_serving(path)
    path.write_text('[]')
    with pytest.raises(ConfigError, match='it holds a list, not an object'):
        read_serving(path)
