"""Which variants can run where, and what they change."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import pytest

from benchmarks.inference.engine.machine import Machine
from benchmarks.inference.engine.server import engine_flags
from benchmarks.inference.engine.variants import (
    VARIANTS,
    changes_of,
    describe_variant,
    unavailable,
)
from benchmarks.inference.errors import HarnessError

CPU = Machine(
    gpu=None,
    n_gpus=0,
    gpu_memory_gib=None,
    cpu='a CPU',
    cpu_features=('avx512f', ),
    cores=2,
    memory_gib=24.0,
    vllm='0.32.0+cpu',
    torch='2.13.0+cpu',
)
AMX = replace(CPU, cpu_features=('amx_tile', ))
GPU = replace(CPU, gpu='H100', n_gpus=1, gpu_memory_gib=80.0, vllm='0.32.0')
ENGINE = {'dtype': 'bfloat16', 'enforce_eager': True, 'kv_cache_gib': 2}


@pytest.fixture(autouse=True)
def no_tuned_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv('VLLM_TUNED_CONFIG_FOLDER', raising=False)


@pytest.mark.parametrize(
    ('name', 'machine', 'load_format', 'architecture', 'reason'),
    [
        ('base', CPU, 'dummy', 'dense', None),
        ('compiled', CPU, 'dummy', 'moe', None),
        ('int8_experts', CPU, 'dummy', 'moe', 'or a CPU with amx_tile'),
        ('int8_experts', AMX, 'dummy', 'moe', None),
        ('int8_experts', GPU, 'dummy', 'moe', None),
        ('int8_experts', GPU, 'dummy', 'dense', 'has no experts'),
        ('fp8_experts', AMX, 'dummy', 'moe', None),
        ('fp8_kv_cache', CPU, 'dummy', 'dense', None),
        ('expert_parallel', CPU, 'dummy', 'moe', 'needs a GPU'),
        ('expert_parallel', GPU, 'dummy', 'moe', '2 GPUs; there are 1'),
        (
            'expert_parallel',
            replace(GPU, n_gpus=2),
            'dummy',
            'moe',
            None,
        ),
        ('tensor_parallel_2', CPU, 'dummy', 'moe', None),
        (
            'tensor_parallel_2',
            replace(CPU, cores=1),
            'dummy',
            'moe',
            '2 cores; there are 1',
        ),
        ('tuned_moe_config', CPU, 'dummy', 'moe', 'needs a GPU'),
        ('tuned_moe_config', GPU, 'dummy', 'moe', 'FOLDER is not set: tune'),
        ('ngram_speculation', CPU, 'dummy', 'moe', 'needs real weights'),
        ('ngram_speculation', CPU, 'real', 'dense', None),
        ('draft_speculation', CPU, 'real', 'moe', None),
        ('draft_speculation', CPU, 'real', 'dense', 'has no experts'),
        ('equal_kv_memory', CPU, 'dummy', 'moe', 'needs a GPU'),
        # A GPU that vLLM's CPU build does not use.
        (
            'expert_parallel',
            replace(GPU, n_gpus=2, vllm='0.32.0+cpu'),
            'dummy',
            'moe',
            'needs a GPU',
        ),
    ],
)
def test_unavailable(
    name: str,
    machine: Machine,
    load_format: str,
    architecture: str,
    reason: Optional[str],
):
    found = unavailable(name, machine, load_format, architecture)
    assert found is None if reason is None else reason in str(found)


def test_devices_of_the_study():
    reason = unavailable('base', GPU, 'dummy', 'moe', 4)
    assert reason == 'needs 4 GPUs; there are 1'


def test_tuned_folder_is_passed_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv('VLLM_TUNED_CONFIG_FOLDER', 'tuned')
    assert unavailable('tuned_moe_config', GPU, 'dummy', 'moe') is None
    changes = changes_of('tuned_moe_config', ENGINE, GPU)
    assert changes.environment == {'VLLM_TUNED_CONFIG_FOLDER': 'tuned'}
    assert changes_of('base', ENGINE, GPU).environment == {}


@pytest.mark.parametrize(
    ('name', 'changed'),
    [
        ('base', {}),
        ('compiled', {
            'enforce_eager': False
        }),
        ('eager', {
            'enforce_eager': True
        }),
        ('equal_kv_memory', {
            'kv_cache_gib': 16
        }),
        ('fp8_kv_cache', {
            'kv_cache_dtype': 'fp8'
        }),
        ('expert_parallel', {
            'tensor_parallel_size': 2
        }),
    ],
)
def test_changes_of_the_engine(name: str, changed: dict[str, Any]):
    changes = changes_of(name, ENGINE, GPU)
    assert changes.engine == {**ENGINE, 'tensor_parallel_size': 1, **changed}
    # All of it can be said to vLLM.
    assert engine_flags(changes.engine)


def test_no_fewer_devices_than_the_study_has():
    engine = {**ENGINE, 'tensor_parallel_size': 4}
    changes = changes_of('tensor_parallel_2', engine, GPU)
    assert changes.engine['tensor_parallel_size'] == 4


def test_cores_of_ranks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr('os.sched_getaffinity', lambda _: {5, 1, 2, 3})
    bound = changes_of('tensor_parallel_2', ENGINE, CPU).environment
    assert bound == {'VLLM_CPU_OMP_THREADS_BIND': '1,2|3,5'}
    assert changes_of('base', ENGINE, CPU).environment == {}


def test_the_dense_parent_drafts():
    flags = changes_of('draft_speculation', ENGINE, CPU, Path('dense')).flags
    assert json.loads(flags[1])['model'] == 'dense'


def test_every_variant_is_described():
    for name in VARIANTS:
        assert json.loads(json.dumps(describe_variant(name)))
        assert changes_of(name, ENGINE, CPU)


def test_unknown_variant():
    with pytest.raises(HarnessError, match="variants='fast': there is no"):
        unavailable('fast', CPU, 'dummy', 'moe')
