import json
import math
from pathlib import Path

import pytest

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.planning.advice.costs import Interval
from foundry_upcycle.study.serving_speed import measured_speed, paper_speed


@pytest.mark.parametrize(
    'n_params,top_k,drop',
    # As the paper says it.
    [
        (436e6, 1, 0.42),
        (436e6, 2, 0.45),
        (1.42e9, 1, 0.33),
        (1.42e9, 2, 0.45),
        (8e9, 1, 0.41),
        (8e9, 2, 0.49),
    ],
)
def test_the_papers_drops(n_params: float, top_k: int, drop: float):
    speed = paper_speed(n_params, 8, top_k)
    assert 1 - 1 / speed.ratio.value == pytest.approx(drop, abs=0.005)
    assert speed.ratio.low <= speed.ratio.value <= speed.ratio.high
    assert 'beyond' not in speed.source


def test_between_its_sizes_and_beyond():
    # On four devices: 32,680 are 8,170 of one.
    assert paper_speed(8e9, 8, 2).dense_tokens_per_s == pytest.approx(8170)
    between = paper_speed(math.sqrt(436e6 * 1.42e9), 8, 2)
    assert between.dense_tokens_per_s == pytest.approx(
        math.sqrt(58_140 * 46_740),
    )
    beyond = paper_speed(16e9, 8, 2)
    assert beyond.dense_tokens_per_s == pytest.approx(8170 / 2)
    assert beyond.ratio == paper_speed(8e9, 8, 2).ratio
    assert 'beyond its sizes of 4.36e+08 to 8e+09' in beyond.source


def test_mixtures_that_the_paper_did_not_serve():
    with pytest.raises(ConfigError, match=r'--top-k=\(16, 2\): .*--serving'):
        paper_speed(436e6, 16, 2)
    with pytest.raises(ConfigError, match=r'--top-k=\(8, 4\): '):
        paper_speed(436e6, 8, 4)


@pytest.fixture
def path(tmp_path: Path) -> str:

    def model(experts: int, top_k: int, mean: float) -> dict:
        return {
            'size': 'mine',
            'experts': experts,
            'top_k': top_k,
            'max_throughput_tokens_per_s': {
                'mean': mean,
                'low': 0.9 * mean,
                'high': 1.2 * mean,
            },
        }

    content = {
        'format': 'foundry_upcycle/serving/1',
        'labels': ['CPU'],
        'models': [model(1, 1, 1000.0), model(8, 2, 400.0)],
    }
    path = tmp_path / 'serving.json'
    path.write_text(json.dumps(content))
    return str(path)


def test_a_measured_one(path: str):
    speed = measured_speed(path, 'mine', 8, 2)
    assert speed.dense_tokens_per_s == 1000
    assert speed.ratio == Interval(
        2.5,
        pytest.approx(900 / 480),
        pytest.approx(1200 / 360),
    )
    assert speed.source == f'{path}, mine (CPU)'


@pytest.mark.parametrize(
    'size,n_experts,top_k',
    [('other', 8, 2), (None, 8, 2), ('mine', 8, 1), ('mine', 4, 2)],
)
def test_results_that_lack_the_model(path: str, size, n_experts, top_k):
    with pytest.raises(
            ConfigError,
            match='--serving-size=.*There are: mine with 1 experts, top-1, '
            'mine with 8 experts, top-2.',
    ):
        measured_speed(path, size, n_experts, top_k)
