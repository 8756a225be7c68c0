"""Simulated routing: what is drawn is what was asked."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.inference.engine import routing as routing_module
from benchmarks.inference.engine.plugin.simulated_routing.record import Record
from benchmarks.inference.engine.plugin.simulated_routing.tables import (
    ROWS,
    UNITS,
    count_experts,
    draw_table,
)
from benchmarks.inference.engine.routing import (
    ObservedRouting,
    check_recorded,
    check_routing,
    drawn_shares,
    expert_shares,
    inclusion,
    observe,
    routing_environment,
    routing_label,
    write_routing,
)
from benchmarks.inference.errors import HarnessError


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
    routing = record(tmp_path, content)
    with pytest.raises(HarnessError, match=problem):
        expert_shares(routing, 2, 2, 5)
    with pytest.raises(HarnessError, match=problem):
        check_recorded(Path(routing['file']), 2, 2)


def test_recorded_shares_that_fit(tmp_path: Path):
    file = record(tmp_path, {'shares': [[3, 1], [1, 1], [1, 2]]})['file']
    check_recorded(Path(file), 3, 2)


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


def start_plugin(
    folder: Path,
    count_tokens: Callable[[], list[int]],
    top_k: int = 2,
) -> None:
    """Records as in the engine: two layers of 8 experts, routed by tables."""
    write_routing({'kind': 'uniform'}, folder, 2, 8, top_k, 5)
    record = build_layers(folder, top_k)
    record.answer(count_tokens)


def build_layers(folder: Path, top_k: int) -> Record:
    record = Record(Path(routing_environment(folder)['SERVING_ROUTING_LOG']))
    for _ in range(2):
        record.add_layer(top_k, 8)
    return record


def test_what_is_built_is_observed(tmp_path: Path):
    # Of real weights: nothing is drawn, and nobody is asked.
    build_layers(tmp_path, 2)
    assert observe(tmp_path) == ObservedRouting((2, 2), (8, 8), ())
    # Another server has built nothing yet.
    routing_environment(tmp_path)
    problem = 'no record of a mixture that can be read: FileNotFoundError'
    with pytest.raises(HarnessError, match=problem):
        observe(tmp_path)


def test_what_is_drawn_is_observed_when_asked(tmp_path: Path):
    tokens = [70, 70]
    start_plugin(tmp_path, lambda: list(tokens))
    assert observe(tmp_path) == ObservedRouting((2, 2), (8, 8), (70, 70))
    tokens[:] = [90, 91]
    assert observe(tmp_path).tokens == (90, 91)


def test_the_engine_comes_to_rest(tmp_path: Path):
    counts = iter([10, 20, 30, *[40] * 100])
    start_plugin(tmp_path, lambda: [next(counts)] * 2)
    assert observe(tmp_path).tokens == (40, 40)


def test_an_engine_that_draws_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(routing_module, '_REST_SECONDS', 0.5)
    counts = itertools.count()
    start_plugin(tmp_path, lambda: [next(counts)] * 2)
    with pytest.raises(HarnessError, match='still drawn after 0.5 s'):
        observe(tmp_path)


def test_a_plugin_that_does_not_answer(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(routing_module, '_ANSWER_SECONDS', 0.3)
    write_routing({'kind': 'uniform'}, tmp_path, 2, 8, 2, 5)
    build_layers(tmp_path, 2)
    problem = 'no experts are drawn from the tables: the plugin does not answer'
    with pytest.raises(HarnessError, match=problem):
        observe(tmp_path)


@pytest.mark.parametrize(
    ('content', 'problem'),
    [
        ('{"top_k":', 'JSONDecodeError'),
        ('{"top_k": [1]}', "KeyError.'experts'"),
        ('{"top_k": 1}', 'TypeError'),
    ],
)
def test_a_record_that_is_none(tmp_path: Path, content: str, problem: str):
    log = routing_environment(tmp_path)['SERVING_ROUTING_LOG']
    Path(log).write_text(content)
    with pytest.raises(HarnessError, match=f'can be read: {problem}'):
        observe(tmp_path)


@pytest.mark.parametrize(
    ('asked', 'problem'),
    [
        ((3, 8, 2), 'n_layers=3: the engine built 2 mixture layers'),
        ((2, 4, 2), r'experts=4: the engine built \[8\] experts'),
        ((2, 8, 1), r'top_k=1: the engine routes each token to \[2\] experts'),
    ],
)
def test_another_mixture(asked: tuple[int, int, int], problem: str):
    observed = ObservedRouting((2, 2), (8, 8), ())
    check_routing(observed, 2, 8, 2)
    with pytest.raises(HarnessError, match=problem):
        check_routing(observed, *asked)


def test_one_layer_of_another_k():
    with pytest.raises(HarnessError, match=r'top_k=2: .* to \[1, 2\] experts'):
        check_routing(ObservedRouting((2, 1), (8, 8), ()), 2, 8, 2)


def drawn(*tokens: int) -> ObservedRouting:
    return ObservedRouting((2, 2), (8, 8), tokens)


def test_shares_are_of_what_was_drawn_in_between(tmp_path: Path):
    write_routing({'kind': 'zipf', 'exponent': 1.0}, tmp_path, 2, 8, 2, 5)
    spec = json.loads((tmp_path / 'routing.json').read_text())
    # The second layer goes on with the table's first rows.
    begins, ends = (100, ROWS - 10), (140, ROWS + 30)
    found = drawn_shares(tmp_path, drawn(*begins), drawn(*ends), 40)
    for layer in range(2):
        table_RK = draw_table(spec['inclusion'][layer], 2, 5, layer)
        rows = [row % ROWS for row in range(begins[layer], ends[layer])]
        counts_E = np.bincount(table_RK[rows].ravel(), minlength=8)
        assert found[layer] == pytest.approx(counts_E / 80, abs=1e-6)


def test_tokens_that_were_not_drawn(tmp_path: Path):
    write_routing({'kind': 'uniform'}, tmp_path, 2, 8, 2, 5)
    problem = 'layer 1 drew experts for 39 tokens; the model computed 40'
    with pytest.raises(HarnessError, match=problem):
        drawn_shares(tmp_path, drawn(100, 100), drawn(140, 139), 40)
