"""The table of what can run here."""

from dataclasses import replace
from typing import Any

from benchmarks.inference.engine.doctor import diagnose
from benchmarks.inference.engine.machine import Machine

CPU = Machine(
    gpu=None,
    n_gpus=0,
    gpu_memory_gib=None,
    driver=None,
    cpu='a CPU',
    cpu_features=('avx2', ),
    cores=2,
    memory_gib=24.0,
    vllm='0.32.0+cpu',
    torch='2.13.0+cpu',
    cuda=None,
)
GPU = replace(CPU, gpu='H100', n_gpus=1, gpu_memory_gib=80.0, vllm='0.32.0')


def server(**changes: Any) -> dict[str, Any]:
    return {
        'label': 'ours',
        'architecture': 'moe',
        'variant': 'base',
        'load_format': 'dummy',
        'greedy': False,
        'weight_bytes': 3 * 2**30,
        'engine': {
            'kv_cache_gib': 2
        },
        **changes,
    }


def lines_of(machine: Machine, *servers: dict[str, Any]) -> list[str]:
    return diagnose(machine, servers)[0]


def verdict(machine: Machine, **changes: Any) -> str:
    """The last cell of the only row; a ``no`` is a failure, nothing else is."""
    (*_, header, row), all_run = diagnose(machine, [server(**changes)])
    found = row[header.index('runs here'):]
    assert all_run == (not found.startswith('no: '))
    return found


def test_the_machine():
    assert lines_of(CPU)[:3] == [
        'vLLM 0.32.0+cpu, torch 2.13.0+cpu',
        'no GPU: figures of a CPU say little of a GPU',
        '2 cores of a CPU (avx2), 24 GiB',
    ]
    assert '1 x H100, 80 GiB each' in lines_of(GPU)
    unused = replace(GPU, vllm='0.32.0+cpu')
    assert 'but vLLM is its CPU build, which does not use them' in \
        lines_of(unused)
    missing = replace(CPU, vllm=None)
    assert 'make install-vllm' in lines_of(missing)[0]


def test_memory():
    row = lines_of(CPU, server())[-1]
    # 3 of weights, 2 for keys and values, 2 beside them.
    assert row.split() == [
        'ours', '3.0', 'GiB', '2', 'GiB', '7.0', 'GiB', 'yes'
    ]
    assert verdict(CPU, weight_bytes=21 * 2**30) == 'no: it has 24.0 GiB'
    # Ranks on one CPU: 3 + 2 * (2 + 2).
    row = lines_of(CPU, server(variant='tensor_parallel_2'))[-1]
    assert '11.0 GiB' in row
    # On two GPUs: 3 / 2 + 2 + 2 of each.
    two = replace(GPU, n_gpus=2)
    row = lines_of(two, server(variant='tensor_parallel_2'))[-1]
    assert '5.5 GiB' in row


def test_what_is_not_known():
    row = lines_of(CPU, server(weight_bytes=None, engine={}))[-1]
    assert row.split()[1:] == ['unknown', "vLLM's", 'choice', 'unknown', 'yes']


def test_why_not():
    assert verdict(CPU) == 'yes'
    assert verdict(CPU, variant='expert_parallel') == 'skipped: needs a GPU'
    assert verdict(CPU, problem='no weights') == 'no: no weights'
    missing = replace(CPU, vllm=None)
    assert verdict(missing) == 'no: vLLM is not installed'
    skipped = verdict(missing, variant='expert_parallel')
    assert skipped == 'no: vLLM is not installed'


def test_devices_of_the_study():
    parallel = {'kv_cache_gib': 2, 'tensor_parallel_size': 4}
    assert verdict(GPU, engine=parallel) == \
        'skipped: needs 4 GPUs; there are 1'
    # The variant asks for 2 by itself, which are not the study's.
    two = replace(GPU, n_gpus=2)
    assert verdict(two, variant='tensor_parallel_2') == 'yes'


def test_one_that_fails_is_enough():
    lines, all_run = diagnose(CPU, [server(problem='no weights'), server()])
    assert [line.split()[-1] for line in lines[-2:]] == ['weights', 'yes']
    assert not all_run
