"""Recorded texts of ``/metrics`` and logs."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.inference.engine.metrics import (
    Counters,
    EngineFacts,
    check_counters,
    count_between,
    facts_of_log,
    is_idle,
    kv_cache_tokens,
    parse_metrics,
)
from benchmarks.inference.errors import HarnessError

RECORDED = Path(__file__).parents[1] / 'recorded'
BEFORE = (RECORDED / 'metrics_before.txt').read_text()
AFTER = (RECORDED / 'metrics_after.txt').read_text()


def test_parse_metrics():
    values = parse_metrics(AFTER)
    # 12 requests and 3 for warming up; of five reasons to end, all by length.
    assert values['vllm:request_success_total'] == 15
    assert values['vllm:time_to_first_token_seconds_count'] == 15
    assert not any(name.endswith('_bucket') for name in values)
    assert not any(name.endswith('_created') for name in values)


def test_parse_metrics_sums_over_labels():
    text = 'a{x="1"} 2.0\na{x="2"} 3.5\n# a comment\nb 1e+03\n'
    assert parse_metrics(text) == {'a': 5.5, 'b': 1000.0}


def test_count_between():
    # 15 requests of 64 and 16 tokens.
    assert count_between(BEFORE, AFTER) == Counters(
        prefix_cache_hits=0,
        preemptions=0,
        prompt_tokens=15 * 64,
        output_tokens=15 * 16,
        spec_drafted=405,
        spec_accepted=98,
    )
    assert count_between(AFTER, AFTER).output_tokens == 0


def test_what_a_server_does_not_count_is_not_0():
    lines = [line for line in AFTER.splitlines() if 'spec_' not in line]
    counted = count_between(BEFORE, '\n'.join(lines))
    assert counted.spec_drafted is None
    assert counted.preemptions == 0


def test_is_idle():
    assert is_idle(AFTER)
    assert is_idle('')
    for name in ('running', 'waiting'):
        metric = f'vllm:num_requests_{name}{{engine="0",model_name="model"}}'
        assert f'{metric} 0.0' in AFTER
        assert not is_idle(AFTER.replace(f'{metric} 0.0', f'{metric} 1.0'))


def test_check_counters():
    counters = count_between(BEFORE, AFTER)
    check_counters(counters, 15, 64, 16)
    check_counters(count_between('', ''), 15, 64, 16)
    with pytest.raises(HarnessError,
                       match='prompt_tokens=960: .* than the 896'):
        check_counters(counters, 14, 64, 16)
    with pytest.raises(HarnessError,
                       match='output_tokens=240: .* than the 225'):
        check_counters(counters, 15, 64, 15)
    cached = replace(counters, prefix_cache_hits=1)
    with pytest.raises(HarnessError, match='prefix_cache_hits=1: tokens of'):
        check_counters(cached, 15, 64, 16)


def test_kv_cache_tokens():
    assert kv_cache_tokens(AFTER) == 65536
    assert kv_cache_tokens('') is None
    unknown = 'vllm:cache_config_info{kv_cache_size_tokens="None"} 1.0'
    assert kv_cache_tokens(unknown) is None


def test_facts_of_log():
    assert facts_of_log((RECORDED / 'server.log').read_text()) == EngineFacts(
        version='0.32.0',
        kv_cache_tokens=131_072,
        weight_bytes=None,
        moe_backend='CPU Unquantized',
        moe_kernel='CPUUnquantizedExperts',
        tuned_config=None,
        cpu_cores=(0, ),
    )


def test_the_cores_of_all_ranks():
    log = 'local_rank=0, core ids=[0, 2]\nlocal_rank=1, core ids=[5, 3]\n'
    assert facts_of_log(log).cpu_cores == (0, 2, 3, 5)


# What vLLM 0.32 writes on a GPU, by its sources: these lines are not recorded.
GPU_LOG = """\
(Worker_TP0 pid=1) INFO 01-01 00:00:00 [gpu_model_runner.py:5150] Model \
loading took 3.07 GiB memory and 1.500000 seconds
(Worker_TP0 pid=1) INFO 01-01 00:00:00 [unquantized.py:364] Using TRITON \
Unquantized MoE backend out of potential backends: ['TRITON'].
"""


@pytest.mark.parametrize(
    ('line', 'tuned'),
    [
        ('Using default MoE config. Performance might be sub-optimal!', False),
        ('Using configuration from /a/E=8.json for MoE layer.', True),
        ('', None),
    ],
)
def test_facts_of_a_gpus_log(line: str, tuned: bool):
    facts = facts_of_log(GPU_LOG + line)
    assert facts.weight_bytes == round(3.07 * 2**30)
    assert facts.moe_backend == 'TRITON Unquantized'
    assert facts.tuned_config is tuned
    assert facts.cpu_cores is None
