"""``benchmarks/inference/measure.py``, with a stub of the command vllm."""

import json
import sys
from pathlib import Path
from typing import Any, Mapping

import pytest
from tiny_serving import write_study

from benchmarks.inference import __main__ as command
from benchmarks.inference.engine.machine import Machine
from benchmarks.inference.report.results import read_points
from benchmarks.inference.run import measure

STUB = Path(__file__).parents[1] / 'stub_vllm.py'
MACHINE = Machine(None, 0, None, 'A CPU', (), 2, 8.0, '0.32.0+cpu', '2.13')


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study that is measured with the stub."""
    vllm = tmp_path / 'vllm'
    vllm.write_text(f'#!/bin/sh\nexec {sys.executable} {STUB} "$@"\n')
    vllm.chmod(0o755)
    monkeypatch.setattr(measure, 'find_vllm', lambda: vllm)
    monkeypatch.setattr(measure, 'this_machine', lambda _: MACHINE)
    monkeypatch.setattr(measure, '_DEATH_SECONDS', 1)
    return write_study(
        tmp_path,
        [
            ('folder', str(tmp_path / 'out')),
            ('top_k', [2]),
            ('runs', 1),
            ('rates stop', 0.5),
            ('workload requests', 20),
        ],
    )


def records(study: Path) -> dict[tuple[str, Any], Mapping[str, Any]]:
    """Architecture and rate -> point.json."""
    found = {}
    for path in study.parent.glob('out/points/*/point.json'):
        record = json.loads(path.read_text())
        config = record['config']
        found[config['architecture'], config['rate']] = record
    return found


def test_a_study_from_start_to_end(study: Path):
    assert command.main(['run', str(study)]) == 0
    found = records(study)
    assert len(found) == 4
    record = found['moe', None]
    assert record['labels'] == [
        'CPU',
        'dummy weights',
        'simulated routing: uniform',
    ]
    assert found['dense', None]['labels'] == ['CPU', 'dummy weights']
    assert record['machine']['vllm'] == '0.32.0+cpu'
    assert record['engine']['kv_cache_tokens'] == 4096
    assert record['engine']['top_k_checked'] == 2
    assert found['dense', None]['engine']['top_k_checked'] is None
    assert record['engine']['start_seconds'] > 0
    assert record['counters'] == {
        'prefix_cache_hits': 0,
        'preemptions': 0,
        'spec_accepted': None,
        'spec_drafted': None,
    }
    assert record['tool']['request_throughput'] == 3.0
    assert len(record['requests']['start']) == 20
    assert record['requests']['start'][0] == 0
    assert set(record['requests']['input_tokens']) == {16}
    measured = record['measured']
    assert measured['n_failed'] == 0
    assert measured['saturated']
    # 20 requests/s of 20 tokens.
    assert measured['throughput_tokens_per_s'] == pytest.approx(400, rel=0.01)
    assert not found['moe', 0.5]['measured']['saturated']
    shares = record['expert_load']['shares']
    assert [len(layer) for layer in shares] == [8, 8]
    assert [sum(layer) for layer in shares] == pytest.approx([1, 1], abs=1e-4)
    # The report takes all of them.
    assert len(read_points(study.parent / 'out')) == 4


def test_what_is_left_of_a_point(study: Path):
    command.main(['run', str(study)])
    folder = study.parent / 'out/points' / records(study)['moe', 0.5]['id']
    assert sorted(path.name for path in folder.iterdir()) == [
        'bench.json',
        'bench.log',
        'metrics_after.txt',
        'metrics_before.txt',
        'point.json',
    ]


@pytest.mark.parametrize(
    ('trouble', 'failed', 'reason'),
    [
        (
            'cached',
            4,
            'prefix_cache_hits=16: tokens of prompts were found in the cache',
        ),
        (
            'other k',
            2,
            'top_k=2: the engine routes each token to [1] experts.',
        ),
        ('dies', 4, 'the server died with exit status 7'),
        ('rejects', 4, 'the engine rejects its flags: '),
    ],
)
def test_what_can_not_be_relied_on_is_not_done(
    study: Path,
    monkeypatch: pytest.MonkeyPatch,
    trouble: str,
    failed: int,
    reason: str,
):
    monkeypatch.setenv('STUB_VLLM', trouble)
    assert command.main(['run', str(study)]) == 1
    reasons = [
        record['reason']
        for record in records(study).values()
        if record['status'] == 'failed'
    ]
    assert len(reasons) == failed
    assert all(reason in each for each in reasons)
    # With nothing wrong, all is there.
    monkeypatch.delenv('STUB_VLLM')
    assert command.main(['run', str(study)]) == 0


def test_weights_that_are_missing_fail_one_model(
    study: Path,
    tmp_path: Path,
):
    for name, n_files in (('dense', 1), ('moe', 0)):
        folder = tmp_path / name
        folder.mkdir()
        config = {'vocab_size': 512, 'num_local_experts': 8}
        (folder / 'config.json').write_text(json.dumps(config))
        for _ in range(n_files):
            (folder / 'model.safetensors').write_bytes(b'1234')
    write_study(
        tmp_path,
        [
            ('folder', str(tmp_path / 'out')),
            ('top_k', [2]),
            ('runs', 1),
            ('rates stop', 0.5),
            ('load_format', 'real'),
            ('routing', None),
            (
                'sizes tiny',
                {
                    'dense': {
                        'folder': str(tmp_path / 'dense'),
                    },
                    'moe': {
                        'folder': str(tmp_path / 'moe'),
                    },
                },
            ),
        ],
    )
    assert command.main(['run', str(study)]) == 1
    found = records(study)
    assert found['dense', 0.5]['status'] == 'done'
    assert found['dense', 0.5]['labels'] == ['CPU']
    assert found['dense', 0.5]['engine']['weight_bytes'] == 4
    assert found['moe', 0.5]['status'] == 'failed'
    assert 'model folder without weights' in found['moe', 0.5]['reason']
