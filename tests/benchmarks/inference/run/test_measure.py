"""``run/measure.py``, with a stub of the command vllm."""

import json
import shutil
from pathlib import Path
from typing import Any, Mapping, Sequence

import pytest
from stubbed_vllm import use_stub
from tiny_serving import SHAPE, write_study

from benchmarks.inference import __main__ as command
from benchmarks.inference.engine.models import write_model_folder
from benchmarks.inference.report.results import read_points
from benchmarks.inference.run import measure


def prepare(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *changes: tuple[str, Any],
) -> Path:
    """A study that is measured with the stub."""
    use_stub(folder, monkeypatch)
    return write_study(
        folder,
        [
            ('folder', str(folder / 'out')),
            ('top_k', [2]),
            ('runs', 1),
            ('rates stop', 0.5),
            ('workload requests', 20),
            *changes,
        ],
    )


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One rate of a dense model and of a mixture, not yet measured."""
    return prepare(tmp_path, monkeypatch, ('rates unbounded', False))


@pytest.fixture(scope='module')
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that was measured; also all requests at once."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        study = prepare(tmp_path_factory.mktemp('done'), monkeypatch)
        assert command.main(['run', str(study)]) == 0
        return study


def records(study: Path) -> dict[tuple[str, Any], Mapping[str, Any]]:
    """Architecture and rate -> point.json."""
    found = {}
    for path in study.parent.glob('out/points/*/point.json'):
        record = json.loads(path.read_text())
        config = record['config']
        found[config['architecture'], config['rate']] = record
    return found


def test_a_study_from_start_to_end(done: Path):
    found = records(done)
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
    # As its log says.
    assert record['engine']['cpu_cores'] == [0, 2]
    assert record['engine']['devices'] == 1
    # 2 bytes each: embeddings 2 x 512 x 64, norms 5 x 64, and of each layer
    # attention 3 x 64 x 64, routers 8 x 64 and experts 8 x 3 x 64 x 128.
    parameters = 65536 + 320 + 2 * (12288 + 512 + 196608)
    assert record['engine']['weight_bytes'] == 2 * parameters
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
    assert measured['saturated']
    # 20 requests/s of 20 tokens.
    assert measured['throughput_tokens_per_s'] == pytest.approx(400, rel=0.01)
    assert not found['moe', 0.5]['measured']['saturated']
    shares = record['expert_load']['shares']
    assert [len(layer) for layer in shares] == [8, 8]
    assert [sum(layer) for layer in shares] == pytest.approx([1, 1], abs=1e-4)
    # The report takes all of them.
    assert len(read_points(done.parent / 'out')) == 4


def test_expert_load_is_of_the_points_own_tokens(
    study: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    seen = []

    def drawn_shares(folder: Path, before: Any, after: Any, n: int):
        seen.append((before.tokens, after.tokens, n))
        return []

    monkeypatch.setattr(measure, 'drawn_shares', drawn_shares)
    assert command.main(['run', str(study)]) == 0
    # Each of 19 tokens; before the point one to warm up.
    assert seen == [((19, 19), (21 * 19, 21 * 19), 20 * 19)]


def test_what_is_left_of_a_point(done: Path):
    record = records(done)['moe', 0.5]
    folder = done.parent / 'out/points' / record['id']
    assert sorted(path.name for path in folder.iterdir()) == [
        'bench.json',
        'bench.log',
        'metrics_after.txt',
        'metrics_before.txt',
        'point.json',
        'server.log',
    ]


def test_what_the_server_wrote_during_a_point(done: Path):
    logs = [(done.parent / f'out/points/{record["id"]}/server.log').read_text()
            for record in records(done).values()]
    assert len(logs) == 4
    for log in logs:
        # To warm up, 20 of the load and at least twice its metrics.
        assert log.count('POST /v1/completions') == 21
        assert log.count('GET /metrics') >= 2
        assert 'core ids' not in log
    whole = sorted(done.parent.glob('out/servers/*/run_1.log'))
    assert len(whole) == 2
    for log in whole:
        assert 'core ids' in log.read_text()
    assert not (done.parent / 'out/server.pid').exists()


def test_logs_of_servers_are_kept(
    study: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv('STUB_VLLM', 'rejects')
    for _ in range(2):
        command.main(['run', str(study)])
    monkeypatch.delenv('STUB_VLLM')
    # With nothing wrong, all is there.
    assert command.main(['run', str(study)]) == 0
    for folder in study.parent.glob('out/servers/*'):
        logs = [folder / f'run_1{end}.log' for end in ('', '_2', '_3')]
        assert sorted(folder.glob('*.log')) == sorted(logs)
        rejected = ['unrecognized' in log.read_text() for log in logs]
        assert rejected == [True, True, False]


@pytest.mark.parametrize(
    ('trouble', 'failed', 'reason'),
    [
        (
            'cached',
            2,
            'prefix_cache_hits=320: tokens of prompts were found in the cache',
        ),
        ('other tokens', 2, 'prompt_tokens=340: the engine counts other'),
        ('cold', 2, 'warmup_requests=1: 1 failed'),
        ('busy', 2, 'it works on requests though all are answered'),
        (
            'slow client', 2,
            'rate=0.5: the client sent its 20 requests in 44.00'
        ),
        (
            'other k',
            1,
            'top_k=2: the engine routes each token to [1] experts.',
        ),
        ('other layers', 1, 'n_layers=2: the engine built 3 mixture layers'),
        ('other experts', 1, 'experts=8: the engine built [4] experts'),
        ('past the tables', 1, 'layer 0 drew experts for 0 tokens'),
        ('dies', 2, 'the server died with exit status 7'),
        ('rejects', 2, 'the engine rejects its flags: '),
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


def write_real_study(
    folder: Path,
    changes: Sequence[tuple[str, Any]] = (),
) -> None:
    """The study with real weights, of which the mixture's are missing."""
    for name, experts in (('dense', 1), ('moe', 8)):
        write_model_folder(SHAPE, folder / name, experts)
    # One tensor of 3 x 2.
    header = json.dumps({'a': {'shape': [3, 2]}}).encode()
    weights = len(header).to_bytes(8, 'little') + header
    (folder / 'dense/model.safetensors').write_bytes(weights)
    write_study(
        folder,
        [
            ('folder', str(folder / 'out')),
            ('top_k', [2]),
            ('runs', 1),
            ('rates stop', 0.5),
            ('workload requests', 20),
            ('load_format', 'real'),
            ('routing', None),
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
            *changes,
        ],
    )


def test_weights_that_are_missing_fail_one_model(
    study: Path,
    tmp_path: Path,
):
    write_real_study(tmp_path)
    assert command.main(['run', str(study)]) == 1
    found = records(study)
    assert found['dense', 0.5]['status'] == 'done'
    assert found['dense', 0.5]['labels'] == ['CPU', 'random-token prompts']
    # In bfloat16.
    assert found['dense', 0.5]['engine']['weight_bytes'] == 12
    assert found['moe', 0.5]['status'] == 'failed'
    assert 'model folder without weights' in found['moe', 0.5]['reason']


def test_real_weights_and_text(
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    prompts = tmp_path / 'text.jsonl'
    lines = [json.dumps({'prompt': [k] * 16}) for k in range(24)]
    prompts.write_text('\n'.join(lines))
    write_real_study(tmp_path, [('workload prompts', str(prompts))])
    shutil.copy(tmp_path / 'dense/model.safetensors', tmp_path / 'moe')
    sent = []
    write_prompts = measure.write_prompts

    def keep(path: Path, *arguments: Any) -> None:
        write_prompts(path, *arguments)
        sent.append([json.loads(line)['prompt'] for line in path.open()])

    monkeypatch.setattr(measure, 'write_prompts', keep)
    assert command.main(['run', str(study)]) == 0
    found = records(study)
    assert found['moe', 0.5]['labels'] == ['CPU']
    # Nothing is drawn, but what is built is checked.
    assert found['moe', 0.5]['expert_load'] is None
    assert found['moe', 0.5]['engine']['top_k_checked'] == 2
    assert len(sent) == 4
    for of_point in sent:
        assert len({prompt[0] for prompt in of_point}) == 20
        assert all(len(set(prompt)) == 1 for prompt in of_point)


def test_real_weights_of_another_k_fail(
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    write_real_study(tmp_path)
    shutil.copy(tmp_path / 'dense/model.safetensors', tmp_path / 'moe')
    monkeypatch.setenv('STUB_VLLM', 'other k')
    assert command.main(['run', str(study)]) == 1
    reason = records(study)['moe', None]['reason']
    assert 'the engine routes each token to [1] experts' in reason
