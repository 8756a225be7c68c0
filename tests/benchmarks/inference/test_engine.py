"""The real engine, on tiny models of dummy weights."""

import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from benchmarks.inference.engine.load import BenchResult, run_load
from benchmarks.inference.engine.machine import this_machine
from benchmarks.inference.engine.metrics import (
    count_between,
    facts_of_log,
    kv_cache_tokens,
)
from benchmarks.inference.engine.models import write_model_folder
from benchmarks.inference.engine.prompts import write_prompts
from benchmarks.inference.engine.routing import (
    ObservedRouting,
    expert_shares,
    inclusion,
    read_observed,
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
from benchmarks.inference.errors import HarnessError

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
    observed: ObservedRouting


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
            warmups=2,
            environment=server_environment({}),
            timeout_s=300,
        )
        after = server.metrics()
    observed = read_observed(folder)
    assert observed is not None
    yield Measured(server, result, before, after, observed)


def test_requests(measured: Measured):
    result = measured.result
    assert result.input_tokens == (100, ) * 20
    assert result.output_tokens == (24, ) * 20
    # The tool stretches the arrivals to n / rate; the first is not at 0.
    assert 1.0 < result.start_s[-1] < 2.5
    assert result.tool['failed'] == 0


def test_what_the_server_counted(measured: Measured):
    counted = count_between(measured.before, measured.after)
    # With two for warming up.
    assert counted.prompt_tokens == 22 * 100
    assert counted.output_tokens == 22 * 24
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
    observed = measured.observed
    assert observed.top_k == (2, 2)
    assert observed.experts == (8, 8)
    # All but what passed after the last record; both layers see each token.
    first, second = observed.tokens
    assert first == second
    assert 22 * 100 * 0.5 < first <= 22 * (100 + 24)
    shares = expert_shares(ZIPF, 2, 8, SEED)
    assert observed.shares is not None
    assert np.array(observed.shares) == pytest.approx(shares, abs=0.03)


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
        # Its record is at most twice a second, and after a second token.
        first = complete(server.url, 8)
        time.sleep(1)
        complete(server.url, 8)
    assert first == 8
    observed = read_observed(tmp_path)
    assert observed is not None
    # One prompt of 4 tokens, and 7 of its answer: the last is not read.
    assert observed.tokens[0] >= 4 + 7
    assert observed.tokens[0] == observed.tokens[1]


def complete(url: str, n: int) -> int:
    """Asks for n tokens, returns how many came."""
    body = {
        'model': 'model',
        'prompt': [5, 6, 7, 8],
        'max_tokens': n,
        'ignore_eos': True,
        'detokenize': False,
    }
    request = urllib.request.Request(
        f'{url}/v1/completions',
        json.dumps(body).encode(),
        {'Content-Type': 'application/json'},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)['usage']['completion_tokens']


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
