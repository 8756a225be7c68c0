"""The real engine, on tiny models of dummy weights."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from tiny_serving import write_study
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.inference.engine.load import BenchResult, run_load
from benchmarks.inference.engine.machine import this_machine
from benchmarks.inference.engine.metrics import (
    count_between,
    facts_of_log,
    kv_cache_tokens,
)
from benchmarks.inference.engine.models import weight_bytes, write_model_folder
from benchmarks.inference.engine.prompts import random_prompts, write_prompts
from benchmarks.inference.engine.routing import (
    ObservedRouting,
    drawn_shares,
    expert_shares,
    inclusion,
    observe,
    routing_environment,
    write_routing,
)
from benchmarks.inference.engine.server import (
    Server,
    find_vllm,
    free_port,
    serve_command,
    server_environment,
)
from benchmarks.inference.engine.warmup import warm_up
from benchmarks.inference.errors import HarnessError
from benchmarks.inference.run import measure
from benchmarks.inference.run.runner import Runner
from benchmarks.inference.study.config import read_study
from foundry_upcycle.config import UpcyclingConfig
from foundry_upcycle.conversion.convert import convert

pytestmark = pytest.mark.vllm

HERE = Path(__file__).parent
VLLM = HERE.parents[2] / '.venv-vllm/bin/vllm'

# On a CPU vLLM has no heads of less than 32 dimensions.
SHAPE = {
    'd_model': 128,
    'ffn_hidden_size': 256,
    'n_layers': 2,
    'n_heads': 4,
    'kv_n_heads': 2,
    'vocab_size': 512,
}
ENGINE = {
    'dtype': 'bfloat16',
    'max_model_len': 256,
    'enforce_eager': True,
    'kv_cache_gib': 1 / 16,
}
ZIPF = {'kind': 'zipf', 'exponent': 1.0}
SEED = 17


class Measured(NamedTuple):
    """What one server and one load gave."""
    server: Server
    result: BenchResult
    before: str
    after: str
    routed: tuple[ObservedRouting, ObservedRouting]
    shares: list[list[float]]


@pytest.fixture(scope='module')
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    folder = tmp_path_factory.mktemp('engine')
    model = folder / 'model'
    # The folder says 1 expert a token; the command says 2.
    write_model_folder(SHAPE, model, experts=8, top_k=1)
    write_routing(ZIPF, folder, 2, 8, 2, SEED)
    write_prompts(folder / 'p.jsonl', 20, 100, 512, SEED)
    port, vllm = free_port(), find_vllm(VLLM)
    command = serve_command(vllm, model, port, ENGINE, 'dummy', 2)
    environment = server_environment(routing_environment(folder))
    log = folder / 'server.log'
    with Server(command, port, log, environment, 300) as server:
        warm_up(server.url, random_prompts(2, 100, 512, SEED), 24, 300)
        routed = observe(folder)
        before = server.metrics()
        result = run_load(
            [str(vllm), 'bench', 'serve'],
            server.url,
            model,
            folder / 'p.jsonl',
            folder / 'point',
            n=20,
            rate=10.0,
            input_tokens=100,
            output_tokens=24,
            seed=SEED,
            environment=server_environment({}),
            timeout_s=300,
        )
        after = server.metrics()
        routed = routed, observe(folder)
    shares = drawn_shares(folder, *routed, 20 * 123)
    yield Measured(server, result, before, after, routed, shares)


def test_requests(measured: Measured):
    result = measured.result
    assert result.input_tokens == (100, ) * 20
    assert result.output_tokens == (24, ) * 20
    # The tool stretches the arrivals to n / rate; the first is not at 0.
    assert 1.0 < result.start_s[-1] < 2.5
    assert result.tool['failed'] == 0


def test_what_the_server_counted(measured: Measured):
    counted = count_between(measured.before, measured.after)
    assert counted.prompt_tokens == 20 * 100
    assert counted.output_tokens == 20 * 24
    assert counted.prefix_cache_hits == 0
    assert counted.preemptions == 0
    assert counted.spec_drafted is None


def test_what_the_engine_says(measured: Measured):
    facts = facts_of_log(measured.server.log.read_text())
    assert facts.version == '0.32.0'
    assert facts.moe_backend
    assert facts.moe_kernel
    assert facts.kv_cache_tokens == kv_cache_tokens(measured.after)
    # 2 layers, keys and values of 2 heads of 32 in two bytes: 512 bytes.
    assert facts.kv_cache_tokens == 2**26 // 512


def test_routing(measured: Measured):
    before, after = measured.routed
    assert after.top_k == (2, 2)
    assert after.experts == (8, 8)
    # Of each request all but the last token; two were sent before.
    assert before.tokens == (2 * 123, 2 * 123)
    assert after.tokens == (22 * 123, 22 * 123)
    shares = expert_shares(ZIPF, 2, 8, SEED)
    assert np.array(measured.shares) == pytest.approx(shares, abs=0.03)


@pytest.mark.parametrize('top_k', [1, 2, 4])
def test_strategy_routes_as_asked(tmp_path: Path, top_k: int):
    layers, experts, passes = 3, 8, 40
    write_routing(ZIPF, tmp_path, layers, experts, top_k, SEED)
    found = subprocess.run(
        [
            str(VLLM.with_name('python')),
            str(HERE / 'routing_worker.py'),
            *map(str, (layers, experts, top_k, passes)),
        ],
        env=server_environment(routing_environment(tmp_path)),
        capture_output=True,
        text=True,
        check=True,
    )
    routed = json.loads(found.stdout.splitlines()[-1])
    assert routed['fine']
    tokens = 500 * passes
    shares = expert_shares(ZIPF, layers, experts, SEED)
    for counts, shares_E in zip(routed['counts'], shares):
        assert sum(counts) == tokens * top_k
        p_E = np.array(inclusion(shares_E, top_k)) / 2**20
        deviation_E = np.sqrt(p_E * (1 - p_E) / tokens)
        difference_E = abs(np.array(counts) / tokens - p_E)
        assert (difference_E <= 5 * deviation_E + 1e-9).all()


def test_compiled_models_are_routed_too(tmp_path: Path):
    # On a CPU torch.compile reaches into the routing.
    write_model_folder(SHAPE, tmp_path / 'model', experts=8, top_k=2)
    write_routing({'kind': 'uniform'}, tmp_path, 2, 8, 2, SEED)
    port = free_port()
    engine = {**ENGINE, 'enforce_eager': False}
    command = serve_command(VLLM, tmp_path / 'model', port, engine, 'dummy', 2)
    environment = server_environment(routing_environment(tmp_path))
    log = tmp_path / 'server.log'
    with Server(command, port, log, environment, 600) as server:
        warm_up(server.url, [[5, 6, 7, 8]], 8, 120)
        first = observe(tmp_path)
        warm_up(server.url, [[5, 6, 7, 8]], 8, 120)
        second = observe(tmp_path)
    # Of 12 tokens the last is not read.
    assert [b - a for a, b in zip(first.tokens, second.tokens)] == [11, 11]


def test_a_study_from_start_to_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    path = write_study(
        tmp_path,
        [
            ('folder', str(tmp_path / 'out')),
            ('runs', 1),
            ('top_k', [2]),
            ('sizes tiny dense', SHAPE),
            ('engine', {
                **ENGINE, 'max_num_seqs': 8
            }),
            ('rates', {
                'step': 10,
                'start': 10,
                'stop': 10
            }),
            (
                'workload',
                {
                    'input_tokens': 64,
                    'output_tokens': 16,
                    'requests': 24,
                    'warmup_requests': 2,
                },
            ),
        ],
    )
    study = read_study(path)
    monkeypatch.setattr(measure, 'find_vllm', lambda: VLLM)
    backend = measure.VllmBackend(study)
    assert Runner(study, backend, full_grid=True).run()
    records = [
        json.loads(file.read_text())
        for file in tmp_path.glob('out/points/*/point.json')
    ]
    found = {(r['config']['architecture'], r['config']['rate']): r
             for r in records}
    assert set(found) == {(a, r) for a in ('dense', 'moe') for r in (10, None)}
    cores = found['dense', None]['engine']['cpu_cores']
    assert cores and set(cores) <= os.sched_getaffinity(0)
    for (architecture, _), record in found.items():
        folder = tmp_path / 'out/points' / record['id']
        counted = count_between(
            (folder / 'metrics_before.txt').read_text(),
            (folder / 'metrics_after.txt').read_text(),
        )
        assert counted.prompt_tokens == 24 * 64
        assert counted.output_tokens == 24 * 16
        log = (folder / 'server.log').read_text()
        assert log.count('POST /v1/completions') == 24 + 2
        assert 'Initializing a V1 LLM engine' not in log
        engine, is_moe = record['engine'], architecture == 'moe'
        assert engine['cpu_cores'] == cores
        assert engine['devices'] == 1
        assert engine['top_k_checked'] == (2 if is_moe else None)
        experts = 8 if is_moe else 1
        assert engine['weight_bytes'] == weight_bytes(SHAPE, experts)
        if is_moe:
            shares = np.array(record['expert_load']['shares'])
            # 1896 tokens: 0.025 are 5 standard deviations.
            assert shares.shape == (2, 8)
            assert shares == pytest.approx(1 / 8, abs=0.025)
        else:
            assert record['expert_load'] is None

    started = []

    def serve(*server: object) -> None:
        started.append(server)
        raise HarnessError('server', 'vllm', 'started.', 'do not.')

    monkeypatch.setattr(backend, 'serve', serve)
    assert Runner(study, backend, full_grid=True).run()
    assert not started


def test_real_weights_of_a_qwen3_and_its_mixture(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    config = Qwen3Config(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=512,
        max_position_embeddings=256,
    )
    dense, moe = tmp_path / 'dense', tmp_path / 'moe'
    Qwen3ForCausalLM(config).save_pretrained(dense)
    convert(UpcyclingConfig(str(dense)), str(moe), 'safetensors')
    assert json.loads((moe / 'config.json').read_text())['num_experts'] == 8
    path = write_study(
        tmp_path,
        [
            ('folder', str(tmp_path / 'out')),
            ('runs', 1),
            ('load_format', 'real'),
            ('routing', None),
            ('top_k', [2]),
            (
                'sizes tiny',
                {
                    'dense': {
                        'folder': str(dense)
                    },
                    'moe': {
                        'folder': str(moe)
                    },
                },
            ),
            ('engine', {
                **ENGINE, 'max_num_seqs': 8
            }),
            ('rates', {
                'step': 10,
                'start': 10,
                'stop': 10
            }),
        ],
    )
    study = read_study(path)
    monkeypatch.setattr(measure, 'find_vllm', lambda: VLLM)
    assert Runner(study, measure.VllmBackend(study), full_grid=True).run()
    records = [
        json.loads(file.read_text())
        for file in tmp_path.glob('out/points/*/point.json')
    ]
    assert {(r['config']['architecture'], r['config']['experts'])
            for r in records} == {('dense', 1), ('moe', 8)}


def fail(folder: Path, load_format: str, flags: list[str]) -> HarnessError:
    write_model_folder(SHAPE, folder / 'model')
    port = free_port()
    command = serve_command(
        VLLM, folder / 'model', port, ENGINE, load_format, None, flags
    )
    log = folder / 'server.log'
    with pytest.raises(HarnessError) as error:
        Server(command, port, log, server_environment({}), 300).__enter__()
    return error.value


@pytest.mark.parametrize(
    ('load_format', 'flags', 'problem'),
    [
        ('dummy', ['--no-such-flag', '3'], 'rejects its flags: vllm: error:'),
        ('real', [], 'Cannot find any model weights'),
    ],
)
def test_servers_that_do_not_start(
    tmp_path: Path,
    load_format: str,
    flags: list[str],
    problem: str,
):
    assert problem in str(fail(tmp_path, load_format, flags))


def test_versions():
    machine = this_machine(VLLM)
    assert machine.vllm is not None and machine.vllm.startswith('0.32.0')
    assert machine.torch is not None
