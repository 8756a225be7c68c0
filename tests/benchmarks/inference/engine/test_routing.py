"""Simulated routing: what is drawn is what was asked."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.inference.engine.plugin.simulated_routing.tables import (
    UNITS,
    count_experts,
    draw_table,
)
from benchmarks.inference.engine.routing import (
    expert_shares,
    inclusion,
    read_observed,
    routing_environment,
    routing_label,
    write_routing,
)
from benchmarks.inference.errors import HarnessError

ROWS = 1 << 16


def assert_distinct(table_RK: np.ndarray):
    sorted_RK = np.sort(table_RK, axis=1)
    assert (sorted_RK[:, 1:] > sorted_RK[:, :-1]).all()


@pytest.mark.parametrize('top_k', [1, 2, 4, 8])
@pytest.mark.parametrize(
    'shares',
    [
        [1 / 8] * 8,
        # Zipf's law.
        (1 / np.arange(1, 9)) / (1 / np.arange(1, 9)).sum(),
        # Above 1 / K for K of 2 and more.
        [0.65, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05],
    ],
    ids=['uniform', 'zipf', 'one that is hot'],
)
def test_tables_have_the_asked_shares(top_k: int, shares: list[float]):
    units_E = np.array(inclusion(shares, top_k))
    assert units_E.sum() == top_k * UNITS
    assert units_E.max() <= UNITS
    table_RK = draw_table(units_E, top_k, seed=3, layer=1)
    assert table_RK.shape == (ROWS, top_k)
    assert table_RK.dtype == np.int32
    assert_distinct(table_RK)
    p_E = units_E / UNITS
    found_E = count_experts(table_RK, 8, ROWS) / ROWS
    # Of independent tokens; five standard deviations.
    deviation_E = np.sqrt(p_E * (1 - p_E) / ROWS)
    assert (abs(found_E - p_E) <= 5 * deviation_E + 1e-9).all()


def test_pairs_are_those_of_independent_draws():
    # Uniform: each of the 28 pairs equally often.
    table_RK = np.sort(draw_table(inclusion([1 / 8] * 8, 2), 2, 3, 0), axis=1)
    pairs = np.bincount(table_RK[:, 0] * 8 + table_RK[:, 1])
    pairs = pairs[pairs > 0]
    assert len(pairs) == 28
    expected = ROWS / 28
    # 27 degrees of freedom: above 60 with a probability of 0.0003.
    assert ((pairs - expected)**2 / expected).sum() < 60


def test_how_many_experts_a_batch_reaches():
    # 8 (1 - (1 - K / 8) ** B) of tokens that are independent.
    table_RK = draw_table(inclusion([1 / 8] * 8, 1), 1, 3, 0)
    batches = table_RK.reshape(-1, 16)
    reached = np.mean([len(set(batch)) for batch in batches.tolist()])
    assert reached == pytest.approx(8 * (1 - (7 / 8)**16), abs=0.05)


def test_tables_differ_by_layer_and_seed_only():
    units = inclusion([1 / 8] * 8, 2)
    table = draw_table(units, 2, 3, 0)
    assert (draw_table(units, 2, 3, 0) == table).all()
    assert (draw_table(units, 2, 3, 1) != table).any()
    assert (draw_table(units, 2, 4, 0) != table).any()


def test_a_certain_expert_is_in_each_row():
    units = inclusion([0.5, 0.3, 0.1, 0.1], 2)
    assert units[0] == UNITS
    table_RK = draw_table(units, 2, 0, 0)
    assert (table_RK == 0).any(axis=1).all()


def test_shares_above_a_kth_are_cut():
    # 2 * (0.7, 0.2, 0.1): the first in all tokens, the rest as 2 to 1.
    units = np.array(inclusion([0.7, 0.2, 0.1], 2)) / UNITS
    assert units == pytest.approx([1, 2 / 3, 1 / 3], abs=1e-5)
    # The second then is above 1 as well.
    units = np.array(inclusion([0.8, 0.15, 0.03, 0.02], 3)) / UNITS
    assert units == pytest.approx([1, 1, 0.6, 0.4], abs=1e-5)


def test_too_few_experts_are_used():
    with pytest.raises(HarnessError, match='fewer than 2 experts are used'):
        inclusion([1.0, 0.0, 0.0], 2)


def test_count_experts():
    table = np.array([[0, 1], [2, 0], [1, 2]], np.int32)
    # Twice the table, and its first row.
    assert count_experts(table, 4, 7).tolist() == [5, 5, 4, 0]


def test_zipf_shares():
    shares = expert_shares({'kind': 'zipf', 'exponent': 1.2}, 6, 8, 5)
    weights = np.arange(1, 9)**-1.2
    for row in shares:
        assert sorted(row) == pytest.approx(sorted(weights / weights.sum()))
    # Not the same expert is hot in all layers.
    assert len(set(shares.argmax(axis=1))) > 1
    again = expert_shares({'kind': 'zipf', 'exponent': 1.2}, 6, 8, 5)
    assert (shares == again).all()


def test_uniform_shares():
    assert (expert_shares({'kind': 'uniform'}, 2, 4, 5) == 0.25).all()


def record(folder: Path, content: Any) -> dict[str, str]:
    path = folder / 'recorded.json'
    path.write_text(json.dumps(content))
    return {'kind': 'recorded', 'file': str(path)}


def test_recorded_shares(tmp_path: Path):
    routing = record(tmp_path, {'shares': [[3, 1], [1, 1]]})
    shares = expert_shares(routing, 2, 2, 5)
    assert shares.tolist() == [[0.75, 0.25], [0.5, 0.5]]
    # A point also has what identifies the file.
    shares = expert_shares({**routing, 'sha256': '0'}, 2, 2, 5)
    assert shares.shape == (2, 2)


@pytest.mark.parametrize(
    ('content', 'problem'),
    [
        ({}, "cannot be read: KeyError"),
        ({
            'shares': [[0.5, 0.5]]
        }, r'shares of shape \(1, 2\), not \(2, 2\)'),
        ({
            'shares': [[1, 0], [2, -1]]
        }, 'a negative share'),
        ({
            'shares': [[1, 0], [0, 0]]
        }, 'a layer without any'),
    ],
)
def test_recorded_errors(tmp_path: Path, content: Any, problem: str):
    with pytest.raises(HarnessError, match=problem):
        expert_shares(record(tmp_path, content), 2, 2, 5)


@pytest.mark.parametrize(
    ('routing', 'problem'),
    [
        ({
            'kind': 'normal'
        }, 'not a routing'),
        ({
            'kind': 'uniform',
            'exponent': 1.0
        }, 'not a routing'),
        ({
            'kind': 'zipf'
        }, 'not a routing'),
        ({
            'kind': 'zipf',
            'exponent': -1
        }, 'routing.exponent=-1.0: negative'),
        ({
            'kind': 'recorded',
            'file': 'there is none'
        }, 'cannot be read'),
    ],
)
def test_other_routings(routing: dict[str, Any], problem: str):
    with pytest.raises(HarnessError, match=problem):
        expert_shares(routing, 2, 2, 5)


def test_labels():
    assert routing_label({'kind': 'uniform'}) == 'uniform'
    assert routing_label({'kind': 'zipf', 'exponent': 1.2}) == 'zipf 1.2'
    assert routing_label({'kind': 'recorded', 'file': 'f'}) == 'recorded'


def test_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv('PYTHONPATH', 'mine')
    real = routing_environment(tmp_path)
    plugin, mine = real['PYTHONPATH'].split(':')
    assert mine == 'mine'
    points = Path(plugin).glob('*.dist-info/entry_points.txt')
    assert 'simulated_routing.strategy:register' in next(points).read_text()
    assert 'VLLM_MOE_ROUTING_SIMULATION_STRATEGY' not in real
    write_routing({'kind': 'uniform'}, tmp_path, 2, 8, 2, 5)
    dummy = routing_environment(tmp_path)
    assert dummy['VLLM_MOE_ROUTING_SIMULATION_STRATEGY'] == 'tables'
    assert json.loads(Path(dummy['SERVING_ROUTING']).read_text())['top_k'] == 2


def test_read_observed(tmp_path: Path):
    assert read_observed(tmp_path) is None
    write_routing({'kind': 'uniform'}, tmp_path, 2, 8, 2, 5)
    log = Path(routing_environment(tmp_path)['SERVING_ROUTING_LOG'])
    seen = {'top_k': [2, 2], 'experts': [8, 8], 'tokens': [70_000, 70_000]}
    log.write_text(json.dumps(seen))
    observed = read_observed(tmp_path)
    assert observed.top_k == (2, 2)
    assert observed.shares is not None
    for shares in observed.shares:
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert shares == pytest.approx([1 / 8] * 8, abs=0.005)
    # Before the first token, and of an earlier server.
    log.write_text(json.dumps({**seen, 'tokens': []}))
    assert read_observed(tmp_path).shares is None
    routing_environment(tmp_path)
    assert read_observed(tmp_path) is None
