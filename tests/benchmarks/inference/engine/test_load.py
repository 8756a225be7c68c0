"""What ``vllm bench serve`` is asked, and how its result is read."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.inference.engine.load import (
    BenchResult,
    bench_command,
    run_load,
)
from benchmarks.inference.errors import HarnessError

HERE = Path(__file__).parents[1]
RECORDED = HERE / 'recorded'


def run(
    folder: Path,
    recorded: Path = RECORDED / 'bench.json',
    mode: str = 'writes',
    **changes: Any,
) -> BenchResult:
    tool = [sys.executable, str(HERE / 'stub_bench.py'), str(recorded), mode]
    arguments: dict[str, Any] = {
        'url': 'http://127.0.0.1:1',
        'model': folder / 'model',
        'prompts': folder / 'p.jsonl',
        'folder': folder / 'point',
        'n': 12,
        'rate': 4.0,
        'input_tokens': 64,
        'output_tokens': 16,
        'seed': 17,
        'environment': {},
        'timeout_s': 60,
        **changes,
    }
    return run_load(tool, **arguments)


def test_reads_a_recorded_result(tmp_path: Path):
    result = run(tmp_path)
    assert len(result.start_s) == 12
    assert result.start_s[0] == 0.0
    assert list(result.start_s) == sorted(result.start_s)
    assert result.input_tokens == (64, ) * 12
    assert result.output_tokens == (16, ) * 12
    latencies = [e - s for s, e in zip(result.start_s, result.end_s)]
    # The tool's own mean, from the same requests.
    mean_ms = 1000 * sum(latencies) / 12
    assert mean_ms == pytest.approx(result.tool['mean_e2el_ms'], rel=1e-3)
    assert all(t < latency for t, latency in zip(result.ttft_s, latencies))
    # (64 + 16) * 12 tokens in 3.0766 s.
    figure = result.tool['total_token_throughput']
    assert figure == pytest.approx(960 / 3.0766, rel=1e-3)
    assert 'the tool writes' in (tmp_path / 'point/bench.log').read_text()


def test_failed_requests_are_fatal(tmp_path: Path):
    problem = '2 of 2 requests failed, the first: .*Cannot connect to host'
    with pytest.raises(HarnessError, match=problem):
        run(tmp_path, RECORDED / 'bench_failed.json', n=2)


@pytest.mark.parametrize('rate', [4.15, math.inf])
def test_arrivals_on_time(tmp_path: Path, rate: float):
    # Asked for 12 / 4 s, the tool took 3.0016 s; 4 % more are fine.
    assert len(run(tmp_path, rate=rate).start_s) == 12


def test_a_slow_client_is_fatal(tmp_path: Path):
    # As if 2.86 s had been asked for.
    problem = 'rate=4.2: the client sent its 12 requests in 3.00 s, not in 2.86'
    with pytest.raises(HarnessError, match=problem):
        run(tmp_path, rate=4.2)


@pytest.mark.parametrize(
    ('content', 'problem'),
    [
        ('{"completed":', 'bench.json.*JSONDecodeError'),
        ('{"completed": 12}', "bench.json.*KeyError.'input_lens'"),
        ('[]', 'bench.json.*TypeError'),
    ],
)
def test_results_of_another_tool(tmp_path: Path, content: str, problem: str):
    recorded = tmp_path / 'other.json'
    recorded.write_text(content)
    with pytest.raises(HarnessError, match=problem):
        run(tmp_path, recorded)


def test_missing_requests_are_fatal(tmp_path: Path):
    with pytest.raises(HarnessError, match='1 of 13 requests failed'):
        run(tmp_path, n=13)


@pytest.mark.parametrize(
    ('changes', 'problem'),
    [
        ({
            'input_tokens': 65
        }, 'workload.input_tokens=65: 12 of 12 .* first 64'),
        ({
            'output_tokens': 15
        }, 'workload.output_tokens=15: 12 of 12 .* first 16'),
    ],
)
def test_other_lengths_are_fatal(
    tmp_path: Path,
    changes: dict[str, int],
    problem: str,
):
    with pytest.raises(HarnessError, match=problem):
        run(tmp_path, **changes)


@pytest.mark.parametrize(
    ('mode', 'problem'),
    [
        (
            'fails',
            r'(?s)exit status 1: ValueError: prompts that.*The end of .*log',
        ),
        ('empty', 'the tool wrote no result'),
        ('hangs', 'the tool did not end in 1 s'),
    ],
)
def test_a_tool_that_fails(tmp_path: Path, mode: str, problem: str):
    with pytest.raises(HarnessError, match=problem):
        run(tmp_path, mode=mode, timeout_s=1 if mode == 'hangs' else 60)


def test_an_earlier_result_is_not_read(tmp_path: Path):
    run(tmp_path)
    with pytest.raises(HarnessError, match='the tool wrote no result'):
        run(tmp_path, mode='empty')


def flag(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_bench_command(tmp_path: Path):
    command = bench_command(['vllm', 'bench', 'serve'], 'http://h', tmp_path,
                            tmp_path / 'p.jsonl', tmp_path / 'bench.json', 40,
                            math.inf, 16, 5)
    assert flag(command, '--request-rate') == 'inf'
    assert flag(command, '--num-warmups') == '0'
    assert flag(command, '--temperature') == '1.0'
    assert json.loads(flag(command, '--extra-body'))['max_tokens'] == 16
    assert '--ignore-eos' in command
    greedy = bench_command([], '', tmp_path, tmp_path, tmp_path / 'b', 1, 1.0,
                           8, 0, True)
    assert flag(greedy, '--temperature') == '0.0'
    bounded = bench_command([], '', tmp_path, tmp_path, tmp_path / 'b', 40, 0.3,
                            16, 5)
    assert flag(bounded, '--request-rate') == '0.3'
