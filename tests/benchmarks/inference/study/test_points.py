"""``study/servers.py``, ``study/points.py``, ``run/plan.py``: what is measured."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from tiny_serving import SHAPE, write_study

from benchmarks.inference.engine import variants
from benchmarks.inference.errors import HarnessError
from benchmarks.inference.run.plan import describe_plan, describe_servers
from benchmarks.inference.study.config import read_study
from benchmarks.inference.study.points import Point, points_of, rounds
from benchmarks.inference.study.servers import (
    ServerSpec,
    id_of,
    list_servers,
    weight_bytes_of,
)
from benchmarks.inference.study.settings import Study


def read(folder: Path, *changes: tuple[str, Any]) -> Study:
    return read_study(write_study(folder, changes))


def servers(folder: Path, *changes: tuple[str, Any]) -> list[ServerSpec]:
    return list(list_servers(read(folder, *changes)))


def test_order_of_keys_does_not_change_an_id():
    assert id_of({'a': 1, 'b': {'c': 2, 'd': 3}}) == \
        id_of({'b': {'d': 3, 'c': 2}, 'a': 1})
    # The first 8 bytes of `printf '{"a":1}' | sha256sum`.
    assert id_of({'a': 1}) == '015abd7f5cc57a2d'


def test_ids_stay(tmp_path: Path):
    """Another id would measure again what people have measured."""
    dense, _, moe = servers(tmp_path)
    assert Point(dense, 0.5, 0).id == '24555d0aa79130fa'
    assert Point(moe, None, 1).id == '4508e31c8a04b851'
    # All that it hashes: what is not here does not count.
    assert Point(moe, None, 1).config == {
        'study': 'tiny',
        'seed': 17,
        'size': 'tiny',
        'architecture': 'moe',
        'experts': 8,
        'top_k': 2,
        'variant': 'base',
        'changes': {
            'engine': {},
            'flags': [],
            'min_devices': 1,
            'tuned': None,
        },
        'load_format': 'dummy',
        'routing': {
            'kind': 'uniform',
        },
        'engine': {
            'dtype': 'bfloat16',
            'max_model_len': 32,
            'enforce_eager': True,
            'tensor_parallel_size': 1,
            'kv_cache_gib': None,
            'max_num_seqs': 2,
            'max_num_batched_tokens': None,
        },
        'model': {
            'architectures': ['MixtralForCausalLM'],
            'model_type': 'mixtral',
            'hidden_size': 64,
            'intermediate_size': 128,
            'num_hidden_layers': 2,
            'num_attention_heads': 4,
            'num_key_value_heads': 2,
            'vocab_size': 512,
            'max_position_embeddings': 32768,
            'head_dim': 16,
            'hidden_act': 'silu',
            'rms_norm_eps': 1e-5,
            'rope_theta': 10000.0,
            'sliding_window': None,
            'tie_word_embeddings': False,
            'bos_token_id': 1,
            'eos_token_id': 2,
            'torch_dtype': 'bfloat16',
            'num_local_experts': 8,
            'num_experts_per_tok': 2,
        },
        'parent': None,
        'rate': None,
        'run': 1,
        'workload': {
            'input_tokens': 16,
            'output_tokens': 4,
            'requests': 8,
            'warmup_requests': 1,
            'prompts': None,
        },
    }


def test_order_of_a_yaml_does_not_change_ids(tmp_path: Path):
    shape = dict(reversed(SHAPE.items()))
    again = servers(tmp_path, ('sizes tiny dense', shape))
    assert [server.id for server in again] == \
        [server.id for server in servers(tmp_path)]


@pytest.mark.parametrize(
    ('keys', 'value'),
    [
        ('name', 'other'),
        ('seed', 18),
        ('routing', {
            'kind': 'zipf',
            'exponent': 1.0,
        }),
        ('workload input_tokens', 15),
        ('workload output_tokens', 3),
        ('workload requests', 9),
        ('workload warmup_requests', 2),
        ('workload seconds', 60),
        ('engine dtype', 'float16'),
        ('engine max_model_len', 33),
        ('engine enforce_eager', False),
        ('engine tensor_parallel_size', 2),
        ('engine kv_cache_gib', 1),
        ('engine max_num_seqs', 4),
        ('sizes tiny dense d_model', 128),
        ('sizes tiny dense ffn_hidden_size', 64),
        ('sizes tiny dense n_layers', 3),
        ('sizes tiny dense n_heads', 8),
        ('sizes tiny dense kv_n_heads', 1),
        ('sizes tiny dense vocab_size', 513),
        ('sizes tiny moe experts', 16),
        ('variants', ['eager']),
    ],
)
def test_any_other_setting_is_another_point(
    tmp_path: Path,
    keys: str,
    value: Any,
):
    before = [Point(server, 0.5, 0).id for server in servers(tmp_path)]
    changed = servers(tmp_path, (keys, value))
    after = [Point(server, 0.5, 0).id for server in changed]
    assert len(before) == len(after) == 3
    # What only mixtures have is no change of the dense model.
    first = 1 if keys.startswith(('routing', 'sizes tiny moe')) else 0
    assert after[:first] == before[:first]
    assert not set(after[first:]) & set(before[first:])


@pytest.mark.parametrize(
    ('keys', 'value'),
    [
        ('folder', 'elsewhere'),
        ('runs', 5),
        ('rates stop', 9),
        ('rates fine', 1),
        ('rates unbounded', False),
        ('top_k', [1, 2, 4]),
        ('variants', ['base', 'eager']),
        ('sizes tiny moe experts', [8, 16]),
    ],
)
def test_what_adds_points_keeps_the_others(
    tmp_path: Path,
    keys: str,
    value: Any,
):
    seconds = ('workload seconds', 60)

    def ids(*changes: tuple[str, Any]) -> set[str]:
        return {
            Point(server, rate, 0).id
            for server in servers(tmp_path, seconds, *changes)
            for rate in (0.5, None)
        }

    assert ids() <= ids((keys, value))


def test_rates_and_runs_have_their_own_ids(tmp_path: Path):
    server = servers(tmp_path)[0]
    points = points_of(server, (0.5, 1.0, None), range(3))
    assert len({point.id for point in points}) == 9


def test_recorded_routing_is_known_by_its_shares(tmp_path: Path):
    path = tmp_path / 'shares.json'
    changes = ('routing', {'kind': 'recorded', 'file': str(path)})
    even = [0.125] * 8
    path.write_text(json.dumps({'shares': [even, even]}))
    dense, one, _ = servers(tmp_path, changes)
    path.write_text(json.dumps({'shares': [even, [0.25] * 4 + [0.0] * 4]}))
    dense_again, other, _ = servers(tmp_path, changes)
    assert dense.id == dense_again.id
    assert one.id != other.id


def real_study(folder: Path) -> Study:
    return read(folder, *real_changes(folder))


def real_changes(folder: Path) -> list[tuple[str, Any]]:
    return [
        ('load_format', 'real'),
        ('routing', None),
        ('top_k', [2]),
        ('variants', ['base', 'draft_speculation']),
        (
            'sizes tiny',
            {
                'dense': {
                    'folder': str(folder / 'dense'),
                },
                'moe': {
                    'folder': str(folder / 'moe'),
                },
            },
        ),
    ]


def write_real(folder: Path, **config: Any) -> None:
    folder.mkdir()
    (folder / 'config.json').write_text(json.dumps(config))
    write_weights(folder, 2)


def write_weights(folder: Path, rows: int) -> None:
    tensor = {'dtype': 'F32', 'shape': [rows, 2], 'data_offsets': [0, 8 * rows]}
    header = json.dumps({'weight': tensor}).encode()
    length = struct.pack('<Q', len(header))
    content = length + header + bytes(8 * rows)
    (folder / 'model.safetensors').write_bytes(content)


def test_real_weights(tmp_path: Path):
    write_real(tmp_path / 'dense')
    write_real(tmp_path / 'moe', num_local_experts=4)
    dense, moe, draft = list_servers(real_study(tmp_path))
    assert (dense.architecture, dense.experts, dense.top_k) == ('dense', 1, 1)
    assert (moe.architecture, moe.experts, moe.top_k) == ('moe', 4, 2)
    assert draft.variant == 'draft_speculation'
    assert dense.config['routing'] is None
    assert moe.config['routing'] is None
    # 2 x 2 in the engine's bfloat16, whatever the file has.
    assert weight_bytes_of(moe) == 8
    # And those of the dense parent.
    assert weight_bytes_of(draft) == 16
    assert moe.config['model']['folder'] == str(tmp_path / 'moe')
    assert moe.config['parent']['folder'] == str(tmp_path / 'dense')
    # Other weights, another point.
    write_weights(tmp_path / 'moe', 3)
    again = list_servers(real_study(tmp_path))
    assert again[0].id == dense.id
    assert again[1].id != moe.id


def test_qwen3_mixtures(tmp_path: Path):
    write_real(tmp_path / 'dense')
    write_real(tmp_path / 'moe', num_experts=4)
    assert [s.experts for s in list_servers(real_study(tmp_path))] == [1, 4, 4]


def test_greedy_decoding_has_its_own_ids(tmp_path: Path):
    write_real(tmp_path / 'dense')
    write_real(tmp_path / 'moe', num_local_experts=4)
    drawn = Point(list_servers(real_study(tmp_path))[0], 0.5, 0)
    assert 'greedy' not in drawn.config['workload']
    path = write_study(
        tmp_path, [
            *real_changes(tmp_path),
            ('workload greedy', True),
        ]
    )
    greedy = Point(list_servers(read_study(path))[0], 0.5, 0)
    assert greedy.config['workload']['greedy'] is True
    assert greedy.id != drawn.id


def test_real_weights_of_fewer_experts(tmp_path: Path):
    write_real(tmp_path / 'dense')
    write_real(tmp_path / 'moe', num_local_experts=1)
    with pytest.raises(HarnessError, match=r'^top_k=2: .*moe has 1 experts'):
        list_servers(real_study(tmp_path))


def test_weights_on_each_device(tmp_path: Path):
    changes = ('variants', ['base', 'tensor_parallel_2', 'int8_experts'])
    of = {server.label: server for server in servers(tmp_path, changes)}
    whole = weight_bytes_of(of['tiny moe E=8 K=2 base'])
    assert whole is not None
    half = weight_bytes_of(of['tiny moe E=8 K=2 tensor_parallel_2'])
    assert half == whole // 2
    # Quantised.
    assert weight_bytes_of(of['tiny moe E=8 K=2 int8_experts']) is None


def test_batches_are_the_variants(tmp_path: Path):
    changes = ('variants', ['base', 'equal_batch_limits'])
    of = {server.label: server for server in servers(tmp_path, changes)}
    # 4 batches of 2 hold the 8 requests; of 64, 3.
    assert Point(of['tiny dense base'], None, 0).n_requests == 8
    limited = of['tiny dense equal_batch_limits']
    assert Point(limited, None, 0).n_requests == 3 * 64


def test_prompts_of_a_file_are_known_by_it(tmp_path: Path):
    path = tmp_path / 'prompts.jsonl'
    changes = ('workload prompts', str(path))
    path.write_text('{"prompt": [5, 6]}')
    one = Point(servers(tmp_path, changes)[0], 0.5, 0)
    path.write_text('{"prompt": [6, 5]}')
    other = Point(servers(tmp_path, changes)[0], 0.5, 0)
    assert one.id != other.id
    assert one.server.id == other.server.id


def test_real_weights_that_are_missing(tmp_path: Path):
    write_real(tmp_path / 'dense')
    write_real(tmp_path / 'moe', num_local_experts=4)
    (tmp_path / 'moe' / 'model.safetensors').unlink()
    study = real_study(tmp_path)
    dense, moe, _ = describe_servers(study)
    assert dense['problem'] is None
    assert 'model folder without weights' in moe['problem']
    assert moe['weight_bytes'] is None


def test_mixture_that_is_none(tmp_path: Path):
    write_real(tmp_path / 'dense')
    write_real(tmp_path / 'moe')
    with pytest.raises(HarnessError, match='no config.json of a mixture'):
        list_servers(real_study(tmp_path))


def test_unknown_variant(tmp_path: Path):
    with pytest.raises(HarnessError, match="variants='faster': there is no"):
        servers(tmp_path, ('variants', ['base', 'faster']))


def test_dense_models_have_no_variants_of_experts(tmp_path: Path):
    listed = servers(tmp_path, ('variants', ['base', 'int8_experts']))
    assert variants.VARIANTS['int8_experts'].experts_only
    assert [server.label for server in listed] == [
        'tiny dense base',
        'tiny moe E=8 K=1 base',
        'tiny moe E=8 K=2 base',
        'tiny moe E=8 K=1 int8_experts',
        'tiny moe E=8 K=2 int8_experts',
    ]


def test_no_more_experts_a_token_than_there_are(tmp_path: Path):
    listed = servers(
        tmp_path,
        ('sizes tiny moe experts', [2, 4]),
        ('top_k', [1, 4]),
    )
    assert [(server.experts, server.top_k) for server in listed] == [
        (1, 1),
        (2, 1),
        (4, 1),
        (4, 4),
    ]


def test_faster_arrivals_are_more_requests(tmp_path: Path):
    server = servers(tmp_path, ('workload seconds', 10))[0]
    numbers = {
        rate: Point(server, rate, 0).n_requests
        for rate in (0.5, 0.8, 1.0, 1.05, 2.0, None)
    }
    # At least 8; 1.05 / s for 10 s are 10.5; unbounded 8.
    assert numbers == {0.5: 8, 0.8: 8, 1.0: 10, 1.05: 11, 2.0: 20, None: 8}
    assert Point(server, 0.5, 0).seconds_of_arrivals == pytest.approx(16)
    assert Point(server, None, 0).seconds_of_arrivals == 0


def test_all_at_once_are_whole_batches(tmp_path: Path):
    for batch, n in ((2, 8), (3, 9), (4, 12), (5, 15)):
        server = servers(tmp_path, ('engine max_num_seqs', batch))[0]
        assert Point(server, None, 0).n_requests == n
        assert Point(server, 2.0, 0).n_requests == 8


def test_models_alternate_and_turn_round_each_run(tmp_path: Path):
    study = read(tmp_path, ('runs', 3), ('top_k', [1]))
    order = [(server.architecture, run)
             for server, run in rounds(study, list_servers(study))]
    assert order == [
        ('dense', 0),
        ('moe', 0),
        ('moe', 1),
        ('dense', 1),
        ('dense', 2),
        ('moe', 2),
    ]


def test_plan_of_a_search(tmp_path: Path):
    study = read(tmp_path, ('folder', str(tmp_path)), ('top_k', [2]))
    lines = list(describe_plan(study))
    point = Point(list_servers(study)[1], 0.5, 0)
    assert lines[0].split() == [
        'point',
        'size',
        'model',
        'K',
        'variant',
        'rate',
        'run',
        'requests',
        'state',
    ]
    # Sure are, of both servers, the first rate in the first run and the
    # unbounded one in both.
    assert len(lines[1:lines.index('')]) == 6
    assert lines[3].split() == [
        point.id,
        'tiny',
        'moe',
        'E=8',
        '2',
        'base',
        '0.5/s',
        '1',
        '8',
        'to',
        'do',
    ]
    assert lines[-3:] == [
        'tiny dense base: the first run searches the knee, 2 to 3 more rates '
        'of 0.5 to 2/s; the other runs have the same rates.',
        'tiny moe E=8 K=2 base: the first run searches the knee, 2 to 3 more '
        'rates of 0.5 to 2/s; the other runs have the same rates.',
        # 2 x 0.5/s of 8 requests are 32 s.
        'tiny: 2 servers in 2 runs, 16 to 20 points. Those above are 6, of 48 '
        'requests that arrive over 1 min; starting servers and the load comes '
        'on top.',
    ]


def test_plan_of_all_rates(tmp_path: Path):
    study = read(tmp_path, ('folder', str(tmp_path)), ('top_k', [2]))
    lines = list(describe_plan(study, full_grid=True))
    # 2 servers, 4 rates and unbounded, 2 runs.
    assert len(lines[1:lines.index('')]) == 20
    assert lines[-1].startswith('tiny: 2 servers in 2 runs, 20 points.')
